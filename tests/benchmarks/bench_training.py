"""What a training step costs: the host's share, the device's kernels, and `denoising-diffusion-pytorch` beside it.

    pip install --no-deps --target THEIRS denoising-diffusion-pytorch einops ema-pytorch
    python -m tests.benchmarks.bench_training [--device cuda] [--theirs THEIRS]

- **Host**: a step with a network of next to no cost, less the arithmetic of its noise and loss: what stands between
  two steps. Then clipping, optimizers and running mean of `lfw-64.json`: how many operations they launch, and how long
  that takes where there is next to nothing to compute (as many tensors, grouped alike, a sixteenth as wide).
- **Device** (CUDA alone): a compiled bf16 step of `lfw-64.json` beside the time of its own kernels.
- **Theirs** (with `--theirs`): both loops train our network (its trainer through an adapter), with Adam, a running
  mean, clipping and mirrored images, in turns; ours in the memory format channels_last, and on a GPU compiled, which
  its trainer has no option for. Its trainer reads JPEG files with as many workers as there are cores; ours has the
  images in memory. Beside them, its own U-Net of about as many parameters. Its package needs torchvision, which must
  not be installed beside a CPU build of torch: the transforms that it uses are written out here.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
import types
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from accelerate.state import AcceleratorState
from PIL import Image, ImageOps
from torch import nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from diffusers_xai import ConvNextUNet2DModel
from tests.benchmarks.harness import interleaved, print_table, ratios
from training.config import TrainingConfig, load_config
from training.data import FaceImages
from training.trainer import Trainer


EMBEDDED = {"sample_size": 32, "block_out_channels": [24, 48, 64, 112], "attention_head_dim": 16}
THESIS = {"sample_size": 64, "block_out_channels": [64, 128, 256, 512]}
GPU = {"sample_size": 64, "block_out_channels": [64, 96, 128, 192]}
# Name -> arguments of our network, width of theirs with about as many parameters, batch size, steps of a round.
SIZES = {
    "cpu": {
        "embedded checkpoint, 32 px": (EMBEDDED, 20, 32, 8),
        "thesis, 64 px": (THESIS, 80, 16, 1),
    },
    "cuda": {"lfw-64, 64 px": (GPU, 36, 128, 20)},
}
IMAGES = 512
# Operations that look at memory and launch nothing.
VIEWS = {"detach", "view", "_unsafe_view", "permute", "transpose", "t", "unbind", "select", "slice", "split"}
VIEWS |= {"split_with_sizes", "diagonal", "unsqueeze", "squeeze", "expand", "alias", "reshape", "as_strided"}


class NearlyFree(nn.Module):
    """A network of one parameter."""

    class_embedding = None
    config = SimpleNamespace(null_class_label=-1)

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, sample, timestep, class_labels):
        return SimpleNamespace(sample=sample * self.scale)


class HostTrainer(Trainer):
    """Trains next to nothing."""

    def build_network(self):
        return NearlyFree()


class LaunchCounter(TorchDispatchMode):
    """Counts operations other than views; on a GPU each is a kernel or a few."""

    def __init__(self):
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name not in VIEWS:
            self.counts[name] += 1
        return function(*args, **(kwargs or {}))


def images_of(size: int) -> FaceImages:
    """Noise, labelled at random."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (IMAGES, 3, size, size), generator=generator, dtype=torch.uint8)
    return FaceImages(images, torch.randint(0, 16, (IMAGES,), generator=generator))


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def milliseconds(
    call: Callable[[], Any], repeats: int, device: torch.device, clock: Callable[[], float] = time.perf_counter
) -> tuple[float, float]:
    """The lowest and the median time of a call."""
    times = []
    for _ in range(repeats):
        wait_for(device)
        start = clock()
        call()
        wait_for(device)
        times.append(1000 * (clock() - start))
    return min(times), statistics.median(times)


def new_trainer(config: TrainingConfig, data: FaceImages, folder: Path, kind: type[Trainer] = Trainer) -> Trainer:
    AcceleratorState._reset_state(reset_partial_state=True)
    trainer = kind(config, data, folder)
    trainer.model.train()
    return trainer


def lfw_64(*changes: str) -> TrainingConfig:
    return load_config("training/configs/lfw-64.json", ["tracker=null", *changes])


