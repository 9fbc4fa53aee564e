"""Which guidance branches the rows of a denoiser's calls belong to, and how a pipeline combines them."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from diffusers_xai.denoisers.layouts import Layout
from diffusers_xai.passed import Pipeline


# A combination counts as linear if the fit leaves less than this share of the prediction's norm; in half precision,
# whose rounding leaves more, less than the precision's epsilon (bfloat16 leaves about a third of it).
_RESIDUAL = 1e-3


@dataclass(frozen=True)
class Guidance:
    """The guidance branches of a step.

    Attributes:
        calls (`tuple[tuple[str, ...], ...]`): Their names in each call of the denoiser, in the order in which they are
            computed; `(("cond",),)` without guidance.
        doubles_sample (`bool`): Whether the scheduler's state holds every image once per branch.
        is_known (`bool`): Whether the family's order is known beforehand.
    """

    calls: tuple[tuple[str, ...], ...]
    doubles_sample: bool = False
    is_known: bool = True

    @property
    def branches(self) -> tuple[str, ...]:
        """The names of all branches of a step."""
        return tuple(name for names in self.calls for name in names)

    def of_call(self, index: int) -> tuple[str, ...]:
        """The branches in one call of the denoiser."""
        return self.calls[index] if index < len(self.calls) else (f"branch_{index}",)


def guidance_of(pipeline: Pipeline, layout: Layout | None, variables: Mapping[str, Any]) -> Guidance:
    """The guidance of a pipeline's running call, as far as it is known before its first step.

    Args:
        pipeline: The pipeline.
        layout (`Layout`, *optional*): What is known of its denoiser.
        variables (mapping): The local variables of its running call.
    """
    guided = _is_guided(pipeline, layout, variables)
    if variables.get("do_self_attention_guidance") is True:
        return Guidance((("uncond", "cond") if guided else ("cond",), ("degraded",)))
    if guided and variables.get("skip_guidance_layers") is not None:
        return Guidance((("uncond", "cond"), ("skipped",)))
    if not guided:
        return Guidance((("cond", "perturbed") if _is_perturbed(pipeline) else ("cond",),))
    if "InstructPix2Pix" in type(pipeline).__name__:
        return Guidance((("cond", "image", "uncond"),))
    if _is_perturbed(pipeline):
        return Guidance((("uncond", "cond", "perturbed"),))
    if layout is None:
        return Guidance((("uncond", "cond"),), is_known=False)
    calls = tuple((name,) for name in layout.branches) if layout.separate_calls else (layout.branches,)
    return Guidance(calls, layout.doubles_sample)


def guides_more_later(variables: Mapping[str, Any], steps: int) -> bool:
    """Whether a pipeline's guider adds branches behind the first step of `steps`, whose number is not seen there."""
    guider: Any = variables.get("guider")
    if not hasattr(guider, "set_state") or not hasattr(guider, "num_conditions"):
        return False
    guider, counts = copy.copy(guider), []
    for step in range(steps):
        guider.set_state(step=step, num_inference_steps=steps, timestep=None)
        counts.append(guider.num_conditions)
    return max(counts) > counts[0]


def _is_guided(pipeline: Pipeline, layout: Layout | None, variables: Mapping[str, Any]) -> bool:
    for flag in ("do_classifier_free_guidance", "do_true_cfg"):
        value = variables.get(flag)
        if isinstance(value, bool):
            return value
    if layout is not None and layout.scale_guides:
        scale = variables.get("guidance_scale")
        return isinstance(scale, (int, float)) and scale > 1
    value = getattr(pipeline, "do_classifier_free_guidance", False)
    return bool(value) if isinstance(value, (bool, int, torch.Tensor)) else False


def _is_perturbed(pipeline: Pipeline) -> bool:
    return bool(getattr(pipeline, "do_perturbed_attention_guidance", False))


def combination(outputs: Sequence[torch.Tensor], combined: torch.Tensor) -> torch.Tensor | None:
    """The weights with which a pipeline summed its branches' outputs, found from what it computed.

    Guidance moves from one branch away from others, so the weights sum to 1, or to -1 where the sign is turned. Where
    they do not, the sum was scaled by what the outputs are, and its weights are no constants.

    Args:
        outputs (sequence of `torch.Tensor` of one shape): The denoiser's outputs, a branch each.
        combined (`torch.Tensor` of that shape): What went into `scheduler.step`.

    Returns:
        `torch.Tensor` of shape `(branches,)`, float64, or `None` if `combined` is not such a sum of the outputs.
    """
    matrix = torch.stack([output.double().flatten() for output in outputs], dim=1)
    target = combined.double().flatten()
    norm = target.norm()
    for i, column in enumerate(matrix.T):  # exactly one of them, also where others are equal to it
        for sign in (1.0, -1.0):
            if torch.equal(column * sign, target):
                return torch.eye(matrix.shape[1], dtype=torch.float64, device=target.device)[i] * sign
    weights = torch.linalg.lstsq(matrix, target[:, None], driver="gelsd" if target.device.type == "cpu" else None)
    solution = weights.solution[:, 0]
    bound = max(_RESIDUAL, torch.finfo(combined.dtype).eps)
    moves = len(outputs) == 1 or abs(abs(float(solution.sum())) - 1) <= bound
    return solution if moves and (matrix @ solution - target).norm() <= bound * norm else None


