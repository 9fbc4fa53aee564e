"""What a channel is replaced by: given values, or what another run recorded."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from diffusers_xai.profile import DiffusionProfile
from diffusers_xai.recording.clock import Run


CONSTANTS = ("zero", "mean")
_MAX_LISTED = 64


def replacement_tensor(replace: Any) -> Any:
    """`replace` checked, arrays as tensors of their own.

    Raises:
        ValueError: for an unknown name or values of more than three dims.
        TypeError: for anything else than a name, an array or a profile.
    """
    if isinstance(replace, DiffusionProfile):
        return replace
    if isinstance(replace, str):
        if replace not in CONSTANTS:
            raise ValueError(f"Expected `replace` in {CONSTANTS}, a tensor or a profile, got {replace!r}.")
        return replace
    if not isinstance(replace, (torch.Tensor, np.ndarray)):
        raise TypeError(f"Expected `replace` in {CONSTANTS}, a tensor or a profile, got {type(replace).__name__}.")
    tensor = torch.as_tensor(replace).detach().clone()
    if tensor.ndim > 3:
        raise ValueError(
            f"Expected `replace` to broadcast to (channels, height, width), got shape {tuple(tensor.shape)}."
        )
    return tensor


def describe_replacement(replace: Any) -> Any:
    """`replace` as short JSON-able data: few values in full, many by their hash, a profile by its run."""
    if isinstance(replace, DiffusionProfile):
        keys = ("created", "class_labels", "seeds", "num_inference_steps")
        return {"type": "DiffusionProfile", **{key: replace.provenance.get(key) for key in keys}}
    if not isinstance(replace, torch.Tensor):
        return replace
    values = replace.cpu()
    description = {"shape": list(values.shape), "dtype": str(values.dtype).removeprefix("torch.")}
    if values.numel() <= _MAX_LISTED:
        return {**description, "values": values.tolist()}
    return {**description, "sha256": hashlib.sha256(values.double().numpy().tobytes()).hexdigest()}


class ProfileReplacement:
    """A layer's recorded activations, found again by step, guidance branch and image.

    Args:
        profile (`DiffusionProfile`): Another run.
        path (`str`): The layer's module path.

    Raises:
        KeyError: if the profile does not have the layer.
    """

    def __init__(self, profile: DiffusionProfile, path: str):
        self._path = path
        self._record = profile[f"activations/{path}"]

    def check(self, steps: frozenset[int], run: Run) -> None:
        """Refuses a profile that does not have the steps, or was made of other timesteps or numbers of images.

        Raises:
            ValueError: with what is recorded.
        """
        recorded = self._record["step"].values.tolist()
        missing = sorted(steps - set(recorded))
        if missing:
            raise ValueError(
                f"Expected a profile `replace` with {self._path} at steps {_shorten(missing)}; available:"
                f" {_shorten(recorded)}. Record these steps, or choose `steps` among the recorded ones."
            )
        for step in sorted(steps):
            timestep = float(self._record["timestep"].sel(step=step))
            if not np.isclose(timestep, run.timesteps[step]):
                raise ValueError(
                    f"Expected a profile `replace` of this run's timesteps, got t={timestep:g} at step {step}, where"
                    f" this run has t={run.timesteps[step]:g}."
                )
        samples = self._record.sizes["sample"]
        if samples not in (1, run.num_samples):
            raise ValueError(f"Expected a profile `replace` of 1 or {run.num_samples} images, got {samples}.")

    def values(self, step: int, origins: Sequence[tuple[str, int]], shape: tuple[int, ...]) -> torch.Tensor:
        """What was recorded at `step` for (guidance branch, image) pairs: (pair, *shape).

        Raises:
            ValueError: if the recorded layer has another shape.
        """
        branches = self._record["branch"].values.tolist() if "branch" in self._record.dims else None
        state = self._record.sel(step=step).values
        recorded = state.shape[1:] if branches is None else state.shape[2:]
        if recorded != shape:
            raise ValueError(
                f"Expected a profile `replace` with {self._path} of shape {shape} (channel, …), got {recorded}."
            )
        picked = []
        for branch, sample in origins:
            image = state[min(sample, len(state) - 1)]
            picked.append(image if branches is None else image[branches.index(branch)])
        return torch.from_numpy(np.stack(picked))


def _shorten(values: Sequence[int]) -> str:
    return ", ".join(map(str, values[:8])) + (f", … ({len(values)} in all)" if len(values) > 8 else "")
