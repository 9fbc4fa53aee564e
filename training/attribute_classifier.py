"""A small classifier of the attributes, for measuring whether generated faces show what was asked for."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn
from tqdm.auto import tqdm

from training.batches import step_generator
from training.data import FaceImages


WEIGHTS_FILE, CONFIG_FILE = "attribute_classifier.safetensors", "attribute_classifier.json"
FORMAT_VERSION = 1


def label_bits(labels: torch.Tensor, count: int) -> torch.Tensor:
    """Labels as bits, most significant first: (row,) integers -> (row, count) bool."""
    return (labels[:, None] >> torch.arange(count - 1, -1, -1)) & 1 == 1


class AttributeClassifier(nn.Module):
    """Residual convolutions at three resolutions, an average over the image, one logit per attribute.

    Args:
        attributes (`Sequence[str]`): Names, most significant bit of the label first.
        sample_size (`int`): Height and width of the images.
        width (`int`): Channels of the first resolution; they double twice.
    """

    def __init__(self, attributes: Sequence[str], sample_size: int, width: int = 24):
        super().__init__()
        self.config = {"attributes": list(attributes), "sample_size": sample_size, "width": width}
        self.attributes = tuple(attributes)
        widths = (width, 2 * width, 4 * width)
        self.stem = nn.Conv2d(3, width, 3, padding=1, stride=1 if sample_size <= 32 else 2)
        self.down = nn.ModuleList(
            [nn.Conv2d(a, b, 3, padding=1, stride=2) for a, b in zip((width, *widths), widths, strict=False)]
        )
        self.blocks = nn.ModuleList([_Residual(width) for width in widths])
        self.norm = nn.BatchNorm2d(widths[-1])
        self.head = nn.Linear(widths[-1], len(attributes))

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """What the decision is made from: images (batch, 3, height, width) in [-1, 1] -> (batch, channel)."""
        hidden = self.stem(images)
        for down, block in zip(self.down, self.blocks, strict=True):
            hidden = block(down(hidden))
        return F.relu(self.norm(hidden)).mean(dim=(2, 3))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (batch, attribute) of images (batch, 3, height, width) in [-1, 1]; above 0 means present."""
        return self.head(F.dropout(self.features(images), 0.2, self.training))

    @torch.no_grad()
    def predict(self, images: torch.Tensor, batch_size: int = 256) -> torch.Tensor:
        """Which attributes the images show, bool of shape (image, attribute), on the images' device."""
        self.eval()
        device = self.head.weight.device
        return torch.cat([self(part.to(device)) > 0 for part in images.split(batch_size)]).to(images.device)

    def save(self, folder: Path, facts: dict) -> None:
        """Writes the weights and, beside them, how they were made and measured."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.state_dict(), folder / WEIGHTS_FILE)
        text = json.dumps({"format_version": FORMAT_VERSION, "model": self.config, **facts}, indent=1)
        (folder / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> tuple["AttributeClassifier", dict]:
        """Reads what `save` wrote: the classifier and its facts.

        Raises:
            FileNotFoundError: If there is none in the folder.
            ValueError: If it is of another format version.
        """
        facts = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        version = facts.get("format_version")
        if version != FORMAT_VERSION:
            raise ValueError(f"expected format version {FORMAT_VERSION} in {folder / CONFIG_FILE}, got {version}")
        model = cls(**facts["model"])
        model.load_state_dict(load_file(folder / WEIGHTS_FILE))
        return model.eval(), facts


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
    train: FaceImages,
    validation: FaceImages,
    attributes: Sequence[str],
    *,
    epochs: int = 12,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> tuple[AttributeClassifier, dict]:
    """Trains a classifier on `train` and measures it on `validation`.

    Of each attribute, the images with and those without it weigh alike in the loss, so that a decision does not lean
    towards the more frequent answer. Images are mirrored, moved by up to two pixels and changed in brightness.

    Returns:
        the classifier, and its facts: for each attribute the `accuracy` on the validation images, and the
        `balanced_accuracy`, the mean of the accuracies on the images with and without the attribute.

    Raises:
        ValueError: If the training images show an attribute always or never.
    """
    torch.manual_seed(seed)
    model = AttributeClassifier(attributes, train.images.shape[-1]).to(device)
    truth = label_bits(train.labels, len(attributes)).float()
    share = truth.mean(0)
    for name, value in zip(attributes, share.tolist(), strict=True):
        if not 0 < value < 1:
            raise ValueError(f"all training images have {name} = {bool(value)}: nothing can be learnt about it")
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    steps_per_epoch = -(-len(train) // 128)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=epochs * steps_per_epoch)
    bar = tqdm(total=epochs * steps_per_epoch, desc="classifier")
    for epoch in range(epochs):
        generator = step_generator(seed, epoch)
        model.train()
        for rows in torch.randperm(len(train), generator=generator).split(128):
            images = _augmented(train.images[rows].float() / 127.5 - 1, generator)
            target = truth[rows]
            weight = torch.where(target > 0, 0.5 / share, 0.5 / (1 - share))
            logits = model(images.to(device))
            loss = F.binary_cross_entropy_with_logits(logits, target.to(device), weight=weight.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            bar.update()
    bar.close()
    facts = {"epochs": epochs, "training_images": len(train), "validation_images": len(validation)}
    return model.eval(), facts | accuracies(model, validation)


def accuracies(model: AttributeClassifier, data: FaceImages) -> dict[str, dict[str, float]]:
    """`{"accuracy": {attribute: share}, "balanced_accuracy": {…}}` of the classifier on labelled images."""
    truth = label_bits(data.labels, len(model.attributes))
    right = model.predict(data.images.float() / 127.5 - 1) == truth
    facts: dict[str, dict[str, float]] = {"accuracy": {}, "balanced_accuracy": {}}
    for i, name in enumerate(model.attributes):
        parts = [right[truth[:, i] == present, i].float().mean() for present in (True, False)]
        facts["accuracy"][name] = round(float(right[:, i].float().mean()), 4)
        facts["balanced_accuracy"][name] = round(float(sum(parts) / 2), 4)
    return facts


def _augmented(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    mirrored = torch.rand(len(images), generator=generator) < 0.5
    images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
    size, shift = images.shape[-1], 2
    top, left = (int(torch.randint(2 * shift + 1, (), generator=generator)) for _ in range(2))
    images = F.pad(images, (shift,) * 4, mode="replicate")[..., top : top + size, left : left + size]
    gain = 1 + 0.2 * (torch.rand(len(images), 1, 1, 1, generator=generator) - 0.5)
    offset = 0.2 * (torch.rand(len(images), 1, 1, 1, generator=generator) - 0.5)
    return (images * gain + offset).clamp(-1, 1)