def mixture(
    outputs: Sequence[torch.Tensor], combined: torch.Tensor, branches: Sequence[str], variables: Mapping[str, Any]
) -> Callable[[Sequence[torch.Tensor]], torch.Tensor] | None:
    """How a pipeline puts the outputs of its branches together, as a function of them.

    Args:
        outputs (sequence of `torch.Tensor` of one shape): The denoiser's outputs at a step, a branch each.
        combined (`torch.Tensor` of that shape): What went into `scheduler.step`.
        branches (sequence of `str`): Names of the branches.
        variables (mapping): The local variables of the pipeline's running call.

    Returns:
        `Callable`, or `None` if `combined` is nothing that is known of the outputs.
    """
    eps = torch.finfo(combined.dtype).eps
    known = _known(outputs, branches, variables)
    for put_together in known(_as_it_is):  # more exact than weights that are found
        if _is_near(put_together(outputs), combined, 16 * eps):
            return put_together
    weights = _weights(outputs, combined)
    if weights is not None:
        return lambda now: torch.stack([w.to(o) * o for w, o in zip(weights, now, strict=True)]).sum(dim=0)
    rescale, limit = (_number(variables.get(name)) or 0.0 for name in ("guidance_rescale", "cfg_normalization"))
    for normalise in (_renormalised, _rescaled(rescale), _limited(limit)):
        for put_together in known(normalise):
            if _is_near(put_together(outputs), combined, max(_RESIDUAL, eps)):
                return put_together
    return None


def _known(
    outputs: Sequence[torch.Tensor], branches: Sequence[str], variables: Mapping[str, Any]
) -> Callable[[Callable[..., torch.Tensor]], Iterator[Callable[..., torch.Tensor]]]:
    """Classifier-free guidance with the scales that the pipeline names, of either sign, changed by a function."""
    scales = [variables.get(name) for name in ("true_cfg_scale", "guidance_scale")]

    def every(normalise: Callable[..., torch.Tensor]) -> Iterator[Callable[..., torch.Tensor]]:
        if set(branches) != {"cond", "uncond"} or len(outputs) != 2:
            return
        cond, uncond = branches.index("cond"), branches.index("uncond")
        numbers = [number for number in map(_number, scales) if number is not None]
        for scale in [*numbers, *(number + 1 for number in numbers)]:  # some count from the conditional branch
            for sign in (1.0, -1.0):
                yield (
                    lambda now, scale=scale, sign=sign: (
                        sign * normalise(now[cond], now[uncond] + scale * (now[cond] - now[uncond]))
                    )
                )

    return every


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) else None


def _is_near(one: torch.Tensor, other: torch.Tensor, bound: float) -> bool:
    return bool((one.double() - other.double()).norm() <= bound * other.double().norm())


def _as_it_is(cond: torch.Tensor, combined: torch.Tensor) -> torch.Tensor:
    return combined


def _weights(outputs: Sequence[torch.Tensor], combined: torch.Tensor) -> list[torch.Tensor] | None:
    """The weights of `combination`, of the whole or of every channel or frame by itself, each as it multiplies."""
    whole = combination(outputs, combined)
    if whole is not None:
        return list(whole)
    for dim in range(1, combined.ndim - 2 if combined.ndim > 3 else 1):
        size = combined.shape[dim]
        parts = [combination([o.select(dim, i) for o in outputs], combined.select(dim, i)) for i in range(size)]
        found = [part for part in parts if part is not None]
        if len(found) == size:
            shape = [size if axis == dim else 1 for axis in range(combined.ndim)]
            return [weights.reshape(shape) for weights in torch.stack(found, dim=1)]
    return None


def _renormalised(cond: torch.Tensor, combined: torch.Tensor) -> torch.Tensor:
    """Guidance whose sum is brought back to the length of the conditional branch, token by token (Qwen-Image)."""
    return combined * (cond.norm(dim=-1, keepdim=True) / combined.norm(dim=-1, keepdim=True))


def _rescaled(share: float) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Guidance a share of which is brought back to the spread of the conditional branch, image by image.

    Source: Lin et al. 2023, section 3.4.
    """

    def rescaled(cond: torch.Tensor, combined: torch.Tensor) -> torch.Tensor:
        dims = list(range(1, cond.ndim))
        factor = cond.std(dim=dims, keepdim=True) / combined.std(dim=dims, keepdim=True)
        return share * factor * combined + (1 - share) * combined

    return rescaled


def _limited(limit: float) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Guidance that is no longer than a multiple of the conditional branch, image by image (Z-Image)."""

    def limited(cond: torch.Tensor, combined: torch.Tensor) -> torch.Tensor:
        dims = list(range(1, cond.ndim))
        lengths = [torch.linalg.vector_norm(part, dim=dims, keepdim=True) for part in (cond, combined)]
        return combined * (limit * lengths[0] / lengths[1]).clamp(max=1)

    return limited


def order_from(weights: torch.Tensor, other: str) -> tuple[str, ...] | None:
    """Names of two branches from their weights: guidance takes away from the `other` one, 1 − s < 0 < s."""
    first, second = (float(w) for w in weights * torch.sign(weights.sum()))
    if first < 0 < second:
        return (other, "cond")
    if second < 0 < first:
        return ("cond", other)
    return None
