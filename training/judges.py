"""Judges of generated faces, and photographs that are made as soft as what they judge.

A judge gives each image a number per attribute, the higher the more of it. A threshold makes it a decision; it is
calibrated on photographs, so that those with and those without an attribute are told alike.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from training.attribute_classifier import (
    AttributeClassifier,
    filtered,
    frequencies,
    label_bits,
    train_classifier,
)
from training.data import FaceImages
from training.human_models import GraphModel


FORMAT_VERSION = 2
WEIGHTS_FILE, CONFIG_FILE = "judge.safetensors", "judge.json"
FOLDS, STEPS = 4, 400


class Judge(Protocol):
    """Scores attributes; `parts` tells, for a photograph, which part of the judge has not seen that person."""

    name: str
    attributes: tuple[str, ...]

    def scores(self, images: torch.Tensor, parts: torch.Tensor) -> torch.Tensor:
        """Scores (image, attribute) of images (image, 3, height, width) in [-1, 1], on the CPU."""
        ...


class HeldOutJudge:
    """Classifiers trained on people that the generator has never seen, each without a part of them.

    The photographs that the generator's training held out are split by person. Each classifier learns from all parts
    but one, and judges the photographs of that one: so the judge's ceiling is measured on people that are new to it.
    Generated images are shared among the classifiers in turn. An image is judged together with its mirror image, by
    the mean of the two, which raises the ceiling by one to three percent.

    Args:
        members (`Sequence[AttributeClassifier]`): One per part.
        attributes (`Sequence[str]`): Their logits' names.
        data (`FaceImages`): The photographs that they were trained on.
    """

    name = "held-out people"

    def __init__(self, members: Sequence[AttributeClassifier], attributes: Sequence[str], data: FaceImages):
        self.members, self.attributes, self.data = list(members), tuple(attributes), data

    @classmethod
    def train(
        cls,
        data: FaceImages,
        attributes: Sequence[str],
        *,
        folds: int = FOLDS,
        steps: int = STEPS,
        device: torch.device | str = "cpu",
    ) -> "HeldOutJudge":
        """Trains `folds` classifiers on the images of `data`, which the generator must not have seen."""
        parts, truth = person_parts(data, folds), label_bits(data.labels, len(attributes))
        members = []
        for part in range(folds):
            rows = parts != part
            members.append(
                train_classifier(data.images[rows], truth[rows], attributes, steps=steps, seed=part, device=device)
            )
        return cls(members, attributes, data)

    @torch.no_grad()
    def scores(self, images: torch.Tensor, parts: torch.Tensor) -> torch.Tensor:
        """Logits (image, attribute); image i is judged by the classifier that left out part `parts[i]`.

        They are the mean of those of the image and of its mirror image.
        """
        found = torch.empty(len(images), len(self.attributes))
        for part, member in enumerate(self.members):
            rows = (parts == part).nonzero().flatten()
            for chosen in rows.split(256):
                shown = images[chosen].to(member.head.weight.device)
                found[chosen] = ((member(shown) + member(shown.flip(-1))) / 2).cpu()
        return found

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Images (image, 3, height, width) in [-1, 1] as vectors of what the first classifier looks at."""
        return self.members[0].features(images)

    def to(self, device: torch.device | str) -> "HeldOutJudge":
        """Moves the classifiers."""
        for member in self.members:
            member.to(device)
        return self

    def save(self, folder: Path) -> None:
        """Writes the weights, and beside them what they are of."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {
            f"{i}.{name}": t.cpu().contiguous()
            for i, m in enumerate(self.members)
            for name, t in m.state_dict().items()
        }
        save_file(tensors, folder / WEIGHTS_FILE)
        facts = {"attributes": self.attributes, "photographs": self.data.fingerprint, "members": len(self.members)}
        text = json.dumps({"format_version": FORMAT_VERSION, **facts}, indent=1)
        (folder / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, attributes: Sequence[str], data: FaceImages) -> "HeldOutJudge":
        """Reads what `save` wrote, for the photographs that it was trained on.

        Raises:
            FileNotFoundError: If there is none in the folder.
            ValueError: If it is of another format version, other attributes or other photographs.
        """
        facts = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        got = [facts.get(name) for name in ("format_version", "attributes", "photographs")]
        expected = [FORMAT_VERSION, list(attributes), data.fingerprint]
        if got != expected:
            raise ValueError(f"the judge in {str(folder)!r} is of {got}, expected {expected}: choose another --judge")
        tensors = load_file(folder / WEIGHTS_FILE)
        members = []
        for i in range(facts["members"]):
            member = AttributeClassifier(len(attributes), data.images.shape[-1])
            member.load_state_dict({k.partition(".")[2]: t for k, t in tensors.items() if k.startswith(f"{i}.")})
            members.append(member.eval())
        return cls(members, attributes, data)


class OutsideJudge:
    """Networks that saw none of our data: `faceres` for Male, `emotion` for Smiling, of npm's human-models.

    Args:
        folder (`Path`): The package's folder `models`.

    Raises:
        OSError: If a file is missing.
        ValueError: If one is no graph model.
    """

    name = "human-models"
    attributes = ("Male", "Smiling")

    def __init__(self, folder: Path):
        self.gender, self.emotion = GraphModel(folder / "faceres.json"), GraphModel(folder / "emotion.json")

    def scores(self, images: torch.Tensor, parts: torch.Tensor) -> torch.Tensor:
        """Log-odds (image, 2) of male, and of happy among seven emotions."""
        male, happy = [], []
        for part in images.float().split(16):
            pixels = (part.clamp(-1, 1) + 1) / 2
            male.append(self.gender(255 * _enlarged(pixels, self.gender.size), "gender_pred/Sigmoid")[:, 0])
            grey = (_enlarged(pixels, self.emotion.size) @ torch.tensor([[0.299], [0.587], [0.114]])) * 2 - 1
            happy.append(self.emotion(grey, "Identity")[:, 3])
        shares = torch.stack([torch.cat(male), torch.cat(happy)], dim=1).double()
        return shares.clamp(1e-9, 1 - 1e-9).logit().float()


def _enlarged(images: torch.Tensor, size: int) -> torch.Tensor:
    """(image, 3, height, width) -> (image, size, size, 3) in [0, 1]."""
    larger = F.interpolate(images, size=(size, size), mode="bicubic", antialias=True, align_corners=False)
    return larger.clamp(0, 1).permute(0, 2, 3, 1)


def person_parts(data: FaceImages, count: int, seed: int = 0) -> torch.Tensor:
    """A part in 0 .. count - 1 of each row, the same for all rows of a person; of each row, if no person is known."""
    people = data.people or [str(row) for row in range(len(data))]
    names = sorted(set(people))
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)).tolist()
    part_of = {name: order[i] % count for i, name in enumerate(names)}
    return torch.tensor([part_of[person] for person in people])


def thresholds(scores: torch.Tensor, truth: torch.Tensor, parts: torch.Tensor) -> torch.Tensor:
    """A threshold per part and attribute, (part, attribute), at which an attribute is missed as often as seen wrongly.

    That of a part comes from the photographs of all others, so that it is not fitted to those it decides on.

    Args:
        scores (`torch.Tensor` of shape `(image, attribute)`): Of photographs.
        truth (`torch.Tensor` of that shape, bool): What they show.
        parts (`torch.Tensor` of shape `(image,)`): 0 .. count - 1.
    """
    return torch.stack(
        [
            torch.stack([_equal_error(scores[parts != p, i], truth[parts != p, i]) for i in range(scores.shape[1])])
            for p in range(int(parts.max()) + 1)
        ]
    )


def _equal_error(scores: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Where as large a share of the scores with the attribute lies below as of those without it lies above."""
    if not truth.any() or truth.all():
        return torch.tensor(0.0)
    values = scores.sort().values
    between = (values[1:] + values[:-1]) / 2
    missed = (scores[truth][:, None] <= between).float().mean(0)
    wrong = (scores[~truth][:, None] > between).float().mean(0)
    return between[(missed - wrong).abs().argmin()]