def measure_host(folder: Path) -> None:
    """A step of next to no network, and its parts."""
    trainer = new_trainer(lfw_64("compile=false"), images_of(64), folder, HostTrainer)
    device = trainer.accelerator.device
    for _ in range(10):
        trainer.train_step()
    (batch,) = trainer.stream.batches(0)
    calls = {
        "a step": trainer.train_step,
        "of it: arithmetic of noise and loss": lambda: trainer._loss(batch).backward(),
        "a batch, which threads make meanwhile": lambda: trainer.stream.batches(1),
    }
    measured = {name: milliseconds(call, 60, device) for name, call in calls.items()}
    # What the calling thread works, which says more than the time on a machine that others use too.
    work = {name: milliseconds(call, 60, device, time.thread_time)[0] for name, call in calls.items()}
    whole, arithmetic, made = measured
    rows = [
        (whole, *measured[whole], work[whole]),
        (arithmetic, *measured[arithmetic], work[arithmetic]),
        (
            "between two steps",
            *(max(a - b, 0.0) for a, b in zip(measured[whole], measured[arithmetic], strict=True)),
            max(work[whole] - work[arithmetic], 0.0),
        ),
        (made, *measured[made], work[made]),
    ]
    print_table(
        f"Host, batch {trainer.config.batch_size} of 64 px on {device.type}, a network of one parameter",
        ("what", "lowest ms", "median ms", "the thread's own work, ms"),
        [(name, *(f"{value:.1f}" for value in values)) for name, *values in rows],
    )


def measure_optimizers(folder: Path) -> None:
    """Clipping, optimizers and running mean: operations launched, and the time for launching and for computing."""
    narrow = {
        "sample_size": 16,
        "block_out_channels": [4, 6, 8, 12],
        "attention_head_dim": 2,
        "class_encoding": "bits",
    }
    rows: dict[str, list[str]] = {}
    for model in (narrow, lfw_64().model):
        config = lfw_64("compile=false", 'mixed_precision="no"')
        config.model = model
        trainer = new_trainer(config, images_of(16), folder)
        for parameter in trainer.parameters:
            parameter.grad = torch.randn_like(parameter)
        parts: dict[str, Callable[[], Any]] = {
            "clipping": lambda t=trainer: t.accelerator.clip_grad_norm_(t.parameters, 1.0),
            **{type(optimizer.optimizer).__name__: optimizer.optimizer.step for optimizer in trainer.optimizers},
            "running mean": trainer.update_mean,
        }
        totals = [0.0, 0.0]
        for name, call in parts.items():
            call()
            with LaunchCounter() as counter:
                call()
            low, median = milliseconds(call, 10, trainer.accelerator.device)
            totals = [totals[0] + low, totals[1] + median]
            rows.setdefault(name, [str(sum(counter.counts.values()))]).append(f"{low:.1f} ({median:.1f})")
        rows.setdefault("together", [str(sum(int(row[0]) for row in rows.values()))])
        rows["together"].append(f"{totals[0]:.1f} ({totals[1]:.1f})")
    tensors = len(trainer.parameters)
    kernels = trainer.optimizers[-1].param_groups[0]["params"]
    shapes = len({kernel.shape for kernel in kernels})
    print_table(
        f"Optimizers of lfw-64.json: {tensors} tensors, {len(kernels)} of them Muon's, of {shapes} shapes",
        ("what", "operations", "launching alone, lowest (median) ms", "computing too, ms"),
        [(name, *cells) for name, cells in rows.items()],
    )


def measure_device(folder: Path) -> None:
    """A step on the GPU beside its kernels' own time."""
    trainer = new_trainer(lfw_64(), images_of(64), folder)
    steps, device = 20, trainer.accelerator.device

    def run() -> None:
        for _ in range(steps):
            trainer.train_step()

    run()
    low, median = milliseconds(run, 5, device)
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        run()
        wait_for(device)
    events = [e for e in profiler.key_averages() if e.device_type == DeviceType.CUDA]
    kernels = sum(e.self_device_time_total for e in events) / 1000
    rows = [
        ("a step, lowest", f"{low / steps:.1f} ms", ""),
        ("a step, median", f"{median / steps:.1f} ms", f"{median / kernels:.2f} times the kernels' own time"),
        ("its kernels", f"{kernels / steps:.1f} ms", f"{sum(e.count for e in events) / steps:.0f} launches"),
    ]
    for event in sorted(events, key=lambda e: -e.self_device_time_total)[:6]:
        share = event.self_device_time_total / 1000 / kernels
        rows.append((event.key[:70], f"{event.self_device_time_total / 1000 / steps:.1f} ms", f"{share:.0%}"))
    print_table(f"Device: lfw-64.json as it is, on {torch.cuda.get_device_name(device)}", ("what", "time", ""), rows)


class TheirInterface(nn.Module):
    """Our network as their diffusion object calls it."""

    channels = out_dim = 3
    self_condition = random_or_learned_sinusoidal_cond = False

    def __init__(self, network: ConvNextUNet2DModel):
        super().__init__()
        self.network = network

    def forward(self, x, time, x_self_cond=None):
        labels = torch.full((len(x),), self.network.config.null_class_label, device=x.device)
        return self.network(x, time, labels).sample


