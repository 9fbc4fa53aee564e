"""The true weights of softmax attention."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from diffusers_xai.denoisers.base import Denoiser, token_grid
from diffusers_xai.recording.layers import layer_names
from diffusers_xai.recording.planned import PlanContext, PlannedArray
from diffusers_xai.recording.spec import RecordSpec
from diffusers_xai.taps.attention import tap_attention


if TYPE_CHECKING:
    from diffusers_xai.recording.recording import Recording

_QUERIES_AT_ONCE = 256


@dataclass(frozen=True, kw_only=True)
class AttentionWeights(RecordSpec):
    """Records softmax attention weights: how much a query looks at every key. Rows sum to 1.

    Arrays: `attention_weights/<layer>` of dims (step, sample, head, height, width) over the image positions of the
    keys, averaged over all queries; cross-attention has (…, head, token) over the condition's tokens. With `pixels`,
    the weights of these queries, with the dim `pixel` after `head` and the coordinates `row` and `column` on it. Under
    guidance `branch` stands after `sample`. Linear attention has no such weights: see [`AttentionOutputs`].

    Args:
        layers (`str` or list of `str`, *optional*): See [`Activations`]; all layers of softmax attention if `None`.
        pixels (sequence of `(row, column)`, *optional*): Query pixels at the sample's resolution; each means the
            query of the layer's grid that covers it. Averaged over all queries if `None`.
        steps, timesteps, every: See [`RecordSpec`].

    Raises:
        KeyError: when recording starts, if a name matches no layer.
        ValueError: if a layer has no softmax attention; before sampling, for pixels outside the sample.
    """

    layers: str | Iterable[str] | None = None
    pixels: Sequence[tuple[int, int]] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layers is not None:
            object.__setattr__(self, "layers", layer_names(self.layers))
        if self.pixels is not None:
            object.__setattr__(self, "pixels", tuple((int(row), int(column)) for row, column in self.pixels))

    def attach(self, recording: Recording, stack: ExitStack) -> None:
        """Taps the attention of every matching layer."""
        run = recording.run
        layers = self._layers(run.denoiser)
        recording.expect(self, [f"attention_weights/{path}" for path in layers], exclusive=True)

        def check_pixels() -> None:
            height, width = run.sample_size
            outside = [p for p in self.pixels or () if not (0 <= p[0] < height and 0 <= p[1] < width)]
            if outside:
                raise ValueError(
                    f"AttentionWeights: expected pixels (row, column) within {run.sample_size}, got {outside[:5]}."
                )

        def keep(path: str, query: torch.Tensor, key: torch.Tensor, arguments: dict[str, Any]) -> None:
            if not recording.is_selected(self):
                return
            query_grid = token_grid(query.shape[-2], run.sample_size)
            if query_grid is None:
                raise RuntimeError(f"{path}: {query.shape[-2]} queries do not cover the image evenly.")
            weights = self._weights(query, key, arguments, query_grid, run.sample_size)
            dims: tuple[str, ...] = ("head", "token") if self.pixels is None else ("head", "pixel", "token")
            if key.shape[-2] == query.shape[-2]:
                weights = weights.unflatten(-1, query_grid)
                dims = (*dims[:-1], "height", "width")
            coords: dict[str, Any] = {}
            if self.pixels is not None:
                rows, columns = np.array(self.pixels).T
                coords = {"row": ("pixel", rows), "column": ("pixel", columns)}
            recording.keep(self, f"attention_weights/{path}", weights, dims, coords)

        run.on_start(check_pixels)
        stack.enter_context(tap_attention(layers, keep))

    def _layers(self, denoiser: Denoiser) -> dict[str, torch.nn.Module]:
        available = denoiser.softmax_attention()
        if self.layers is None:
            if not available:
                raise ValueError(f"{type(denoiser.module).__name__} has no layer of softmax attention.")
            return available
        asked = denoiser.resolve_layers(self.layers)
        without = [path for path in asked if path not in available]
        if without:
            raise ValueError(
                f"Expected layers of softmax attention, available: {', '.join(available) or 'none'}; got"
                f" {', '.join(without[:5])}. `AttentionOutputs` shows linear attention."
            )
        return asked

    def _weights(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        arguments: dict[str, Any],
        query_grid: tuple[int, int],
        sample_size: tuple[int, int],
    ) -> torch.Tensor:
        """(batch, head, key) averaged over the queries, or (batch, head, pixel, key)."""
        scale = arguments.get("scale") or query.shape[-1] ** -0.5
        mask = arguments.get("attn_mask")

        def softmax(indices: torch.Tensor) -> torch.Tensor:
            scores = query[..., indices, :].float() @ key.float().transpose(-1, -2) * scale
            if mask is not None:
                rows = mask[..., indices, :] if mask.shape[-2] > 1 else mask
                bias = torch.zeros_like(rows, dtype=torch.float32).masked_fill(~rows, -torch.inf)
                scores = scores + (bias if rows.dtype == torch.bool else rows.float())
            return scores.softmax(dim=-1)

        if self.pixels is not None:
            (rows, columns), (height, width) = torch.tensor(self.pixels).T, sample_size
            cells = rows * query_grid[0] // height * query_grid[1] + columns * query_grid[1] // width
            return softmax(cells.to(query.device))
        # In parts: all weights of a 64 px layer at once are 67 MB per head.
        parts = torch.arange(query.shape[-2], device=query.device).split(_QUERIES_AT_ONCE)
        return torch.stack([softmax(part).sum(dim=-2) for part in parts]).sum(dim=0) / query.shape[-2]

    def plan(self, context: PlanContext) -> list[PlannedArray]:
        """One array per layer."""
        arrays, sample_size = [], (context.sample_shape[1], context.sample_shape[2])
        for path, module in self._layers(context.denoiser).items():
            output = context.denoiser.to_grid(context.outputs[path], sample_size)
            keys = context.outputs.get(f"{path}.to_k")
            is_self = keys is None or keys.shape[1] == output.shape[-2] * output.shape[-1]
            shape = list(output.shape[-2:]) if is_self or keys is None else [keys.shape[1]]
            pixels = [] if self.pixels is None else [len(self.pixels)]
            name, heads = f"attention_weights/{path}", cast(int, module.heads)
            arrays.append(context.array(name, context.steps(self), [heads, *pixels, *shape], torch.float32))
        return arrays
