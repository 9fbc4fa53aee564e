"""Where the scheduler's state goes into the networks of a step."""

from collections.abc import Sequence
from typing import Any

import torch

from diffusers_xai.denoisers import DenoiserCall
from diffusers_xai.recording.clock import Run
from diffusers_xai.recording.repeat import repeat_rows, repeated, tensors_in


class NoisyInput:
    """The sample of a network's call, and which part of it is the scheduler's state.

    Args:
        run (`Run`): The run.
        call ([`DenoiserCall`]): The call.
        state (`torch.Tensor` of shape `(sample, …)`): The state, as the scheduler scales it.

    Attributes:
        noisy (`torch.Tensor` of shape `(branch · sample, …)`): That part.

    Raises:
        RuntimeError: if that part cannot be found, or another argument is the state.
    """

    def __init__(self, run: Run, call: DenoiserCall, state: torch.Tensor):
        self.call = call
        self._pipeline = type(run.pipeline).__name__
        self._start, self._axis, self._shape = 0, 1, state.shape
        self._expected = torch.cat([state] * (call.rows // state.shape[0])).to(call.sample.dtype)
        sample, expected = call.sample, self._expected
        if sample.numel() == expected.numel():
            self._size: int | None = None
            self.noisy = sample.reshape(expected.shape)
            self._check_is_no_condition()
            return
        differing = [
            i for i in range(1, sample.ndim) if sample.ndim == state.ndim and sample.shape[i] != state.shape[i]
        ]
        if len(differing) == 1 and sample.shape[differing[0]] > state.shape[differing[0]]:
            self._axis, self._size = differing[0], state.shape[differing[0]]
            for start in (0, sample.shape[self._axis] - self._size):
                part = sample.narrow(self._axis, start, self._size)
                if torch.equal(part, expected):
                    self._start, self.noisy = start, part
                    return
        raise self._unknown()

    def check_is_state(self) -> None:
        """Refuses an input that is not the state as the scheduler scales it, but what the pipeline makes of it.

        Raises:
            RuntimeError: if it is not.
        """
        if not torch.equal(self.noisy, self._expected):
            raise RuntimeError(
                f"Gradients `of='step'`: expected calls of {type(self.call.module).__name__} with the scheduler's"
                f" state, got what {self._pipeline} makes of it. Use `of='noise'`."
            )

    def _check_is_no_condition(self) -> None:
        state = self._expected
        others = [x for x in tensors_in([self.call.args, self.call.kwargs]) if x.shape == state.shape]
        if not torch.equal(self.noisy, state) and any(torch.equal(x.to(state), state) for x in others):
            raise RuntimeError(
                f"Gradients: expected the scheduler's state as the first tensor that {type(self.call.module).__name__}"
                f" takes, got something else as {self.call.sample_name!r}, and the state behind it."
            )

    def _unknown(self) -> RuntimeError:
        return RuntimeError(
            "Gradients need to know which part of the denoiser's input is the scheduler's state: expected it in"
            f" {tuple(self.call.sample.shape)} as {tuple(self._shape)}, but {self._pipeline} changes it in between."
        )

    def with_noisy(self, noisy: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
        """`sample` with its noisy part replaced."""
        if self._size is None:
            return noisy.reshape(sample.shape).to(sample.dtype)
        before = sample.narrow(self._axis, 0, self._start)
        after_start = self._start + self._size
        after = sample.narrow(self._axis, after_start, sample.shape[self._axis] - after_start)
        return torch.cat([before, noisy.to(sample.dtype), after], dim=self._axis)


class ControlInput(NoisyInput):
    """The sample of a ControlNet's call, whose outputs go into the denoiser's calls as they are.

    Args:
        run (`Run`): The run, when the denoiser calls of a step are done.
        call ([`DenoiserCall`]): The ControlNet's call.
        output: What it returned.
        state (`torch.Tensor` of shape `(sample, …)`): See [`NoisyInput`].

    Raises:
        RuntimeError: if its input is not the state, or its outputs are changed before the denoiser gets them.
    """

    def __init__(self, run: Run, call: DenoiserCall, output: Any, state: torch.Tensor):
        super().__init__(run, call, state)
        self.check_is_state()
        self._before = list(tensors_in(output))
        if not goes_into(output, run.calls):
            raise RuntimeError(
                f"Gradients `of='step'` go through {type(call.module).__name__} too: expected its outputs in the"
                f" denoiser's arguments as they are, but {self._pipeline} changes them in between. Use `of='noise'`."
            )

    def evaluated(self, scaled: torch.Tensor, samples: int, copies: int) -> dict[int, torch.Tensor]:
        """Its outputs for another state: by the id of the tensor that each takes the place of.

        Args:
            scaled (`torch.Tensor` of shape `(copy · sample, …)`): The state, as the scheduler scales it.
            samples (`int`): Number of images.
            copies (`int`): How often each comes.
        """
        branches = self.call.rows // samples
        args, kwargs = repeated(self.call, samples, copies)
        whole = repeat_rows(self.call.sample, branches, samples, copies)
        call = DenoiserCall(self.call.component, self.call.module, args, kwargs)
        args, kwargs = call.with_sample(self.with_noisy(torch.cat([scaled] * branches), whole))
        after = tensors_in(self.call.module(*args, **kwargs))
        return {id(old): new for old, new in zip(self._before, after, strict=True)}


def goes_into(output: Any, calls: Sequence[DenoiserCall]) -> bool:
    """Whether all tensors that a network returned are among the arguments of calls of another, as they are."""
    used = {id(tensor) for call in calls for tensor in tensors_in([call.args, call.kwargs])}
    return all(id(tensor) in used for tensor in tensors_in(output))
