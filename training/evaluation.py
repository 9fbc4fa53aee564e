"""How good the network is: one-step predictions on the validation split, and pictures."""

import numpy as np
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from PIL import Image

from diffusers_xai import ConvNextUNet2DModel, XAIPipeline
from diffusers_xai.measures import structural_similarity
from training.config import TrainingConfig
from training.data import FaceImages, step_generator
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
            noisy = scheduler.add_noise(x0, eps, timesteps)
            label = labels[part].to(device) if model.class_embedding is not None else None
            prediction = model(noisy, timesteps, label).sample
            x0_hat, eps_hat = implied_clean_and_noise(scheduler, prediction, noisy, timesteps)
            x0_hat = x0_hat.clamp(-1, 1)
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


def sample_grid(model: ConvNextUNet2DModel, scheduler: DDPMScheduler, config: TrainingConfig) -> Image.Image:
    """One row of DDIM samples for each of `config.sample_labels`; a column starts from the same noise in every row."""
    conditional = model.class_embedding is not None
    labels = config.sample_labels if conditional else [None]
    columns = config.samples_per_label
    pipeline = XAIPipeline(model, DDIMScheduler.from_config(scheduler.config))
    pipeline.set_progress_bar_config(disable=True)
    rows = []
    for label in labels:
        generators = [torch.Generator(model.device).manual_seed(config.seed + j) for j in range(columns)]
        images = pipeline(
            class_labels=[label] * columns if conditional else None,
            batch_size=columns,
            num_inference_steps=config.sample_steps,
            generator=generators,
            guidance_scale=config.guidance_scale if conditional else 1.0,
            output_type="np",
        ).images
        rows.append(np.concatenate(list(images), axis=1))
    grid = np.concatenate(rows, axis=0)
    return Image.fromarray((grid * 255).round().astype(np.uint8))
