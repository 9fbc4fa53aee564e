"""Whether generated faces show the attributes that were asked for."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from diffusers_xai.analysis import share_interval
from training.attribute_classifier import label_bits
from training.data import FaceImages


@dataclass(frozen=True)
class Share:
    """How many of how many, with the exact (Clopper–Pearson) interval of the share."""

    hits: int
    count: int

    @property
    def value(self) -> float:
        """The share in [0, 1]; NaN of none."""
        return self.hits / self.count if self.count else math.nan

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Lower and upper limit of the share."""
        return share_interval(self.hits, self.count, confidence=confidence) if self.count else (math.nan, math.nan)

    def to_dict(self) -> dict[str, float | int]:
        """As JSON-able data."""
        low, high = self.interval()
        return {"hits": self.hits, "count": self.count, "share": self.value, "low": low, "high": high}


def balanced_share(present: Share, absent: Share) -> dict[str, float]:
    """The mean of two shares with its 95 % interval: `"share"`, `"low"` and `"high"`; of one, if the other is of none.

    Whoever always gives the same answer has 0.5.

    Source: Zou and Donner 2008 (method of variance estimates recovery), from the two exact intervals.
    """
    known = [part for part in (present, absent) if part.count]
    mean = sum(part.value for part in known) / len(known)
    down = math.hypot(*(part.value - part.interval()[0] for part in known)) / len(known)
    up = math.hypot(*(part.interval()[1] - part.value for part in known)) / len(known)
    return {"share": mean, "low": mean - down, "high": mean + up}


def label_fidelity(
    seen: torch.Tensor, judged: Sequence[str], labels: torch.Tensor, attributes: Sequence[str]
) -> dict[str, dict]:
    """Compares what a judge sees in images with their labels.

    Args:
        seen (`torch.Tensor` of shape `(image, judged)`, bool): What the judge sees.
        judged (`Sequence[str]`): The attributes that it judges.
        labels (`torch.Tensor` of shape `(image,)`, int64): What was asked for.
        attributes (`Sequence[str]`): Those that make up a label, most significant bit first.

    Returns:
        `dict`: `"attributes"`: for each attribute that is judged the `Share` of images in which it comes out as
        asked, the same where it was and where it was not asked for, and the `"balanced"` share, the mean of these
        two, which a judge or a model that always gives the same answer cannot raise above 0.5. `"labels"`, if all are
        judged: for each label the share of images in which all attributes come out as asked.
    """
    places = [i for i, name in enumerate(attributes) if name in judged]
    asked = label_bits(labels, len(attributes))[:, places]
    right = seen[:, [list(judged).index(attributes[i]) for i in places]] == asked
    found = {}
    for column, i in enumerate(places):
        present, absent = (_share(right[asked[:, column] == wanted, column]) for wanted in (True, False))
        found[attributes[i]] = {
            "as_asked": _share(right[:, column]).to_dict(),
            "where_present": present.to_dict(),
            "where_absent": absent.to_dict(),
            "balanced": balanced_share(present, absent),
        }
    whole = len(places) == len(attributes)
    return {
        "attributes": found,
        "labels": {int(y): _share(right[labels == y].all(1)).to_dict() for y in labels.unique()} if whole else {},
    }


def balanced_rows(labels: torch.Tensor, wanted: Sequence[int], per_label: int) -> torch.Tensor:
    """Row numbers of up to `per_label` images of each wanted label, for measuring real images as generated ones."""
    return torch.cat([(labels == label).nonzero().flatten()[:per_label] for label in wanted])


def trainable_labels(train: FaceImages, least: int) -> list[int]:
    """Labels with at least `least` training images."""
    values, counts = train.labels.unique(return_counts=True)
    return [int(value) for value, count in zip(values, counts, strict=True) if count >= least]


def _share(right: torch.Tensor) -> Share:
    return Share(int(right.sum()), right.numel())
