"""How good the network is: one-step predictions on the validation split, and pictures."""

import torch
from diffusers import DDIMScheduler, DDPMScheduler
from PIL import Image

from diffusers_xai import ConvNextUNet2DModel, XAIPipeline
from diffusers_xai.measures import structural_similarity
from training.batches import step_generator
from training.config import TrainingConfig
from training.data import FaceImages
from training.objective import implied_clean_and_noise


@torch.no_grad()
def validate(
    model: ConvNextUNet2DModel, scheduler: DDPMScheduler, data: FaceImages, config: TrainingConfig
) -> dict[str, float]:
    """Adds noise to validation images and compares the one-step prediction of x_0, and of the noise, with the truth.

    The images and their noise are the same at every call.

    Returns:
        `dict[str, float]`: `"l1"`, `"ssim"` and `"psnr"` (dB, on the range [-1, 1]) of the predicted x_0, means over
        images and timesteps, and `"noise_mse/<t>"` of the implied noise at each of `config.validation_timesteps`.
    """
    device = next(model.parameters()).device
    generator = step_generator(config.seed, 2)
    rows = torch.randperm(len(data), generator=generator)[: config.validation_images]
    clean = data.images[rows].float() / 127.5 - 1
    noise = torch.randn(clean.shape, generator=generator)
    labels = data.labels[rows]

    sums: dict[str, float] = {}
    for t in config.validation_timesteps:
        for start in range(0, len(rows), 64):
            part = slice(start, start + 64)
            x0, eps = clean[part].to(device), noise[part].to(device)
            timesteps = torch.full((len(x0),), t, device=device)
            x0_hat, eps_hat = predict_clean_and_noise(model, scheduler, x0, eps, timesteps, labels[part])
            mse = (x0_hat - x0).square().mean(dim=(1, 2, 3))
            measured = {
                f"noise_mse/{t}": (eps_hat - eps).square().mean(dim=(1, 2, 3)),
                "l1": (x0_hat - x0).abs().mean(dim=(1, 2, 3)) / len(config.validation_timesteps),
                "ssim": structural_similarity(x0_hat, x0) / len(config.validation_timesteps),
                "psnr": 10 * torch.log10(4 / mse.clamp(min=1e-10)) / len(config.validation_timesteps),
            }
            for name, values in measured.items():
                sums[name] = sums.get(name, 0.0) + float(values.sum()) / len(rows)
    return sums


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
        for part in torch.arange(len(data)).split(64):
            x0 = data.images[part].to(device) / 127.5 - 1
            timesteps = torch.randint(first, end, (len(part),), generator=generator).to(device)
            eps = torch.randn(x0.shape, generator=generator).to(device)
            x0_hat, eps_hat = predict_clean_and_noise(model, scheduler, x0, eps, timesteps, data.labels[part])
            mse = (x0_hat - x0).square().mean(dim=(1, 2, 3))
            measured = {
                "noise_mse": (eps_hat - eps).square().mean(dim=(1, 2, 3)),
                "noise_l1": (eps_hat - eps).abs().mean(dim=(1, 2, 3)),
                "l1": (x0_hat - x0).abs().mean(dim=(1, 2, 3)),
                "ssim": structural_similarity(x0_hat, x0),
                "psnr": 10 * torch.log10(4 / mse.clamp(min=1e-10)),
            }
            for name, values in measured.items():
                sums[name] = sums.get(name, 0.0) + float(values.sum()) / len(data)
        rows.append({"from": first, "to": end, **sums})
    return rows


def sample_labels_in_config(
    model: ConvNextUNet2DModel, scheduler: DDPMScheduler, config: TrainingConfig
) -> dict[str, torch.Tensor]:
    """DDIM samples of each of `config.sample_labels`: {"label 0011": images in [-1, 1]}, on the CPU.

    The i-th image of every label starts from the same noise. An unconditional network has the one entry "samples".
    """
    conditional = model.class_embedding is not None
    bits = (model.config.num_class_embeds - 1).bit_length() if conditional else 0
    count = config.samples_per_label
    pipeline = XAIPipeline(model, DDIMScheduler.from_config(scheduler.config))
    pipeline.set_progress_bar_config(disable=True)
    samples = {}
    for label in config.sample_labels if conditional else [None]:
        images = pipeline(
            class_labels=[label] * count if conditional else None,
            batch_size=count,
            num_inference_steps=config.sample_steps,
            generator=[torch.Generator(model.device).manual_seed(config.seed + j) for j in range(count)],
            guidance_scale=config.guidance_scale if conditional else 1.0,
            output_type="pt",
        ).images
        samples["samples" if label is None else f"label {label:0{bits}b}"] = images.cpu() * 2 - 1
    return samples


def tiles(images: torch.Tensor, columns: int) -> Image.Image:
    """Images (image, 3, height, width) in [-1, 1] side by side, `columns` in a row."""
    rows = [torch.cat(list(row), dim=2) for row in images.split(columns)]
    grid = (torch.cat(rows, dim=1) / 2 + 0.5).clamp(0, 1).permute(1, 2, 0)
    return Image.fromarray((grid * 255).round().byte().numpy())
