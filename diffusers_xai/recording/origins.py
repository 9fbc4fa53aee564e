"""Which tokens of layers' outputs come from the sample, for every form in which a run calls its networks."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch

from diffusers_xai.denoisers import Denoiser, DenoiserCall
from diffusers_xai.denoisers.labelling import Labelling, output_tensors
from diffusers_xai.denoisers.origins import Origins, UnknownOrigins
from diffusers_xai.recording.repeat import repeated, tensors_in
from diffusers_xai.taps import tap_call
from diffusers_xai.taps.trace import trace


_logger = logging.getLogger(__name__)


class KnownOrigins:
    """Traces a call of a network when it has a form that was not seen before.

    Only a call that could mix up tokens is traced: one with a condition in a sequence, to a network whose tokens are
    known to lie on a grid. In others all tokens are the sample's, or called tokens.

    Args:
        denoiser ([`Denoiser`]): The networks.

    Attributes:
        layers (`set[str]`): The layers whose outputs will be labelled.
        ran (`dict[str, int]`): How often a layer has run in the current call, of layers whose runs differ.
    """

    def __init__(self, denoiser: Denoiser):
        self.layers: set[str] = set()
        self.ran: dict[str, int] = {}
        self._denoiser = denoiser
        self._known: dict[Any, Origins] = {}
        self._stack = ExitStack()
        self._counted: set[str] = set()

    def ask_of_attention(self, paths: Iterable[str]) -> None:
        """Lets it be told of attention layers whether they look from the image, where their class does not say so."""
        self.layers.update(path for path in paths if not self._denoiser.looks_from_image(path))

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Counts runs while the context is open, of layers where it matters."""
        with self._stack:
            yield

    def of(self, call: DenoiserCall) -> Origins | None:
        """The origins of the tokens in a call; `None` where all come from the sample."""
        if not self.layers:
            return None
        labelling = Labelling(self._denoiser, call)
        layout = labelling.layout
        if layout is None or (layout.order is None and not _has_condition(call)):
            return None
        form = call.component, frozenset(self.layers), _form(call.args), _form(call.kwargs)
        if form not in self._known:
            self._known[form] = self._traced(call, labelling)
        return self._known[form]

    def _traced(self, call: DenoiserCall, labelling: Labelling) -> Origins:
        if not call.sample.is_floating_point():  # there is no NaN
            return {}
        layers = {
            path: self._denoiser.layers[path]
            for path in self.layers
            if self._denoiser.component_of(path) == call.component
        }

        def with_values(values: torch.Tensor) -> tuple[tuple, dict[str, Any]]:
            sample = call.sample.clone()
            labelling.sample(sample).values.copy_(values)  # a view; without the tokens of references
            args, kwargs = repeated(call, call.rows, 1, labelling.frames)
            return DenoiserCall(call.component, call.module, args, kwargs).with_sample(sample)

        try:
            with torch.inference_mode(False), torch.no_grad():
                values = labelling.sample(call.sample.clone()).values.clone()
                found = trace(call.module, layers, with_values, values, output_tensors)
        except torch.OutOfMemoryError:  # the run's results must not depend on how full the device is
            raise
        except Exception as error:  # whatever a network says to a call beside the run, the run itself may do without
            _logger.warning(
                "%s cannot be called beside the run (%s: %s), so that it is not known which tokens of its layers come"
                " from the sample: they have no height and width, and what needs it is left out.",
                type(call.module).__name__, type(error).__name__, error,
            )  # fmt: skip
            return UnknownOrigins(f"{type(error).__name__}: {error}")
        for path in found:
            if path not in self._counted and _differ(found[path]):
                self._counted.add(path)
                self._stack.enter_context(tap_call(layers[path], partial(self._count, path)))
        return found

    def _count(self, path: str, args: tuple, kwargs: dict) -> None:
        self.ran[path] = self.ran.get(path, 0) + 1


def _has_condition(call: DenoiserCall) -> bool:
    """Whether anything but the sample has an axis of tokens."""
    others = {name: value for name, value in call.arguments.items() if name != call.sample_name}
    return any(tensor.ndim > 2 for tensor in tensors_in(others))


def _form(value: Any) -> Any:
    """What of an argument decides where tokens are."""
    if isinstance(value, torch.Tensor):
        is_mask = value.ndim == 2 and not value.is_floating_point()  # by which a network may cut its text
        return tuple(value.shape), tuple(value.count_nonzero(dim=1).tolist()) if is_mask else ()
    if isinstance(value, Mapping):
        return tuple((name, _form(item)) for name, item in value.items())
    if isinstance(value, (list, tuple)):
        return tuple(_form(item) for item in value)
    return value if isinstance(value, (bool, int, str)) else type(value)


def _differ(runs: Iterable[Any]) -> bool:
    """Whether runs of a layer put out tensors of one form and different origins."""
    seen: dict[Any, Any] = {}
    for run in runs:
        for position, origin in enumerate(run):
            for axis, marks in origin.items():
                if seen.setdefault((position, axis, len(marks)), marks) != marks:
                    return True
    return False
