"""Whether generated faces show the attributes that were asked for."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import torch

from training.attribute_classifier import AttributeClassifier, label_bits
from training.data import FaceImages


@dataclass(frozen=True)
class Share:
    """How many of how many, with the Wilson score interval of the share.

    Source: Wilson 1927, *Probable inference, the law of succession, and statistical inference*.
    """

    hits: int
    count: int

    @property
    def value(self) -> float:
        """The share in [0, 1]; NaN of none."""
        return self.hits / self.count if self.count else math.nan

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Lower and upper limit of the share."""
        if not self.count:
            return math.nan, math.nan
        z = NormalDist().inv_cdf(0.5 + confidence / 2)
        n, p = self.count, self.value
        centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)

    def to_dict(self) -> dict[str, float | int]:
        """As JSON-able data."""
        low, high = self.interval()
        return {"hits": self.hits, "count": self.count, "share": self.value, "low": low, "high": high}


def label_fidelity(classifier: AttributeClassifier, images: torch.Tensor, labels: torch.Tensor) -> dict:
    """Compares what the classifier sees in images with their labels.

    Args:
        classifier (`AttributeClassifier`): The judge.
        images (`torch.Tensor` of shape `(image, 3, height, width)`): In [-1, 1].
        labels (`torch.Tensor` of shape `(image,)`, int64): What was asked for.

    Returns:
        `dict`: `"attributes"`: for each attribute the `Share` of images in which it comes out as asked, and its
        `"balanced"` value, the mean of the shares where it was and was not asked for, which a judge or a model that
        always gives the same answer cannot raise above 0.5; `"labels"`: for each label the share of images in which
        all attributes come out as asked.
    """
    asked = label_bits(labels, len(classifier.attributes))
    right = classifier.predict(images) == asked
    attributes = {}
    for i, name in enumerate(classifier.attributes):
        parts = [_share(right[asked[:, i] == present, i]) for present in (True, False)]
        known = [part.value for part in parts if part.count]
        attributes[name] = {
            "as_asked": _share(right[:, i]).to_dict(),
            "where_present": parts[0].to_dict(),
            "where_absent": parts[1].to_dict(),
            "balanced": sum(known) / len(known),
        }
    return {
        "attributes": attributes,
        "labels": {int(label): _share(right[labels == label].all(1)).to_dict() for label in labels.unique()},
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
