"""Images per second of the training beside `denoising-diffusion-pytorch`'s trainer, on the same network.

    pip install --no-deps --target THEIRS denoising-diffusion-pytorch einops ema-pytorch
    python -m tests.benchmarks.bench_training --theirs THEIRS [--mixed-precision bf16 --compile]

Both loops train our network (its trainer through an adapter), with Adam, a running mean, clipping and mirrored
images, in turns; ours in the memory format channels_last, which its trainer has no option for. Its trainer reads JPEG
files with as many workers as there are cores; ours has the images in memory. Beside them, its own U-Net of about as
many parameters. Its package needs torchvision, which must not be installed beside a CPU build of torch: the
transforms that it uses are written out here.
"""

import argparse
import sys
import tempfile
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from accelerate.state import AcceleratorState
from PIL import Image, ImageOps
from torch import nn

from diffusers_xai import ConvNextUNet2DModel
from tests.benchmarks.harness import interleaved, print_table, ratios
from training.config import TrainingConfig
from training.data import FaceImages
from training.trainer import Trainer


# Name -> arguments of our network, width of theirs with about as many parameters, batch size, steps of a round.
EMBEDDED = {"sample_size": 32, "block_out_channels": [24, 48, 64, 112], "attention_head_dim": 16}
THESIS = {"sample_size": 64, "block_out_channels": [64, 128, 256, 512]}
SIZES = {
    "embedded checkpoint, 32 px": (EMBEDDED, 20, 32, 8),
    "thesis, 64 px": (THESIS, 80, 16, 1),
}
IMAGES = 256


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


def our_steps(model: dict, batch: int, steps: int, images: torch.Tensor, folder: Path, args) -> Callable[[], None]:
    """A function that trains so many steps with our loop."""
    config = TrainingConfig(
        model=model, scheduler={"beta_schedule": "linear"}, loss="l2", betas=(0.9, 0.99), learning_rate=1e-4,
        batch_size=batch, label_dropout=0.0, mixed_precision=args.mixed_precision, compile=args.compile,
        channels_last=True, tracker=None,
    )  # fmt: skip
    data = FaceImages(images, torch.full((len(images),), -1))
    AcceleratorState._reset_state(reset_partial_state=True)
    trainer = Trainer(config, data, folder)
    trainer.model.train()
    return lambda: [trainer.train_step() for _ in range(steps)] and None


def their_steps(
    theirs, network: nn.Module, size: int, batch: int, steps: int, folder: Path, args
) -> Callable[[], None]:
    """A function that trains so many steps with their loop."""
    AcceleratorState._reset_state(reset_partial_state=True)
    diffusion = theirs.GaussianDiffusion(
        network, image_size=size, timesteps=1000, objective="pred_noise", beta_schedule="linear"
    )
    trainer = theirs.Trainer(
        diffusion, str(folder), train_batch_size=batch, train_num_steps=0, calculate_fid=False,
        save_and_sample_every=10**9, results_folder=str(folder.parent / "results"),
        amp=args.mixed_precision != "no", mixed_precision_type=args.mixed_precision,
    )  # fmt: skip

    def run():
        trainer.train_num_steps += steps
        trainer.train()

    return run


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--theirs", type=Path, help="folder that their package was installed to")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--mixed-precision", default="no", choices=("no", "fp16", "bf16"))
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    if args.theirs is None:
        print("bench_training: left out, for it needs `--theirs`; see the top of the file")
        return
    theirs = import_theirs(args.theirs)
    rows = []
    for name, (model, width, batch, steps) in SIZES.items():
        size = model["sample_size"]
        images = torch.randint(0, 256, (IMAGES, 3, size, size), dtype=torch.uint8)
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "images"
            folder.mkdir()
            for i, image in enumerate(images):
                Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{i}.jpg")
            network = ConvNextUNet2DModel(**model)
            own = theirs.Unet(dim=width, dim_mults=(1, 2, 4, 8), flash_attn=False)
            counts = [sum(p.numel() for p in n.parameters()) / 1e6 for n in (network, own)]
            variants = {
                "diffusers_xai": our_steps(model, batch, steps, images, Path(temporary), args),
                "their loop, our network": their_steps(
                    theirs, TheirInterface(network), size, batch, steps, folder, args
                ),
                "their loop, their U-Net": their_steps(theirs, own, size, batch, steps, folder, args),
            }
            for run in variants.values():
                run()  # warm-up
            times = interleaved(variants, args.rounds)
        against = {key: ratios(times, "diffusers_xai")[key] for key in list(variants)[1:]}
        for variant, (low, median, high) in against.items():
            rate = batch * steps / sorted(times["diffusers_xai"])[args.rounds // 2]
            network_size = counts[0] if "our" in variant else counts[1]
            rows.append(
                (name, variant, f"{network_size:.1f} M", f"{rate:.1f}", f"{median:.2f} ({low:.2f}–{high:.2f})")
            )
    header = ("network", "beside", "parameters there", "our images/s", "our speed / theirs")
    print_table("Training: images per second", header, rows)


if __name__ == "__main__":
    main()