def import_theirs(folder: Path):
    """Their module, with the transforms of torchvision that it uses."""
    transforms = types.ModuleType("torchvision.transforms")

    def compose(steps: list[Callable]) -> Callable:
        def apply(image):
            for step in steps:
                image = step(image)
            return image

        return apply

    def mirror():
        return lambda image: ImageOps.mirror(image) if torch.rand(()) < 0.5 else image

    transforms.Compose, transforms.Lambda, transforms.RandomHorizontalFlip = compose, lambda f: f, mirror
    transforms.Resize = lambda size: lambda image: image.resize(size, Image.Resampling.BILINEAR)
    transforms.CenterCrop = lambda size: lambda image: ImageOps.fit(image, size)
    transforms.ToTensor = lambda: lambda image: torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
    torchvision = types.ModuleType("torchvision")
    torchvision.transforms, torchvision.utils = transforms, types.ModuleType("torchvision.utils")
    sys.modules |= {
        "torchvision": torchvision,
        "torchvision.transforms": transforms,
        "torchvision.utils": torchvision.utils,
    }
    sys.path.append(str(folder))
    import denoising_diffusion_pytorch.denoising_diffusion_pytorch as theirs

    return theirs


def our_steps(model: dict, batch: int, steps: int, data: FaceImages, folder: Path, gpu: bool) -> Callable[[], None]:
    """A function that trains so many steps with our loop."""
    config = TrainingConfig(
        model=model, scheduler={"beta_schedule": "linear"}, loss="l2", betas=(0.9, 0.99), learning_rate=1e-4,
        batch_size=batch, label_dropout=0.0, mixed_precision="bf16" if gpu else "no", compile=gpu,
        channels_last=True, tracker=None,
    )  # fmt: skip
    trainer = new_trainer(config, FaceImages(data.images, torch.full((len(data),), -1)), folder)

    def run():
        for _ in range(steps):
            trainer.train_step()
        wait_for(trainer.accelerator.device)

    return run


def their_steps(
    theirs, network: nn.Module, size: int, batch: int, steps: int, folder: Path, gpu: bool
) -> Callable[[], None]:
    """A function that trains so many steps with their loop."""
    AcceleratorState._reset_state(reset_partial_state=True)
    diffusion = theirs.GaussianDiffusion(
        network, image_size=size, timesteps=1000, objective="pred_noise", beta_schedule="linear"
    )
    trainer = theirs.Trainer(
        diffusion, str(folder), train_batch_size=batch, train_num_steps=0, calculate_fid=False,
        save_and_sample_every=10**9, results_folder=str(folder.parent / "results"),
        amp=gpu, mixed_precision_type="bf16" if gpu else "no",
    )  # fmt: skip

    def run():
        trainer.train_num_steps += steps
        trainer.train()
        wait_for(trainer.accelerator.device)

    return run


def measure_beside(theirs, device: torch.device, rounds: int) -> None:
    """Images per second of both loops."""
    rows, gpu = [], device.type == "cuda"
    for name, (model, width, batch, steps) in SIZES[device.type].items():
        data = images_of(model["sample_size"])
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "images"
            folder.mkdir()
            for i, image in enumerate(data.images):
                Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{i}.jpg")
            network = ConvNextUNet2DModel(**model)
            own = theirs.Unet(dim=width, dim_mults=(1, 2, 4, 8), flash_attn=False)
            counts = [sum(p.numel() for p in n.parameters()) / 1e6 for n in (network, own)]
            size = model["sample_size"]
            variants = {
                "diffusers_xai": our_steps(model, batch, steps, data, Path(temporary), gpu),
                "their loop, our network": their_steps(
                    theirs, TheirInterface(network), size, batch, steps, folder, gpu
                ),
                "their loop, their U-Net": their_steps(theirs, own, size, batch, steps, folder, gpu),
            }
            for run in variants.values():
                run()  # warm-up
            times = interleaved(variants, rounds)
        against = {key: ratios(times, "diffusers_xai")[key] for key in list(variants)[1:]}
        for variant, (low, median, high) in against.items():
            rate = batch * steps / statistics.median(times["diffusers_xai"])
            network_size = counts[0] if "our" in variant else counts[1]
            rows.append(
                (name, variant, f"{network_size:.1f} M", f"{rate:.1f}", f"{median:.2f} ({low:.2f}–{high:.2f})")
            )
    header = ("network", "beside", "parameters there", "our images/s", "our speed / theirs")
    print_table("Training: images per second", header, rows)


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--theirs", type=Path, help="folder that their package was installed to")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: there is no CUDA device")
    if device.type == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"
    with tempfile.TemporaryDirectory() as folder:
        measure_host(Path(folder))
        measure_optimizers(Path(folder))
        if device.type == "cuda":
            measure_device(Path(folder))
    if args.theirs is None:
        print("\nbench_training: nothing beside it, which needs `--theirs`; see the top of the file")
    else:
        measure_beside(import_theirs(args.theirs), device, args.rounds)


if __name__ == "__main__":
    main()
