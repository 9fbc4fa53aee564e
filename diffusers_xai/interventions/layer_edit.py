"""Any change of a layer's output: the base of ablation and patching."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from diffusers_xai.denoisers.labelling import Labelled
from diffusers_xai.measures import Mask, resize_mask
from diffusers_xai.recording.clock import Run
from diffusers_xai.recording.edits import EditSpec
from diffusers_xai.recording.layers import layer_names
from diffusers_xai.recording.steps import StepSpec
from diffusers_xai.taps import SchedulerStep, edit_output


@dataclass(frozen=True)
class EditContext:
    """Where and when a layer's output is changed.

    Attributes:
        path (`str`): The layer.
        step (`int`): The step.
        rows (`list[tuple[str, int]]`): Guidance branch and image of every row that is changed; empty where it does
            not matter, because all rows are changed alike.
        dims (`tuple[str, ...]`): Names of the dims behind the rows, such as ("channel", "height", "width").
    """

    path: str
    step: int
    rows: list[tuple[str, int]]
    dims: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerEditSpec(StepSpec, EditSpec):
    """The base of edits that change layers' outputs.

    Out of place. Of a block that returns several tensors the hidden state is changed, in the same container; where it
    is also the block's last skip, both carry the change. Of a layer with tokens of image and text, one stream is.

    Args:
        layers (`str` or list of `str`): Module paths, aliases, or globs of either, as in [`Activations`].
        stream (`str`, defaults to `"image"`): The stream that is changed: `"image"` or `"text"`.
        branch (`str`, *optional*): The guidance branch that is changed, `"cond"` or `"uncond"`; all if `None`.
        skip (`bool`, defaults to `True`): Change the block's last skip too, where it is the hidden state.
        steps, timesteps, every: See [`StepSpec`]; at every step by default.
    """

    layers: str | Iterable[str] = field(kw_only=False)
    stream: str = "image"
    branch: str | None = None
    skip: bool = True

    # Masks, tensors and functions have no single truth value.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "layers", layer_names(self.layers))

    @property
    def needs_rows(self) -> bool:
        """Whether `changed` must know each row's image and branch."""
        return False

    @property
    def names(self) -> tuple[str, ...]:
        """Names or globs of the layers."""
        return layer_names(self.layers)

    def changed(self, values: torch.Tensor, context: EditContext) -> torch.Tensor:
        """New values for `values` (row, channel, …) of a layer, of the same shape and dtype."""
        raise NotImplementedError

    def check(self, run: Run, path: str, steps: frozenset[int]) -> None:
        """Refuses what does not fit the run, before the first denoiser call; `steps` are those that are changed."""

    def attach(self, run: Run, stack: ExitStack, samples: Sequence[int] | None = None) -> None:
        """Edits the output of every matching layer."""
        layers = run.denoiser.resolve_layers(self.names)
        run.origins.layers.update(layers)
        for path, module in layers.items():
            layer = _EditedLayer(self, run, path, samples)
            run.on_start(layer.start)
            run.on_step(layer.check_has_run)
            select = partial(lambda path, output: run.labelling.stream(path, output, self.stream)[0], path)
            stack.enter_context(edit_output(module, layer.edit, self.skip, select=select))


def mask_amount(mask: Mask, values: torch.Tensor, context: EditContext) -> torch.Tensor:
    """A mask at the size of a layer's output (row, channel, …, height, width), in [0, 1].

    Raises:
        ValueError: if the output does not cover the image.
    """
    if context.dims[-2:] != ("height", "width"):
        raise ValueError(
            f"{context.path}: expected an output that covers the image for a `mask`, got dims {context.dims}."
        )
    return resize_mask(mask, *values.shape[-2:])


