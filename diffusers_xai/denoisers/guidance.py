"""Which guidance branches the rows of a denoiser's calls belong to, and how a pipeline combines them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from diffusers_xai.denoisers.layouts import Layout


# A combination counts as linear if the fit leaves less than this share of the prediction's norm; in half precision,
# whose rounding leaves more, less than the precision's epsilon (bfloat16 leaves about a third of it).
_RESIDUAL = 1e-3


@dataclass(frozen=True)
class Guidance:
    """The guidance branches of a step.

    Attributes:
        branches (`tuple[str, ...]`): Their names, in the order in which they are computed; `("cond",)` alone without
            guidance.
        separate_calls (`bool`): Whether each branch is a call of its own instead of a part of the batch.
        doubles_sample (`bool`): Whether the scheduler's state holds every image once per branch.
        is_known (`bool`): Whether the family's order is known beforehand.
    """

    branches: tuple[str, ...]
    separate_calls: bool = False
    doubles_sample: bool = False
    is_known: bool = True

    @property
    def in_batch(self) -> int:
        """How many branches one call of the denoiser holds."""
        return 1 if self.separate_calls else len(self.branches)


def guidance_of(pipeline: Any, layout: Layout | None, variables: Mapping[str, Any]) -> Guidance:
    """The guidance of a pipeline's running call, as far as it is known before its first step.

    Args:
        pipeline: The pipeline.
        layout (`Layout`, *optional*): What is known of its denoiser.
        variables (mapping): The local variables of its running call.
    """
    if not _is_guided(pipeline, layout, variables):
        perturbed = ("cond", "perturbed") if _is_perturbed(pipeline) else ("cond",)
        return Guidance(perturbed, is_known=True)
    name = type(pipeline).__name__
    if "InstructPix2Pix" in name:
        return Guidance(("cond", "image", "uncond"))
    if _is_perturbed(pipeline):
        return Guidance(("uncond", "cond", "perturbed"))
    if layout is None:
        return Guidance(("uncond", "cond"), is_known=False)
    return Guidance(layout.branches, layout.separate_calls, layout.doubles_sample)


def _is_guided(pipeline: Any, layout: Layout | None, variables: Mapping[str, Any]) -> bool:
    for flag in ("do_classifier_free_guidance", "do_true_cfg"):
        value = variables.get(flag)
        if isinstance(value, bool):
            return value
    if layout is not None and layout.doubles_sample:
        scale = variables.get("guidance_scale")
        return isinstance(scale, (int, float)) and scale > 1
    value = getattr(pipeline, "do_classifier_free_guidance", False)
    return bool(value) if isinstance(value, (bool, int, torch.Tensor)) else False


def _is_perturbed(pipeline: Any) -> bool:
    return bool(getattr(pipeline, "do_perturbed_attention_guidance", False))


def combination(outputs: Sequence[torch.Tensor], combined: torch.Tensor) -> torch.Tensor | None:
    """The weights with which a pipeline summed its branches' outputs, found from what it computed.

    Args:
        outputs (sequence of `torch.Tensor` of one shape): The denoiser's outputs, a branch each.
        combined (`torch.Tensor` of that shape): What went into `scheduler.step`.

    Returns:
        `torch.Tensor` of shape `(branches,)`, float64, or `None` if `combined` is not a weighted sum of the outputs.
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
    return solution if (matrix @ solution - target).norm() <= bound * norm else None


def renormalised(cond: torch.Tensor, uncond: torch.Tensor, scale: float) -> torch.Tensor:
    """Guidance whose sum is brought back to the length of the conditional branch, token by token (Qwen-Image)."""
    combined = uncond + scale * (cond - uncond)
    return combined * (cond.norm(dim=-1, keepdim=True) / combined.norm(dim=-1, keepdim=True))


def order_from(weights: torch.Tensor) -> tuple[str, ...] | None:
    """Names of two branches from their weights: guidance takes away from the unconditional one, 1 − s < 0 < s."""
    first, second = (float(w) for w in weights * torch.sign(weights.sum()))
    if first < 0 < second:
        return ("uncond", "cond")
    if second < 0 < first:
        return ("cond", "uncond")
    return None
