"""Distance of activations."""

from typing import Literal

import torch

from diffusers_xai.measures.precision import to_float64


def layer_distance(a: torch.Tensor, b: torch.Tensor, *, normalize: Literal["minmax"] | None = None) -> torch.Tensor:
    """Frobenius norm of the difference of each pair of activations (LayerDist).

    Source: thesis eq. 4.1.10.

    Args:
        a (`torch.Tensor` of shape `(batch, ...)`):
            First activations, usually `(batch, channel, height, width)`, of any real dtype.
        b (`torch.Tensor` of shape `(batch, ...)`):
            Second activations, of the shape and on the device of `a`.
        normalize (`"minmax"`, *optional*):
            `None` compares the values as they are. `"minmax"` first scales every sample of `a` and of `b` by itself to
            [0, 1] (a constant sample becomes 0), which makes layers of different magnitude comparable.

    Returns:
        `torch.Tensor` of shape `(batch,)` and dtype float64: values in [0, inf), in the activations' unit.

    Raises:
        ValueError: If the shapes differ or have no axis after the batch, or `normalize` is unknown.
    """
    if a.shape != b.shape or a.ndim < 2:
        raise ValueError(f"Expected two tensors of one shape (batch, ...), got {tuple(a.shape)} and {tuple(b.shape)}.")
    a, b = to_float64(a).flatten(1), to_float64(b).flatten(1)
    if normalize == "minmax":
        a, b = _scale_to_unit(a), _scale_to_unit(b)
    elif normalize is not None:
        raise ValueError(f'Expected normalize to be None or "minmax", got {normalize!r}.')
    return torch.linalg.vector_norm(a - b, dim=1)


def _scale_to_unit(rows: torch.Tensor) -> torch.Tensor:
    """Each row of (batch, n) scaled linearly to [0, 1]; constant rows become 0."""
    low, high = rows.aminmax(dim=1, keepdim=True)
    span = high - low
    return (rows - low) / torch.where(span == 0, 1.0, span)