class _EditedLayer:
    """An edit of one layer in one run."""

    def __init__(self, spec: LayerEditSpec, run: Run, path: str, samples: Sequence[int] | None):
        self.spec, self.run, self.path, self.samples = spec, run, path, samples
        self.steps: frozenset[int] = frozenset()
        self.has_run = False

    def start(self) -> None:
        self.steps = self.spec.select_steps(self.run.timesteps, self.run.num_train_timesteps)
        branch, branches = self.spec.branch, self.run.guidance.branches
        if branch is not None and branch not in branches and not self.run.guides_more_later:
            name = type(self.spec).__name__
            raise ValueError(f"{name}: expected `branch` in {branches} of this run, got {branch!r}.")
        self.spec.check(self.run, self.path, self.steps)

    def check_has_run(self, step: SchedulerStep) -> None:
        called = {call.component for call in self.run.calls}
        if not self.has_run and self.run.denoiser.component_of(self.path) in called:
            raise RuntimeError(
                f"{type(self.spec).__name__}: {self.path} did not run in this network's forward pass. Choose a layer"
                " that runs."
            )

    def edit(self, output: torch.Tensor) -> torch.Tensor:
        is_selected = self.run.step in self.steps
        if self.has_run and not is_selected:
            return output
        # The first output is edited at any step, if only to refuse there what would not fit later.
        step = self.run.step if is_selected else min(self.steps)
        edited = self.run.labelling.edited(self.path, output, self.spec.stream, partial(self._changed, step))
        self.has_run = True
        return edited if is_selected else output

    def _changed(self, step: int, labelled: Labelled) -> torch.Tensor:
        values = labelled.values
        if self.samples is None and self.spec.branch is None:
            context = EditContext(self.path, step, self._origins(values) or [], labelled.dims)
            return self._checked(values, self.spec.changed(values, context))
        try:
            origins = self.run.rows(values.shape[0])
        except ValueError as error:
            raise ValueError(f"{self.path}: {error} It cannot be changed image by image.") from error
        rows = [
            row
            for row, (branch, sample) in enumerate(origins)
            if (self.samples is None or sample in self.samples) and self.spec.branch in (None, branch)
        ]
        if not rows:
            return values
        context = EditContext(self.path, step, [origins[row] for row in rows], labelled.dims)
        index = torch.tensor(rows, device=values.device)
        return values.index_put((index,), self._checked(values[index], self.spec.changed(values[index], context)))

    def _origins(self, values: torch.Tensor) -> list[tuple[str, int]] | None:
        return self.run.rows(values.shape[0]) if self.spec.needs_rows else None

    def _checked(self, old: torch.Tensor, new: Any) -> torch.Tensor:
        if not isinstance(new, torch.Tensor) or new.shape != old.shape:
            got = tuple(new.shape) if isinstance(new, torch.Tensor) else type(new).__name__
            raise ValueError(f"{self.path}: expected an edited output of shape {tuple(old.shape)}, got {got}.")
        return new.to(old.dtype)


@dataclass(frozen=True, eq=False)
class LayerEdit(LayerEditSpec):
    """Changes layers' outputs by a function.

    ```py
    LayerEdit("mid_block", lambda output: 1.5 * output)
    ```

    Args:
        layers (`str` or list of `str`): Module paths, aliases, or globs of either, as in [`Activations`].
        fn (`Callable`): Receives an output `(row, channel, height, width)`, of tokens that do not lie on the image
            `(row, channel, token)`, of vectors `(row, channel)`; returns the new one, of the same shape.
        stream, branch, skip, steps, timesteps, every: See [`LayerEditSpec`].

    Raises:
        TypeError: if `fn` is no function.
        KeyError: when the run is attached, if a name matches no layer.
        ValueError: at the layer's first output, if the function returns something else.
        RuntimeError: after the first step, if a layer did not run.
    """

    fn: Callable[[torch.Tensor], torch.Tensor]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not callable(self.fn):
            raise TypeError(f"Expected `fn` as a function of the output, got {type(self.fn).__name__}.")

    def changed(self, values: torch.Tensor, context: EditContext) -> torch.Tensor:
        """What `fn` makes of the values."""
        return self.fn(values)

    def to_dict(self) -> dict[str, Any]:
        """The edit as JSON-able data, the function by its name."""
        return {**super().to_dict(), "fn": getattr(self.fn, "__qualname__", type(self.fn).__name__)}
