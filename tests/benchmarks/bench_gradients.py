"""What gradients cost on the thesis network at 64 px, beside the thesis's pixel loop and bare backward passes.

    python -m tests.benchmarks.bench_gradients [--device cuda]

Networks are float32; on a GPU convolutions use TF32, as torch does unless told otherwise. There the pixel loop's time
for 600 pixels is 25 times that for 24, and the volume is also measured with chunks of other sizes than `"auto"`.
"""

import argparse
import statistics
import time

import numpy as np
import torch
from diffusers import DDPMScheduler

from diffusers_xai import ConvNextUNet2DModel, GradientEnergy, GradientMaps, GradientVolume, XAIPipeline
from tests.benchmarks.harness import interleaved, print_table
from tests.reference import article_unet, pixel_loop


PIXELS = [(5 * i % 64, 7 * i % 64) for i in range(24)]
LABEL, TIMESTEP = 3, 500
CHUNKS = (16, 64, 256)


def eye_mask(device):
    """Two boxes, about where eyes are: 300 pixels, on a GPU 600."""
    mask = np.zeros((64, 64), bool)
    height = 10 if device.type == "cpu" else 20
    mask[24 : 24 + height, 12:27] = mask[24 : 24 + height, 37:52] = True
    return mask


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    device = torch.device(parser.parse_args().device)
    state = {name: weight.to(device) for name, weight in article_unet.random_state().items()}
    unet = ConvNextUNet2DModel.from_annotated(state, sample_size=64).eval().to(device)
    pipe = XAIPipeline(unet, DDPMScheduler(clip_sample=False))
    pipe.set_progress_bar_config(disable=True)
    trainable = {name: weight.clone().requires_grad_() for name, weight in state.items()}
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    alpha_bars = torch.cumprod(1 - betas, 0)
    noise = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1)).to(device)
    mask = eye_mask(device)

    def clock():
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def sample(*specs):
        generator = torch.Generator().manual_seed(0)
        return pipe(LABEL, num_inference_steps=1, generator=generator, record=list(specs) or None).profile

    def loop():
        x = torch.cat([noise, torch.full((1, 1, 64, 64), float(LABEL), device=device)], 1)
        pixel_loop.gradient_volume(
            lambda x, t: article_unet.forward(trainable, x, t),
            x,
            torch.tensor([TIMESTEP], device=device),
            betas[TIMESTEP].item(),
            1 - betas[TIMESTEP].item(),
            alpha_bars[TIMESTEP].item(),
            [row * 64 + column for row, column in PIXELS],
        )

    def input_backwards():
        unet.requires_grad_(False)
        x = noise.clone().requires_grad_()
        output = unet(x, TIMESTEP, torch.tensor([LABEL], device=device)).sample[0].sum(0)
        for row, column in PIXELS:
            torch.autograd.grad(output[row, column], x, retain_graph=True)
        unet.requires_grad_(True)

    profiles = {}
    of_mask = {"exact": GradientVolume(mask=mask), "energy": GradientEnergy(mask=mask)}  # 32 probes
    if device.type == "cuda":
        of_mask |= {f"chunks of {size}": GradientVolume(mask=mask, chunk_size=size) for size in CHUNKS}
    many = {name: lambda name=name, spec=spec: profiles.update({name: sample(spec)}) for name, spec in of_mask.items()}
    few = {
        "loop": loop,
        "backwards": input_backwards,
        "volume": lambda: sample(GradientVolume(pixels=PIXELS)),
        "maps": lambda: sample(GradientMaps(layers="downs.*.2.fn", mask=mask)),
        "plain": sample,
    }
    if device.type == "cuda":
        for call in (*few.values(), *many.values()):
            call()  # warm-up
    times = interleaved(few, 3, clock) | interleaved(many, 1 if device.type == "cpu" else 3, clock)
    seconds = {name: statistics.median(values) for name, values in times.items()}
    cost = {name: value - seconds["plain"] for name, value in seconds.items()}
    exact = np.sqrt((profiles["exact"]["gradient_volume"].values[0, 0].astype(np.float64) ** 2).sum(0))
    estimate = profiles["energy"]["gradient_energy"].values[0, 0]
    error = np.sqrt(np.mean((estimate - exact) ** 2 / exact**2))

    pixels, count = len(PIXELS), mask.sum()
    rows = [
        (f"pixel loop / gradient volume, {pixels} pixels", f"{seconds['loop'] / cost['volume']:.2f}", "≥ 3"),
        ("gradient volume / input-only backward passes", f"{cost['volume'] / seconds['backwards']:.2f}", "≤ 1.15"),
        ("one pixel of the volume, ms", f"{1000 * cost['volume'] / pixels:.2f}", ""),
        ("gradient maps of an eye mask / forward", f"{cost['maps'] / seconds['plain']:.2f}", "≤ 3"),
        (f"exact volume / energy estimate, {count} pixels", f"{cost['exact'] / cost['energy']:.1f}", "≥ 9"),
        ("relative error of the energy estimate (rms over pixels)", f"{100 * error:.1f} %", "≤ 15 %"),
    ]
    if device.type == "cuda":
        loop_of_mask = seconds["loop"] * count / pixels
        rows.append((f"pixel loop / gradient volume, {count} pixels", f"{loop_of_mask / cost['exact']:.1f}", "≥ 40"))
        rows.append((f"one pixel of the volume of {count}, ms", f"{1000 * cost['exact'] / count:.2f}", ""))
        for size in CHUNKS:
            rows.append((f"  the same, chunks of {size}", f"{1000 * cost[f'chunks of {size}'] / count:.2f}", ""))
    where = "CPU" if device.type == "cpu" else f"{torch.cuda.get_device_name()}, TF32 convolutions"
    print_table(f"Gradients of the thesis network, 64 px, batch 1, {where}", ("what", "measured", "target"), rows)


if __name__ == "__main__":
    main()
