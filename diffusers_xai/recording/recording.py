"""Collects what the specs tap during a run and makes the profile of it."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
import xarray as xr

from diffusers_xai.profile import DiffusionProfile
from diffusers_xai.recording.clock import Run
from diffusers_xai.recording.host_copies import HostCopies, WorkBehind
from diffusers_xai.recording.plan import PlannedArray, check_size, recorded_dtype
from diffusers_xai.recording.provenance import describe_run
from diffusers_xai.recording.steps import StepSpec
from diffusers_xai.recording.stores import MemoryStore, StepArray
from diffusers_xai.recording.text import PromptTokens
from diffusers_xai.taps import SchedulerStep


class Recording:
    """What has been recorded of one run.

    Args:
        run (`Run`): The run that is recorded.
        specs (sequence of `RecordSpec`): What is recorded.
        edits (sequence of `EditSpec`): What is changed.
        store (`MemoryStore`): Where the arrays go.
        max_bytes (`int`, *optional*): The largest profile that is not refused.

    Attributes:
        run: The run that is recorded.
        profile (`DiffusionProfile` or `None`): The profile, when the recording has ended; of the steps done, marked
            `complete: false`, when it was interrupted.
    """

    def __init__(
        self,
        run: Run,
        specs: Sequence[StepSpec],
        edits: Sequence[Any],
        store: MemoryStore,
        max_bytes: int | None = None,
    ):
        self.run = run
        self.specs = list(specs)
        self.profile: DiffusionProfile | None = None
        self.planned: dict[int, dict[str, PlannedArray]] = {id(spec): {} for spec in self.specs}
        self._edits = edits
        self._store = store
        self._copies = HostCopies()
        self._behind = WorkBehind()
        self._max_bytes = max_bytes
        self._selected: dict[int, frozenset[int]] = {}
        self._expected: dict[int, set[str]] = {id(spec): set() for spec in self.specs}
        self._pending: dict[tuple[str, int], list[tuple[int | None, torch.Tensor]]] = {}
        self._runs_in_call: dict[tuple[int, str, int], int] = {}
        self._per_branch: dict[str, bool] = {}
        self._dims: dict[str, tuple[str, ...]] = {}
        self._coords: dict[str, dict[str, Any]] = {}
        self._of_text: set[str] = set()
        self._whole_shapes: dict[str, torch.Size] = {}  # of the longest branch, where they differ
        self._lengths: dict[str, dict[str, int]] = {}  # how many tokens of text each branch has
        self._prompt: PromptTokens | None = None
        self._provenance: dict[str, Any] = {}
        run.on_start(self._select)

    def describe(self, **provenance: Any) -> None:
        """Adds JSON-able entries to the profile's provenance, e.g. `class_labels=[3]`."""
        self._provenance.update(provenance)

    def follow_prompt(self, stack: ExitStack) -> PromptTokens:
        """The prompt's tokens, which all specs of the run share."""
        if self._prompt is None:
            self._prompt = stack.enter_context(PromptTokens.followed(self.run))
        return self._prompt

    def is_selected(self, spec: StepSpec) -> bool:
        """Whether `spec` records what happens now."""
        return not self.run.is_replaying and self.run.step in self._selected[id(spec)]

    def looks(self, spec: StepSpec) -> bool:
        """Whether `spec` records what happens now, or only notes its size, as everything does at the first step."""
        return not self.run.is_replaying and (self.run.step == 0 or self.run.step in self._selected[id(spec)])

    def expect(self, spec: StepSpec, names: Iterable[str], *, exclusive: bool = False) -> None:
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

    def declare(
        self,
        spec: StepSpec,
        name: str,
        shape: Sequence[int],
        dtype: torch.dtype,
        *,
        per_branch: bool = True,
        backward_passes: int = 0,
        steps: frozenset[int] | None = None,
    ) -> None:
        """Notes the size of an array before its values are there: its shape behind (sample, branch) at one step.

        Args:
            spec (`StepSpec`): The spec that will record it.
            name (`str`): Its name in the profile.
            shape (sequence of `int`): Its shape behind (step, sample, branch).
            dtype (`torch.dtype`): Of the tensor that is recorded.
            per_branch (`bool`, defaults to `True`): Whether each guidance branch has its own.
            backward_passes (`int`, defaults to 0): At one step, each of every row of the denoiser's batch.
            steps (`frozenset[int]`, *optional*): The recorded steps, if not those of the spec.
        """
        selected = self._selected[id(spec)] if steps is None else steps
        self.planned[id(spec)][name] = PlannedArray(
            name, selected, tuple(shape), recorded_dtype(dtype), per_branch, backward_passes * len(selected)
        )

    def keep(
        self,
        spec: StepSpec,
        name: str,
        tensor: torch.Tensor,
        dims: tuple[str, ...],
        coords: dict[str, Any] | None = None,
        *,
        per_branch: bool = True,
        call: int | None = -1,
        is_own: bool = False,
        of_text: bool = False,
    ) -> None:
        """Stores a copy of `tensor` (row, *dims) under `name` for the current step, with coordinates on its dims.

        What is kept more than once in one denoiser call comes from a module that runs more than once: the second run
        is stored as `<name>@2`.

        Args:
            spec (`StepSpec`): The spec that records it.
            name (`str`): Its name in the profile.
            tensor (`torch.Tensor`): The rows of a denoiser call or of the scheduler's state. Without data (device
                "meta") only its size is noted.
            dims (`tuple[str, ...]`): Names of the dims behind the rows.
            coords (`dict`, *optional*): Coordinates.
            per_branch (`bool`): Whether the rows are those of the guidance branches, or those of the state.
            call (`int`, *optional*): Index of the denoiser call whose rows they are; the current one if negative, all
                calls of the step one after the other if `None`.
            is_own (`bool`): Whether nobody else holds the tensor, so that it need not be copied.
            of_text (`bool`): Whether its tokens are those of the prompt, whose strings become a coordinate.
        """
        if per_branch and self.run.guides_more_later and self.run.step == 0:
            raise RuntimeError(
                f"{name}: expected as many guidance branches at the first step as later, got fewer of"
                f" {type(self.run.call.locals['guider']).__name__}: record what has no branches, such as `Samples()`."
            )
        call = None if call is None or not per_branch else self.run.current_call if call < 0 else call
        if call is not None:
            key = call, name, id(spec)
            run = self._runs_in_call[key] = self._runs_in_call.get(key, 0) + 1
            name = name if run == 1 else f"{name}@{run}"
        if self.run.step == 0 and name not in self.planned[id(spec)]:
            self.declare(spec, name, tensor.shape[1:], tensor.dtype, per_branch=per_branch)
        if tensor.device.type == "meta":
            return
        self._dims[name], self._coords[name], self._per_branch[name] = dims, coords or {}, per_branch
        if of_text:
            self._of_text.add(name)
        self._pending.setdefault((name, id(spec)), []).append(
            (call, self._copies.copy(tensor, recorded_dtype(tensor.dtype), is_own=is_own))
        )

    def keep_final(self, name: str, tensor: torch.Tensor, dims: tuple[str, ...]) -> None:
        """Stores a copy of `tensor` (sample, *dims) under `name`, apart from the steps; the last one counts."""
        self._store.add_final(name, xr.DataArray(_to_cpu(tensor).numpy(), dims=("sample", *dims)))

    def _select(self) -> None:
        for spec in self.specs:
            self._selected[id(spec)] = spec.select_steps(self.run.timesteps, self.run.num_train_timesteps)

    def check_size(self) -> None:
        """Refuses a profile that would be too large, when the first step has shown the size of its arrays.

        Raises:
            ValueError: with the largest arrays, and the `every` that would fit.
        """
        if self.run.step == 0 and self._max_bytes is not None:
            samples, branches = self.run.num_samples, len(self.run.guidance.branches)
            arrays = [
                (spec, array.of(samples, branches)) for spec in self.specs for array in self.planned[id(spec)].values()
            ]
            check_size(arrays, self.run, self._max_bytes)

    def finish_step(self, step: SchedulerStep) -> None:
        """Moves what the current step yielded into the record, with guidance branches told apart.

        What is still on its way from a GPU is moved in a thread, when it has arrived.

        Raises:
            RuntimeError: If something was asked for and is not there.
            OSError: If writing this step, or one before it, failed.
        """
        index, samples = self.run.step, self.run.num_samples
        called = {call.component for call in self.run.calls}
        for spec in filter(self.is_selected, self.specs):
            missing = [
                name
                for name in sorted(self._expected[id(spec)])
                if (name, id(spec)) not in self._pending
                and self.run.denoiser.component_of(name.partition("/")[2]) in called
            ]
            if missing:
                raise RuntimeError(
                    f"{type(spec).__name__}: {', '.join(missing)} yielded nothing at step {index}: the layer did not"
                    " run in this network's forward pass, or not in the way that is recorded."
                )
        calls, pending, arrived = self.run.branches_of_calls(samples), self._pending, self._copies.arrived()
        timestep, sigma = step.timestep, step.level.sigma
        self._pending = {}
        self._runs_in_call.clear()

        def move() -> None:
            if arrived is not None:
                arrived()
            arrays = {
                name: self._step_array(index, name, parts, samples, calls, len(self._selected[spec]))
                for (name, spec), parts in pending.items()
            }
            self._store.add_step(index, timestep, sigma, arrays, lambda: {**self._describe(), "complete": False})

        if arrived is None:
            move()
        else:
            self._behind.add(move, sum(tensor.nbytes for parts in pending.values() for _, tensor in parts))

    def finish(self) -> None:
        """Makes `profile` of what has been recorded so far.

        Raises:
            OSError: If writing failed.
        """
        try:
            self._behind.finish()
        finally:
            self.profile = self._store.finish(self._describe())

    def check_all_happened(self) -> None:
        """Refuses a run that was shorter than the pipeline announced, where a selected step did not happen.

        Raises:
            RuntimeError: with the steps.
        """
        if getattr(self.run.pipeline, "_interrupt", False):
            return
        for spec in self.specs:
            never = sorted(step for step in self._selected.get(id(spec), ()) if step >= self.run.step)
            if never:
                raise RuntimeError(
                    f"{type(spec).__name__}: expected a run of {len(self.run.timesteps)} steps, as the pipeline"
                    f" announced, got {self.run.step}: steps {never[:5]} did not happen."
                )

    def _step_array(
        self,
        step: int,
        name: str,
        parts: list[tuple[int | None, torch.Tensor]],
        samples: int,
        calls: list[tuple[str, ...]],
        steps: int,
    ) -> StepArray:
        dims, coords = ("sample", *self._dims[name]), self._coords[name]
        if not self._per_branch[name]:
            return StepArray(parts[0][1][:samples].numpy(), dims, coords, steps)
        by_branch: dict[str, torch.Tensor] = {}
        for call, tensor in parts:
            own = [name for part in calls for name in part] if call is None else calls[call]
            if tensor.shape[0] != samples * len(own):
                raise RuntimeError(f"{name}: expected {samples} images in branches {own}, got {tensor.shape[0]} rows.")
            by_branch.update(zip(own, tensor.split(samples), strict=True))
        branches = self.run.guidance.branches
        if not set(by_branch) <= set(branches):
            raise RuntimeError(
                f"{name}: expected branches from {branches}, as at the first step, got {tuple(by_branch)}: the"
                " pipeline guides in another way at this step."
            )
        of_text, of_step = self._text_coordinate(name, step, by_branch)
        coords = {**coords, **of_text}
        if len(branches) == 1:
            return StepArray(by_branch[branches[0]].numpy(), dims, coords, steps, of_step)
        shapes = {tensor.shape for tensor in by_branch.values()}
        if len(by_branch) < len(branches) and name in self._whole_shapes:
            shapes.add(self._whole_shapes[name])
        if len(shapes) == 1 and len(by_branch) == len(branches):
            values = torch.stack([by_branch[branch] for branch in branches], dim=1)
        else:
            # A pipeline may leave out a branch at some steps, a layer may run in one branch only, and the texts of two
            # branches may have lengths of their own: NaN there.
            sizes = [max(of_dim) for of_dim in zip(*shapes, strict=True)]
            self._whole_shapes.setdefault(name, torch.Size(sizes))
            values = parts[0][1].new_full((samples, len(branches), *sizes[1:]), torch.nan)
            for branch, tensor in by_branch.items():
                values[:, branches.index(branch)][tuple(slice(size) for size in tensor.shape)] = tensor
        coords = {**coords, "branch": list(branches)}
        return StepArray(values.numpy(), ("sample", "branch", *self._dims[name]), coords, steps, of_step)

    def _text_coordinate(
        self, name: str, step: int, by_branch: Mapping[str, torch.Tensor]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The strings of an array's tokens, for all steps and for this one: `token`, or `text` where they differ."""
        if self._prompt is None or name not in self._of_text:
            return {}, {}
        axis = 1 + self._dims[name].index("token")
        lengths = self._lengths.setdefault(name, {})  # also of branches that this step leaves out
        lengths.update({branch: tensor.shape[axis] for branch, tensor in by_branch.items()})
        text = self._prompt.text(step, lengths)
        if text is None:
            return {}, {}
        changes = self._prompt.changes
        if not changes and (text == text[:1, :1]).all():
            return {"token": text[0, 0]}, {}
        dims: tuple[str, ...] = ("token",)
        for axis, dim in ((1, "branch"), (0, "sample")):
            if text.shape[axis] > 1 and (changes or (text != np.take(text, [0], axis)).any()):
                dims = (dim, *dims)
            else:
                text = np.take(text, [0], axis)
        text = text.reshape(
            [size for size, dim in zip(text.shape, ("sample", "branch", "token"), strict=True) if dim in dims]
        )
        return ({}, {"text": (dims, text)}) if changes else ({"text": (dims, text)}, {})

    def _describe(self) -> dict[str, Any]:
        recorded = {name.split("/", 1)[1].partition("@")[0] for name in tuple(self._dims) if "/" in name}
        return describe_run(self.run, self.specs, self._edits, recorded, self._provenance)


def _to_cpu(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("cpu", recorded_dtype(tensor.dtype), copy=True)
