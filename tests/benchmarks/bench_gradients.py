"""What gradients cost on the thesis network at 64 px, beside the thesis's pixel loop and bare backward passes."""

import statistics

import numpy as np
import torch
from diffusers import DDPMScheduler

from diffusers_xai import ConvNextUNet2DModel, GradientEnergy, GradientMaps, GradientVolume, XAIPipeline
from tests.benchmarks.harness import interleaved, print_table
from tests.reference import article_unet, pixel_loop


PIXELS = [(5 * i % 64, 7 * i % 64) for i in range(24)]
LABEL, TIMESTEP = 3, 500


def eye_mask():
    """300 pixels of two boxes, about where eyes are."""
    mask = np.zeros((64, 64), bool)
    mask[24:34, 12:27] = mask[24:34, 37:52] = True
    return mask


def main():
    state = article_unet.random_state()
    unet = ConvNextUNet2DModel.from_annotated(state, sample_size=64).eval()
    pipe = XAIPipeline(unet, DDPMScheduler(clip_sample=False))
    pipe.set_progress_bar_config(disable=True)
    trainable = {name: weight.clone().requires_grad_() for name, weight in state.items()}
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    alpha_bars = torch.cumprod(1 - betas, 0)
    noise = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))

    def sample(*specs):
        generator = torch.Generator().manual_seed(0)
        return pipe(LABEL, num_inference_steps=1, generator=generator, record=list(specs) or None).profile

    def loop():
        x = torch.cat([noise, torch.full((1, 1, 64, 64), float(LABEL))], 1)
        pixel_loop.gradient_volume(
            lambda x, t: article_unet.forward(trainable, x, t),
            x,
            torch.tensor([TIMESTEP]),
            betas[TIMESTEP].item(),
            1 - betas[TIMESTEP].item(),
            alpha_bars[TIMESTEP].item(),
            [row * 64 + column for row, column in PIXELS],
        )

    def input_backwards():
        unet.requires_grad_(False)
        x = noise.clone().requires_grad_()
        output = unet(x, TIMESTEP, torch.tensor([LABEL])).sample[0].sum(0)
        for row, column in PIXELS:
            torch.autograd.grad(output[row, column], x, retain_graph=True)
        unet.requires_grad_(True)

    times = interleaved(
        {
            "loop": loop,
            "backwards": input_backwards,
            "volume": lambda: sample(GradientVolume(pixels=PIXELS)),
            "maps": lambda: sample(GradientMaps(layers="downs.*.2.fn", mask=eye_mask())),
            "plain": sample,
        },
        rounds=3,
    )
    seconds = {name: statistics.median(values) for name, values in times.items()}
    volume, maps = seconds["volume"] - seconds["plain"], seconds["maps"] - seconds["plain"]

    mask = eye_mask()
    specs = {"exact": GradientVolume(mask=mask), "energy": GradientEnergy(mask=mask)}  # 32 probes
    profiles = {}
    full = interleaved(
        {name: lambda name=name, spec=spec: profiles.update({name: sample(spec)}) for name, spec in specs.items()},
        rounds=1,
    )
    speed_up = (full["exact"][0] - seconds["plain"]) / (full["energy"][0] - seconds["plain"])
    exact = np.sqrt((profiles["exact"]["gradient_volume"].values[0, 0].astype(np.float64) ** 2).sum(0))
    estimate = profiles["energy"]["gradient_energy"].values[0, 0]
    error = np.sqrt(np.mean((estimate - exact) ** 2 / exact**2))

    print_table(
        "Gradients of the thesis network, 64 px, batch 1",
        ("what", "measured", "target"),
        [
            ("pixel loop / gradient volume, 24 pixels", f"{seconds['loop'] / volume:.2f}", "≥ 3"),
            ("gradient volume / input-only backward passes", f"{volume / seconds['backwards']:.2f}", "≤ 1.15"),
            ("one pixel of the volume, s", f"{volume / len(PIXELS):.3f}", ""),
            ("gradient maps of an eye mask / forward", f"{maps / seconds['plain']:.2f}", "≤ 3"),
            (
                f"exact volume / energy estimate, {mask.sum()} pixels",
                f"{speed_up:.1f}",
                "≥ 9",
            ),
            ("relative error of the energy estimate (rms over pixels)", f"{100 * error:.1f} %", "≤ 15 %"),
        ],
    )


if __name__ == "__main__":
    main()
