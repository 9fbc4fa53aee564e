"""Whether samples are different faces, and not those of the training."""

from collections.abc import Callable

import torch

from training.data import FaceImages


def nearest_distances(images: torch.Tensor, others: torch.Tensor | None = None) -> torch.Tensor:
    """Root mean square difference of each image to the nearest of `others`, or of the rest of `images`.

    Args:
        images (`torch.Tensor` of shape `(image, …)`): Float.
        others (`torch.Tensor` of shape `(other, …)`, *optional*): Float.

    Returns:
        `torch.Tensor` of shape `(image,)`.
    """
    flat = images.flatten(1)
    distances = torch.cdist(
        flat, flat if others is None else others.flatten(1), compute_mode="donot_use_mm_for_euclid_dist"
    )
    if others is None:
        distances.fill_diagonal_(float("inf"))
    return distances.amin(1) / flat.shape[1] ** 0.5


def _nearest_training_distances(images: torch.Tensor, train: FaceImages) -> torch.Tensor:
    """Distances to the nearest training image, mirrored or not; the images come to the device in parts."""
    nearest = torch.full((len(images),), float("inf"), device=images.device)
    for part in train.images.split(1024):
        known = part.to(images.device).float() / 127.5 - 1
        for turned in (images, images.flip(-1)):
            nearest = torch.minimum(nearest, nearest_distances(turned, known))
    return nearest


@torch.no_grad()
def diversity(
    samples: torch.Tensor,
    real: torch.Tensor,
    train: FaceImages,
    features: Callable[[torch.Tensor], torch.Tensor],
    device: torch.device | str = "cpu",
) -> dict[str, dict[str, float]]:
    """Compares distances between samples with those between as many photographs.

    Args:
        samples (`torch.Tensor` of shape `(image, 3, height, width)`): In [-1, 1].
        real (`torch.Tensor` of the same shape): Photographs of people that the network has not seen, same labels.
        train (`FaceImages`): The training images.
        features (`Callable`): Maps images on the device to vectors in which faces are told apart better than in
            pixels.
        device (`torch.device` or `str`): Where it is computed.

    Returns:
        `dict`: `{"samples": …, "photographs": …}`, each with the median and the minimum over its images of
        `other_pixels` and `other_features` (to the nearest other image of the set) and `train_pixels` (to the nearest
        training image, mirrored or not). Distances of samples far below those of photographs mean that samples repeat
        each other, or the training images.
    """
    table = {}
    for name, images in (("samples", samples.to(device)), ("photographs", real.to(device))):
        measured = {
            "other_pixels": nearest_distances(images),
            "other_features": nearest_distances(features(images)),
            "train_pixels": _nearest_training_distances(images, train),
        }
        table[name] = {
            f"{what}_{how}": float(value)
            for what, values in measured.items()
            for how, value in (("median", values.median()), ("minimum", values.amin()))
        }
    return table
