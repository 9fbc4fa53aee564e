"""What gradient volumes and gradient maps have in common: the differentiated output and its mask."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch

from diffusers_xai.denoisers.labelling import Labelled
from diffusers_xai.measures import Mask, as_mask, mask_to_runs
from diffusers_xai.recording.clock import Run
from diffusers_xai.recording.layers import layer_names
from diffusers_xai.recording.recording import Recording
from diffusers_xai.recording.replay import OUTPUTS, StepGraph, StepReplay
from diffusers_xai.recording.spec import RecordSpec
from diffusers_xai.taps import SchedulerStep, check_weights_stay, copy_scheduler, tap_output
from diffusers_xai.taps.noise import check_x0


_DTYPES = {"float16": torch.float16, "float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True, kw_only=True, eq=False)
class GradientSpec(RecordSpec):
    """The base of what is recorded by differentiating a step.

    Args:
        mask (array of shape `(height, width)`, bool, or a PNG file's path, *optional*): The output pixels of interest,
            at the size of the denoiser's sample; all if neither it nor `pixels` is given.
        pixels (sequence of `(row, column)`, of videos `(frame, row, column)`, of sound `(position,)`, *optional*): The
            same one by one.
        of (`str`, defaults to `"step"`): What is differentiated: `"step"`, the mean μ_θ of the scheduler's next state
            (as listing C.3 does; where a scheduler clips x̂_0, a clipped pixel passes no gradient; guidance and
            ControlNets are part of it), or `"noise"` or `"x0"`, the noise ε_θ or the clean image x̂_0 that the
            denoiser's output implies, of every guidance branch, w.r.t. the denoiser's input; x̂_0 is not clipped.
            Equation 4.1.1 calls the first two equal; they are not.
        steps, timesteps, every: See [`RecordSpec`].
    """

    mask: Mask | None = None
    pixels: Sequence[tuple[int, ...]] | None = None
    of: str = "step"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.of not in OUTPUTS:
            raise ValueError(f"Expected `of` in {OUTPUTS}, got {self.of!r}.")
        if self.mask is not None:
            object.__setattr__(self, "mask", as_mask(self.mask).copy())
        if self.mask is not None and self.pixels is not None:
            raise ValueError("Expected one of `mask` and `pixels`, got both.")
        if self.pixels is not None:
            given = np.asarray(self.pixels)
            pixels = np.atleast_2d(given)
            sizes = (1, 2, 3) if given.ndim == 2 else (2, 3)  # a single position may stand without a list around it
            if pixels.ndim != 2 or pixels.shape[1] not in sizes or not len(pixels) or pixels.dtype.kind not in "iu":
                raise ValueError(
                    "Expected `pixels` as (row, column) pairs of integers, of videos (frame, row, column), of sound"
                    f" (position,), got {self.pixels!r}."
                )
            object.__setattr__(self, "pixels", tuple(tuple(int(index) for index in pixel) for pixel in pixels))

    @property
    def per_branch(self) -> bool:
        """Whether each guidance branch has gradients of its own."""
        return self.of != "step"

    def check_positions(self, positions: tuple[int, ...]) -> None:
        """Refuses a mask or pixels that do not fit a sample of `positions`, such as (height, width)."""
        if self.mask is not None:
            if len(positions) < 2:
                raise ValueError(
                    f"{type(self).__name__}: expected a sample with height and width for a `mask`, got {positions}."
                )
            as_mask(self.mask, positions[-2:])
        for pixel in self.pixels or ():
            if len(pixel) != len(positions) or any(
                not 0 <= index < size for index, size in zip(pixel, positions, strict=True)
            ):
                raise ValueError(f"{type(self).__name__}: expected pixels within {positions}, got {pixel}.")

    def selected_pixels(self, positions: tuple[int, ...]) -> np.ndarray:
        """The output pixels of interest, an integer array (pixel, len(positions)); a mask holds for every frame."""
        if self.pixels is not None:
            return np.array(self.pixels)
        mask = np.ones(positions, bool) if self.mask is None else np.broadcast_to(as_mask(self.mask), positions)
        return np.argwhere(mask)

    def on_replay(self, recording: Recording, explain: Callable[[StepReplay], None]) -> None:
        """Calls `explain` with the replay of every selected step, at its end."""
        run = recording.run
        prepared: dict[int, StepReplay] = {}

        def prepare() -> None:
            if recording.looks(self):  # at the first step too: the place to refuse
                prepared[run.step] = StepReplay(run, copy_scheduler(run.scheduler), run.step_arguments, self.of)

        def at_end(step: SchedulerStep) -> None:
            replay = prepared.pop(run.step, None)
            if replay is not None and recording.is_selected(self):
                replay.level = step.level
                explain(replay)

        def check() -> None:
            for network in run.denoiser.components.values():
                check_weights_stay(network)
            self.check_positions(run.positions)
            if self.per_branch:
                check_x0(run.scheduler, run.timesteps[0], stated=False)

        run.on_start(check)
        run.before_step(prepare)
        run.on_step(at_end)

    def to_dict(self) -> dict[str, Any]:
        """The spec as JSON-able data, a mask by the lengths of its runs."""
        mask = None if self.mask is None else mask_to_runs(as_mask(self.mask))
        return {**super().to_dict(), "mask": mask}


@dataclass(frozen=True, kw_only=True, eq=False)
class PullBackSpec(GradientSpec):
    """The base of what takes many backward passes of one step.

    Args:
        chunk_size (`int` or `"auto"`): Weight maps per backward pass, see `pull_back`.
        dtype (`str`, defaults to `"float32"`): In which gradients are stored: `"float16"`, `"float32"`, `"float64"`.
        mask, pixels, of, steps, timesteps, every: See [`GradientSpec`].
    """

    chunk_size: int | str = "auto"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dtype not in _DTYPES:
            raise ValueError(f"Expected `dtype` in {tuple(_DTYPES)}, got {self.dtype!r}.")
        if self.chunk_size != "auto" and (not isinstance(self.chunk_size, int) or self.chunk_size < 1):
            raise ValueError(f"Expected `chunk_size` as 'auto' or an integer of at least 1, got {self.chunk_size!r}.")

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype in which gradients are stored."""
        return _DTYPES[self.dtype]


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerGradientSpec(GradientSpec):
    """The base of what takes one backward pass to the outputs of layers. Arrays: `<group>/<layer>`.

    Args:
        layers (`str` or list of `str`): See [`Activations`].
        mask, pixels, of: See [`GradientSpec`].
        steps, timesteps, every: See [`RecordSpec`].
    """

    layers: str | Iterable[str] = field(kw_only=False)
    group: ClassVar[str]

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "layers", layer_names(self.layers))

    def answer(self, graph: StepGraph, run: Run) -> torch.Tensor:
        """The number that is differentiated: the output's sum over the pixels, the rows being independent."""
        pixels = torch.as_tensor(self.selected_pixels(run.positions))
        return graph.target[(slice(None), *pixels.T)].sum()

    def map_of(self, path: str, output: Labelled, gradient: torch.Tensor) -> Labelled:
        """What is kept of a layer's output and of the gradient by it, which has the same dims."""
        raise NotImplementedError

    def attach(self, recording: Recording, stack: ExitStack) -> None:
        """Replays every selected step with a graph."""
        run = recording.run
        layers = run.denoiser.resolve_layers(self.layers)
        run.origins.layers.update(layers)
        recording.expect(self, [f"{self.group}/{path}" for path in layers], exclusive=True)

        def declare(path: str, output: Any) -> None:
            name = f"{self.group}/{path}"
            if run.step == 0 and not run.is_replaying and name not in recording.planned[id(self)]:
                _, labelled = run.labelling.stream(path, output)
                kept = self.map_of(path, labelled, labelled.values).values
                passes = 0 if recording.planned[id(self)] else 1
                recording.declare(self, name, kept.shape[1:], kept.dtype, backward_passes=passes)

        def explain(replay: StepReplay) -> None:
            with replay.graph(layers=layers) as graph:
                answer = self.answer(graph, run)
                gradients = torch.autograd.grad(answer, list(graph.layers.values()), allow_unused=True)
            for ((call, path, number), output), gradient in zip(graph.layers.items(), gradients, strict=True):
                name = f"{self.group}/{path}"
                if gradient is None:
                    raise RuntimeError(
                        f"{type(self).__name__}: expected layers that the output depends on, got {path!r}."
                    )
                check_finite(name, gradient, gradient.dtype)
                run.current_call, run.origins.ran[path] = call, number
                labelled = run.labelling.stream_in(path, output.detach())
                kept = self.map_of(path, labelled, run.labelling.stream_in(path, gradient).values)
                recording.keep(self, name, kept.values, kept.dims, call=call)

        for path, module in layers.items():
            stack.enter_context(tap_output(module, partial(declare, path), read=lambda output: output))
        self.on_replay(recording, explain)


def batch_first(rows: list[torch.Tensor]) -> torch.Tensor:
    """Chunks of (pixel, branch, sample, …) -> (branch · sample, pixel, …)."""
    return torch.cat(rows).permute(1, 2, 0, *range(3, rows[0].ndim)).flatten(0, 1)


def check_finite(name: str, gradients: torch.Tensor, dtype: torch.dtype) -> None:
    """Refuses gradients that are not finite, as half precision makes them when it overflows."""
    if not torch.isfinite(gradients).all():
        advice = " Half precision overflows: use float32 or bfloat16." if dtype == torch.float16 else ""
        raise FloatingPointError(f"{name}: expected finite gradients, got NaN or infinity at this step.{advice}")