def softened(photographs: torch.Tensor, samples: torch.Tensor) -> torch.Tensor:
    """Photographs with as little fine detail as samples have on average.

    Each frequency of the photographs is lowered by the ratio of the samples' mean power to theirs, where that is below
    1: nothing is sharpened, no image is looked at by itself, no label is used.

    Args:
        photographs (`torch.Tensor` of shape `(image, 3, size, size)`): In [-1, 1].
        samples (`torch.Tensor` of shape `(sample, 3, size, size)`): In [-1, 1].
    """
    size = photographs.shape[-1]
    rings = (frequencies(size) * size).round().long()  # of equal frequency, a cycle per image apart
    count = int(rings.max()) + 1
    window = torch.hann_window(size, periodic=False)  # the jump between opposite edges is no detail

    def power(images: torch.Tensor) -> torch.Tensor:
        spectrum = torch.fft.rfft2((images - images.mean((2, 3), keepdim=True)) * window[:, None] * window)
        mean = spectrum.abs().square().mean((0, 1)).flatten()
        total = torch.zeros(count).index_add(0, rings.flatten(), mean)
        return total / torch.bincount(rings.flatten(), minlength=count).clamp(min=1)

    gains = (power(samples) / power(photographs).clamp(min=1e-12)).sqrt().clamp(max=1)
    gains[0] = 1

    def gain(frequency: torch.Tensor) -> torch.Tensor:
        place = (frequency * size).clamp(max=count - 1)
        low = place.floor().long()
        return torch.lerp(gains[low], gains[(low + 1).clamp(max=count - 1)], place - low)

    return filtered(photographs, gain).clamp(-1, 1)


def decided(scores: torch.Tensor, limits: torch.Tensor, parts: torch.Tensor) -> torch.Tensor:
    """Which attributes are seen: scores (image, attribute) above the thresholds of the images' parts, bool."""
    return scores > limits[parts]
