"""Collects what the specs tap during a run and makes the profile of it."""

import datetime
import functools
import importlib.metadata
import json
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import xarray as xr

from diffusers_xai.profile import DiffusionProfile
from diffusers_xai.recording.clock import Run
from diffusers_xai.recording.spec import RecordSpec
from diffusers_xai.recording.stores import MemoryStore, StepArray
from diffusers_xai.taps import SchedulerStep


_LIBRARIES = ("diffusers-xai", "diffusers", "torch", "numpy", "safetensors", "xarray")


class Recording:
    """What has been recorded of one run.

    Args:
        run (`Run`): The run that is recorded.
        specs (sequence of `RecordSpec`): What is recorded.
        pipeline (`DiffusionPipeline`): Whose run it is.
        edits (sequence of `EditSpec`): What is changed.
        store (`MemoryStore`): Where the arrays go.

    Attributes:
        run: The run that is recorded.
        profile (`DiffusionProfile` or `None`): The profile, when the recording has ended; of the steps done, marked
            `complete: false`, when it was interrupted.
    """

    def __init__(self, run: Run, specs: Sequence[RecordSpec], pipeline: Any, edits: Sequence[Any], store: MemoryStore):
        self.run = run
        self.specs = list(specs)
        self.profile: DiffusionProfile | None = None
        self._pipeline = pipeline
        self._edits = edits
        self._store = store
        self._selected: dict[int, frozenset[int]] = {}
        self._expected: dict[int, set[str]] = {id(spec): set() for spec in self.specs}
        self._pending: dict[tuple[str, int], list[torch.Tensor]] = {}
        self._dims: dict[str, tuple[str, ...]] = {}
        self._coords: dict[str, dict[str, Any]] = {}
        self._provenance: dict[str, Any] = {}
        run.on_start(self._select)

    def describe(self, **provenance: Any) -> None:
        """Adds JSON-able entries to the profile's provenance, e.g. `class_labels=[3]`."""
        self._provenance.update(provenance)

    def is_selected(self, spec: RecordSpec) -> bool:
        """Whether `spec` records what happens now."""
        return not self.run.is_replaying and self.run.step in self._selected[id(spec)]

    @property
    def guidance_scale(self) -> float | None:
        """How the pipeline combines guidance branches, if it said so."""
        return self._provenance.get("guidance_scale")

    def expect(self, spec: RecordSpec, names: Iterable[str], *, exclusive: bool = False) -> None:
        """Makes it an error if `spec` yields none of these arrays at a selected step.

        Raises:
            ValueError: if `exclusive` and another spec records one of them too, maybe from another mask.
        """
        names = set(names)
        taken = names & set().union(*self._expected.values())
        if exclusive and taken:
            raise ValueError(
                f"Two {type(spec).__name__} specs would record {', '.join(sorted(taken))}: expected one per profile."
            )
        self._expected[id(spec)].update(names)

    def keep(
        self,
        spec: RecordSpec,
        name: str,
        tensor: torch.Tensor,
        dims: tuple[str, ...],
        coords: dict[str, Any] | None = None,
    ) -> None:
        """Stores a copy of `tensor` (batch, *dims) under `name` for the current step, with coordinates on its dims.

        Several tensors in one step are the batches of several denoiser calls, the guidance branches.
        """
        self._dims[name] = dims
        self._coords[name] = coords or {}
        self._pending.setdefault((name, id(spec)), []).append(_to_cpu(tensor))

    def keep_final(self, name: str, tensor: torch.Tensor, dims: tuple[str, ...]) -> None:
        """Stores a copy of `tensor` (sample, *dims) under `name`, apart from the steps."""
        self._store.add_final(name, xr.DataArray(_to_cpu(tensor).numpy(), dims=("sample", *dims)))

    def _select(self) -> None:
        train_timesteps = self.run.scheduler.config.get("num_train_timesteps", 1000)
        for spec in self.specs:
            self._selected[id(spec)] = spec.select_steps(self.run.timesteps, train_timesteps)

    def finish_step(self, step: SchedulerStep) -> None:
        """Moves what the current step yielded into the record, with guidance branches told apart."""
        index, samples = self.run.step, step.sample.shape[0]
        for spec in self.specs:
            missing = [name for name in sorted(self._expected[id(spec)]) if (name, id(spec)) not in self._pending]
            if missing and self.is_selected(spec):
                raise RuntimeError(
                    f"{type(spec).__name__}: {', '.join(missing)} yielded nothing at step {index}: the layer did not"
                    " run in this network's forward pass, or not in the way that is recorded."
                )
        arrays = {name: self._step_array(name, tensors, samples) for (name, _), tensors in self._pending.items()}
        self._pending.clear()
        self._store.add_step(index, self.run.timestep, self.run.sigma, arrays, self._describe_run)

    def finish(self) -> None:
        """Makes `profile` of what has been recorded so far."""
        self.profile = self._store.finish(self._describe_run())

    def _step_array(self, name: str, tensors: list[torch.Tensor], samples: int) -> StepArray:
        values = _split_branches(name, tensors[0] if len(tensors) == 1 else torch.cat(tensors), samples).numpy()
        if values.ndim == 1 + len(self._dims[name]):
            return StepArray(values, ("sample", *self._dims[name]), self._coords[name])
        coords = {**self._coords[name], "branch": list(self.run.denoiser.branches)}
        return StepArray(values, ("sample", "branch", *self._dims[name]), coords)

    def _describe_run(self) -> dict[str, Any]:
        run, pipeline = self.run, self._pipeline
        recorded = {name.split("/", 1)[1] for name in self._dims if "/" in name}
        return _jsonable(
            {
                "versions": {name: _version(name) for name in _LIBRARIES},
                "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                "complete": run.is_complete,
                "pipeline": {
                    "class": type(pipeline).__name__,
                    "name_or_path": pipeline.config.get("_name_or_path"),
                },
                "model": {"class": type(run.denoiser.module).__name__, "config": dict(run.denoiser.module.config)},
                "scheduler": {"class": type(run.scheduler).__name__, "config": dict(run.scheduler.config)},
                "record": [spec.to_dict() for spec in self.specs],
                "edits": [
                    [edit.to_dict() for edit in edit_or_row]
                    if isinstance(edit_or_row, Sequence)
                    else edit_or_row.to_dict()
                    for edit_or_row in self._edits
                ],
                "layer_aliases": {k: path for k, path in run.denoiser.aliases.items() if path in recorded},
                "timesteps": run.timesteps,
                "num_inference_steps": len(run.timesteps),
                **self._provenance,
            }
        )


def _to_cpu(tensor: torch.Tensor) -> torch.Tensor:
    dtype = torch.float32 if tensor.dtype == torch.bfloat16 else tensor.dtype  # numpy has no bfloat16
    return tensor.detach().to("cpu", dtype, copy=True)


def _split_branches(name: str, batch: torch.Tensor, samples: int) -> torch.Tensor:
    """(branch · sample, …) -> (sample, branch, …); (sample, …) as it is."""
    if batch.shape[0] == samples:
        return batch
    if batch.shape[0] % samples:
        raise RuntimeError(f"{name}: expected a batch of {samples} samples or a multiple of it, got {batch.shape[0]}.")
    return batch.reshape(-1, samples, *batch.shape[1:]).transpose(0, 1).contiguous()


@functools.cache
def _version(library: str) -> str | None:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None


def _jsonable(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))
