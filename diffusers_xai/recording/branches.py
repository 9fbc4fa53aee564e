"""Which guidance branches the calls of a step are, before and after a step shows how a pipeline combines them."""

from collections.abc import Sequence

import torch

from diffusers_xai.denoisers import DenoiserCall
from diffusers_xai.denoisers.guidance import Guidance, combination, order_from
from diffusers_xai.recording.states import predicted_part
from diffusers_xai.taps import SchedulerStep


def branches_of_calls(guidance: Guidance, calls: Sequence[DenoiserCall], samples: int) -> list[tuple[str, ...]]:
    """The guidance branches in each denoiser call of a step that is done, of `samples` images."""
    counts = [call.rows // samples for call in calls]
    known = [guidance.of_call(i) for i in range(len(counts))]
    # Some pipelines guide at some steps only; of more calls than are known none can be told.
    if [len(names) for names in known] == counts and len(counts) <= len(guidance.calls):
        return known
    if sum(counts) == 1:
        return [("cond",) * count for count in counts]
    names = guidance.branches
    if sum(counts) != len(names):
        names = tuple(f"branch_{i}" for i in range(sum(counts)))
    starts = [sum(counts[:i]) for i in range(len(counts))]
    return [names[start : start + count] for start, count in zip(starts, counts, strict=True)]


def branch_outputs(
    calls: Sequence[DenoiserCall], outputs: Sequence[torch.Tensor], samples: int
) -> list[torch.Tensor] | None:
    """What the denoiser predicted for each branch of a step, in the order in which they are computed.

    `None` where the outputs do not come in whole branches.
    """
    found: list[torch.Tensor] = []
    for call, output in zip(calls, outputs, strict=False):
        if call.rows % samples or output.shape[0] != call.rows:
            return None
        found += output.split(samples)
    return found


def settled(
    guidance: Guidance,
    calls: Sequence[DenoiserCall],
    outputs: Sequence[torch.Tensor],
    samples: int,
    step: SchedulerStep,
) -> Guidance:
    """The guidance as a first step shows it: in which order the pipeline combines what its calls returned."""
    names, found = guidance.branches, branches_of_calls(guidance, calls, samples)
    predicted = branch_outputs(calls, outputs, samples)
    if sum(len(part) for part in found) == 2 and predicted is not None:
        combined = predicted_part(step.sample, step.model_output[:samples])
        parts = [predicted_part(step.sample, output) for output in predicted]
        same_form = all(part.shape == combined.shape for part in parts)
        weights = combination(parts, combined) if same_form else None
        other = names[1 - names.index("cond")] if len(names) == 2 and "cond" in names else "uncond"
        order = order_from(weights, other) if weights is not None else None
        if order is None and not guidance.is_known:
            order = ("branch_0", "branch_1")
        if order is not None:
            found = [order] if len(found) == 1 else [(name,) for name in order]
    known = guidance.calls
    if {name for part in found for name in part} < set(names):  # the first step leaves out some
        same_form = [len(part) for part in found] == [len(part) for part in known[: len(found)]]
        found = [*(found if same_form else known[: len(found)]), *known[len(found) :]]
    return Guidance(tuple(found), guidance.doubles_sample)
