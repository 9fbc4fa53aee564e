"""Pushes of a state and of a layer along their directions, those along which a control is pushed, what they do."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import xarray as xr

from diffusers_xai.experiments.jacobians import CLEAN, LAYER, Spectrum


INSIDE = "h itself"
WALKS = {
    CLEAN: "x<sub>t</sub>, along the directions of x̂<sub>0</sub>",
    LAYER: "x<sub>t</sub>, along the directions of h",
    "random": "x<sub>t</sub>, random directions",
    "null": "x<sub>t</sub>, along those of the control",
    INSIDE: "h, along the directions of h",
    "random h": "h, random directions",
}
IN_LAYER = (INSIDE, "random h")
SIGNS = (-1, 1)


def ways_of(
    own: Mapping[str, Sequence[Spectrum]],
    theirs: Mapping[str, Sequence[Spectrum]],
    index: int,
    walked: int,
    seed: int,
    moved: torch.Tensor | None,
) -> dict[str, list[torch.Tensor]]:
    """Of one seed, each walk's directions at each moment, `(walked, …)`: of norm 1, in h as long as they make it."""
    found: dict[str, list[torch.Tensor]] = {}
    for moment, clean in enumerate(own[CLEAN]):
        generator = torch.Generator().manual_seed(10**6 * (seed + 1) + moment)
        ways = {
            name: spectra[moment].triplets.right[index, :walked].unflatten(1, clean.shape)
            for name, spectra in ((CLEAN, own[CLEAN]), (LAYER, own.get(LAYER)), ("null", theirs.get(CLEAN)))
            if spectra is not None
        }
        weights = torch.ones(()) if moved is None else moved
        ways["random"] = _orthonormal(walked, weights.expand(clean.shape), generator)
        if LAYER in own:
            inner = own[LAYER][moment]
            sizes = inner.triplets.values[index, :walked].view(-1, *[1] * len(inner.output_shape))
            ways[INSIDE] = sizes * inner.triplets.left[index, :walked].unflatten(1, inner.output_shape)
            ways["random h"] = sizes * _orthonormal(walked, torch.ones(inner.output_shape), generator)
        for name, directions in ways.items():
            found.setdefault(name, []).append(directions.cpu())
    return found


def _orthonormal(count: int, weights: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Random orthonormal directions of the weights' shape, float64; zero where the weights are."""
    rows = torch.randn(count, weights.numel(), generator=generator, dtype=torch.float64) * weights.flatten()
    return torch.linalg.qr(rows.mT).Q.mT.unflatten(1, weights.shape)


def effects(
    images: torch.Tensor,
    counts: tuple[int, int, int],
    seen: np.ndarray | None,
    told: torch.Tensor | None,
) -> xr.Dataset:
    """What the pushes did to the image, which comes first; the others are those of (walk, step, direction, sign)."""
    intact, pushed = images[0], images[1:].unflatten(0, (*counts, len(SIGNS)))
    dims = ("walk", "step", "direction")
    squares = (pushed - intact).double().square()
    data = xr.Dataset(
        {
            "change": (dims, squares.mean((3, 4, 5, 6)).sqrt().numpy()),
            "images": ((*dims, "sign", "rgb", "height", "width"), pushed.numpy()),
            "intact": (("rgb", "height", "width"), intact.numpy()),
        }
    )
    if seen is not None:
        within = (squares * torch.from_numpy(seen)).sum((3, 4, 5, 6))
        data["inside"] = dims, (within / squares.sum((3, 4, 5, 6))).numpy()
    if told is not None:
        data["judged"] = (*dims, "sign", "attribute"), told[1:].reshape(*counts, len(SIGNS), -1).numpy()
        data["judged_intact"] = "attribute", told[0].numpy()
    return data
