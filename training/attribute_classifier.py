"""A small classifier of the attributes that looks through noise, blur and compression."""

import io
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from tqdm.auto import tqdm

from training.batches import step_generator


def label_bits(labels: torch.Tensor, count: int) -> torch.Tensor:
    """Labels as bits, most significant first: (row,) integers -> (row, count) bool."""
    return (labels[:, None] >> torch.arange(count - 1, -1, -1)) & 1 == 1


class AttributeClassifier(nn.Module):
    """Residual convolutions at three resolutions, an average over the image, one logit per attribute.

    Args:
        num_attributes (`int`): Logits.
        sample_size (`int`): Height and width of the images.
        width (`int`): Channels of the first resolution; they double twice.
    """

    def __init__(self, num_attributes: int, sample_size: int, width: int = 16):
        super().__init__()
        widths = (width, 2 * width, 4 * width)
        self.stem = nn.Conv2d(3, width, 3, padding=1, stride=1 if sample_size <= 32 else 2)
        self.down = nn.ModuleList(
            [nn.Conv2d(a, b, 3, padding=1, stride=2) for a, b in zip((width, *widths), widths, strict=False)]
        )
        self.blocks = nn.ModuleList([_Residual(width) for width in widths])
        self.norm = nn.BatchNorm2d(widths[-1])
        self.head = nn.Linear(widths[-1], num_attributes)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """What the decision is made from: images (batch, 3, height, width) in [-1, 1] -> (batch, channel)."""
        hidden = self.stem(images)
        for down, block in zip(self.down, self.blocks, strict=True):
            hidden = block(down(hidden))
        return F.relu(self.norm(hidden)).mean(dim=(2, 3))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (batch, attribute) of images (batch, 3, height, width) in [-1, 1]."""
        return self.head(F.dropout(self.features(images), 0.3, self.training))


class _Residual(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1, bias=False),
        )  # fmt: skip

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden + self.layers(hidden)


def train_classifier(
    images: torch.Tensor,
    truth: torch.Tensor,
    attributes: Sequence[str],
    *,
    steps: int,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> AttributeClassifier:
    """Trains a classifier on photographs that are moved, turned, coloured, blurred, compressed and made noisy.

    Of each attribute, the images with and those without it weigh alike in the loss, so that a decision does not lean
    towards the more frequent answer.

    Args:
        images (`torch.Tensor` of shape `(image, 3, height, width)`): uint8.
        truth (`torch.Tensor` of shape `(image, attribute)`, bool): Which attributes they show.
        attributes (`Sequence[str]`): Their names.
        steps (`int`): Batches of 64.
        seed (`int`): Of weights and draws.
        device (`torch.device` or `str`): Where it is trained, and stays.

    Raises:
        ValueError: If the images show an attribute always or never.
    """
    share = truth.float().mean(0)
    for name, value in zip(attributes, share.tolist(), strict=True):
        if not 0 < value < 1:
            raise ValueError(
                f"expected images with and without {name}, got {bool(value)} of all: nothing can be learnt about it"
            )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AttributeClassifier(len(attributes), images.shape[-1])
    model.to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    for step in tqdm(range(steps), desc="judge", leave=False):
        generator = step_generator(seed, step)
        rows = torch.randint(len(images), (64,), generator=generator)
        target = truth[rows].float()
        weight = torch.where(target > 0, 0.5 / share, 0.5 / (1 - share))
        logits = model(roughened(images[rows], generator).to(device))
        loss = F.binary_cross_entropy_with_logits(logits, target.to(device), weight=weight.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def roughened(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Photographs as a generated picture might show them: uint8 (image, 3, size, size) -> float in [-1, 1].

    Each is mirrored or not, turned by up to 10 degrees, moved and scaled by up to a tenth, changed in brightness,
    contrast and colour; half of them are blurred (a Gaussian of up to 1/20 of the size), half made noisy (up to 0.2),
    a third is compressed as JPEG of quality 15 to 90.
    """
    count, size = len(images), images.shape[-1]

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=generator)

    compressed = torch.rand(count, generator=generator) < 1 / 3
    quality = uniform(15, 90)
    x = torch.stack(
        [_as_jpeg(image, int(q)) if bad else image for image, bad, q in zip(images, compressed, quality, strict=True)]
    )
    x = x.float() / 127.5 - 1
    angle, scale, flip = uniform(-0.17, 0.17), uniform(0.9, 1.1), 1 - 2 * (uniform(0, 1) < 0.5).float()
    cos, sin = scale * angle.cos(), scale * angle.sin()
    matrix = torch.stack([flip * cos, -sin, uniform(-0.1, 0.1), flip * sin, cos, uniform(-0.1, 0.1)], dim=1)
    grid = F.affine_grid(matrix.reshape(count, 2, 3), list(x.shape), align_corners=False)
    x = F.grid_sample(x, grid, padding_mode="border", align_corners=False)
    x = x * uniform(0.7, 1.3, 1, 1, 1) + uniform(-0.2, 0.2, 1, 1, 1) + uniform(-0.1, 0.1, 3, 1, 1)
    sigma = uniform(0, size / 20, 1, 1, 1) * (uniform(0, 1, 1, 1, 1) < 0.5)
    x = filtered(x, lambda frequency: torch.exp(-2 * (torch.pi * sigma * frequency) ** 2))
    noise = torch.randn(x.shape, generator=generator)
    return (x + noise * (uniform(0, 0.2) * (uniform(0, 1) < 0.5))[:, None, None, None]).clamp(-1, 1)


def filtered(images: torch.Tensor, gain: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Images (image, channel, size, size) with each frequency times its gain; beyond their edges they are mirrored.

    `gain` gets the frequencies in cycles per pixel, a matrix, and gives factors that broadcast with the images'
    spectra.
    """
    size, edge = images.shape[-1], images.shape[-1] // 2
    spectrum = torch.fft.rfft2(F.pad(images, (edge,) * 4, mode="reflect")) * gain(frequencies(size + 2 * edge))
    return torch.fft.irfft2(spectrum, s=(size + 2 * edge,) * 2)[..., edge : edge + size, edge : edge + size]


def frequencies(size: int) -> torch.Tensor:
    """Cycles per pixel of the coefficients of a real Fourier transform, (size, size // 2 + 1)."""
    return torch.hypot(torch.fft.fftfreq(size)[:, None], torch.fft.rfftfreq(size)[None])


def _as_jpeg(image: torch.Tensor, quality: int) -> torch.Tensor:
    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(buffer, "JPEG", quality=quality)
    return torch.from_numpy(np.array(Image.open(buffer))).permute(2, 0, 1)
