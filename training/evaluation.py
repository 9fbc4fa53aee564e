"""How good the network is: one-step predictions on the validation split, and pictures."""

from collections.abc import Callable

import torch
from diffusers import DDIMScheduler, DDPMScheduler

from diffusers_xai import ConvNextUNet2DModel, XAIPipeline
from diffusers_xai.measures import structural_similarity
from training.batches import step_generator
from training.config import TrainingConfig
from training.data import FaceImages
from training.objective import implied_clean_and_noise
from training.sampling import StoppedError, images_that_fill, sample_labels


# Images whose noise is drawn at once, however many the device takes: the numbers then do not depend on the device.
_DRAWN = 64


@torch.no_grad()
def validate(
    model: ConvNextUNet2DModel,
    scheduler: DDPMScheduler,
    data: FaceImages,
    config: TrainingConfig,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, float]:
    """Adds noise to validation images and compares the one-step prediction of x_0, and of the noise, with the truth.

    The images and their noise are the same at every call.

    Args:
        model (`ConvNextUNet2DModel`): The network and
        scheduler (`DDPMScheduler`): the noise that it was trained with.
        data (`FaceImages`): The validation split, of which `config.validation_images` are taken,
        config (`TrainingConfig`): each at all of `config.validation_timesteps`.
        stop (`Callable`): Asked before every batch.

    Returns:
        `dict[str, float]`: `"l1"`, `"ssim"` and `"psnr"` (dB, on the range [-1, 1]) of the predicted x_0, means over
        images and timesteps, and `"noise_mse/<t>"` of the implied noise at each of `config.validation_timesteps`.

    Raises:
        StoppedError: If `stop` says so.
    """
    device = next(model.parameters()).device
    generator = step_generator(config.seed, 2)
    rows = torch.randperm(len(data), generator=generator)[: config.validation_images]
    clean = data.images[rows].float() / 127.5 - 1
    noise = torch.randn(clean.shape, generator=generator)
    labels = data.labels[rows]
    timesteps = torch.tensor(config.validation_timesteps).repeat_interleave(len(rows))
    images = torch.arange(len(rows)).repeat(len(config.validation_timesteps))

    measured: dict[str, list[torch.Tensor]] = {}
    for part in torch.arange(len(images)).split(images_that_fill(device, clean.shape[-1])):
        if stop():
            raise StoppedError
        row = images[part]
        inputs = [x.to(device) for x in (clean[row], noise[row], timesteps[part], labels[row])]
        for name, values in prediction_errors(model, scheduler, *inputs).items():
            measured.setdefault(name, []).append(values)
    errors = {name: torch.cat(parts).double().cpu() for name, parts in measured.items()}
    by_timestep = errors["noise_mse"].unflatten(0, (-1, len(rows))).mean(1).tolist()
    return {f"noise_mse/{t}": e for t, e in zip(config.validation_timesteps, by_timestep, strict=True)} | {
        name: errors[name].mean().item() for name in ("l1", "ssim", "psnr")
    }


def prediction_errors(
    model: ConvNextUNet2DModel,
    scheduler: DDPMScheduler,
    clean: torch.Tensor,
    noise: torch.Tensor,
    timesteps: torch.Tensor,
    labels: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """What one prediction gets wrong, per image: `noise_mse`, `noise_l1` of the noise; `l1`, `ssim`, `psnr` of x_0."""
    x0, eps = predict_clean_and_noise(model, scheduler, clean, noise, timesteps, labels)
    mse = (x0 - clean).square().mean(dim=(1, 2, 3))
    return {
        "noise_mse": (eps - noise).square().mean(dim=(1, 2, 3)),
        "noise_l1": (eps - noise).abs().mean(dim=(1, 2, 3)),
        "l1": (x0 - clean).abs().mean(dim=(1, 2, 3)),
        "ssim": structural_similarity(x0, clean),
        "psnr": 10 * torch.log10(4 / mse.clamp(min=1e-10)),
    }


def predict_clean_and_noise(
    model: ConvNextUNet2DModel,
    scheduler: DDPMScheduler,
    clean: torch.Tensor,
    noise: torch.Tensor,
    timesteps: torch.Tensor,
    labels: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Adds `noise` to `clean` and returns what one prediction says of both; x_0 is clipped to [-1, 1]."""
    noisy = scheduler.add_noise(clean, noise, timesteps)
    label = labels.to(clean.device) if model.class_embedding is not None else None
    prediction = model(noisy, timesteps, label).sample
    x0, eps = implied_clean_and_noise(scheduler, prediction, noisy, timesteps)
    return x0.clamp(-1, 1), eps


@torch.no_grad()
def bucket_losses(
    model: ConvNextUNet2DModel, scheduler: DDPMScheduler, data: FaceImages, *, buckets: int = 10, seed: int = 0
) -> list[dict[str, float]]:
    """The loss of the noise in equal parts of the schedule, each image once at a random timestep of each part.

    Returns:
        `list[dict]`: for each part `"from"` and `"to"` (timesteps, the last one excluded), and means over the images:
        `"noise_mse"` and `"noise_l1"` of the implied noise, `"l1"`, `"ssim"` and `"psnr"` (dB) of the predicted x_0 on
        the range [-1, 1].
    """
    device = next(model.parameters()).device
    length = scheduler.config.num_train_timesteps
    edges = [i * length // buckets for i in range(buckets + 1)]
    rows = []
    for first, end in zip(edges, edges[1:], strict=False):
        generator = step_generator(seed, first)
        sums: dict[str, float] = {}
        for part in torch.arange(len(data)).split(max(_DRAWN, images_that_fill(device, data.images.shape[-1]))):
            x0 = data.images[part].to(device) / 127.5 - 1
            drawn = [
                (
                    torch.randint(first, end, (len(some),), generator=generator),
                    torch.randn((len(some), *x0.shape[1:]), generator=generator),
                )
                for some in part.split(_DRAWN)
            ]
            timesteps, eps = (torch.cat(parts).to(device) for parts in zip(*drawn, strict=True))
            for name, values in prediction_errors(model, scheduler, x0, eps, timesteps, data.labels[part]).items():
                sums[name] = sums.get(name, 0.0) + float(values.sum()) / len(data)
        rows.append({"from": first, "to": end, **sums})
    return rows


def sample_labels_in_config(
    model: ConvNextUNet2DModel,
    scheduler: DDPMScheduler,
    config: TrainingConfig,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, torch.Tensor]:
    """DDIM samples of each of `config.sample_labels`: {"label 0011": images in [-1, 1]}, on the CPU.

    The i-th image of every label starts from the same noise. An unconditional network has the one entry "samples".

    Raises:
        StoppedError: If `stop`, which is asked after every step, says so.
    """
    conditional = model.class_embedding is not None
    labels = config.sample_labels if conditional else [None]
    pipeline = XAIPipeline(model, DDIMScheduler.from_config(scheduler.config))
    pipeline.set_progress_bar_config(disable=True)
    images = sample_labels(
        pipeline,
        labels,
        config.samples_per_label,
        guidance_scale=config.guidance_scale if conditional else 1.0,
        num_inference_steps=config.sample_steps,
        seed=config.seed,
        stop=stop,
    )
    bits = (model.config.num_class_embeds - 1).bit_length() if conditional else 0
    names = [f"label {label:0{bits}b}" if conditional else "samples" for label in labels]
    return dict(zip(names, images.split(config.samples_per_label), strict=True))
