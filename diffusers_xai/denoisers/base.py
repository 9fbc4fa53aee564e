"""What every model family answers about itself."""

import difflib
import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn


class Denoiser:
    """A denoiser seen as named layers.

    Args:
        module (`nn.Module`): The network that the pipeline calls at every step, compiled or not.

    Attributes:
        module (`nn.Module`): The network itself, out of any compiled wrapper.
        layers (`dict[str, nn.Module]`): Module path -> module, without the root and the lists that never run.
    """

    # Names of the guidance branches in the order in which the family's pipelines stack them along the batch.
    branches: tuple[str, ...] = ("uncond", "cond")

    def __init__(self, module: nn.Module):
        self.pipeline_module = module
        self.module: Any = getattr(module, "_orig_mod", module)
        # A compiled submodule inserts `_orig_mod` into the paths: names stay those of the model.
        self.layers = {
            path.replace("_orig_mod.", "").removesuffix("._orig_mod"): module
            for path, module in self.module.named_modules()
            if path and not isinstance(module, (nn.ModuleList, nn.ModuleDict))
        }

    @property
    def aliases(self) -> dict[str, str]:
        """Other names of layers -> module paths."""
        return {}

    @property
    def has_label_conditioning(self) -> bool:
        """Whether the denoiser has a `class_embedding` that a label goes through."""
        return getattr(self.module, "class_embedding", None) is not None

    def attention_outputs(self) -> dict[str, nn.Module]:
        """Attention layer path -> the module whose output is the layer's output before any residual sum."""
        raise NotImplementedError

    def softmax_attention(self) -> dict[str, nn.Module]:
        """Attention layer path -> the module inside which its softmax attention is computed."""
        raise NotImplementedError

    def to_grid(self, tensor: torch.Tensor, sample_size: tuple[int, int]) -> torch.Tensor:
        """A layer's output as (batch, channel, height, width) where it covers the image, else unchanged.

        Tokens (batch, token, channel) become a grid where their number fits a whole fraction of `sample_size`.
        """
        if tensor.ndim != 3:
            return tensor
        grid = token_grid(tensor.shape[1], sample_size)
        if grid is None:
            return tensor
        return tensor.transpose(1, 2).reshape(tensor.shape[0], -1, *grid)

    def resolve_layers(self, patterns: str | Iterable[str]) -> dict[str, nn.Module]:
        """The layers that one or several names match, in the network's order.

        Args:
            patterns (`str` or iterable of `str`): Module paths, aliases, or globs of either: `*` stands for one
                component of a path or a part of it (`down_blocks.*`), `**` for any number of them (`**.attn`).

        Returns:
            `dict[str, nn.Module]` from module path to module.

        Raises:
            KeyError: if a pattern matches no layer, with the nearest names.
        """
        patterns = [patterns] if isinstance(patterns, str) else list(patterns)
        aliases = self.aliases
        found: set[str] = set()
        for pattern in patterns:
            glob = _glob(pattern)
            matches = {path for path in self.layers if glob.fullmatch(path)}
            matches |= {path for alias, path in aliases.items() if glob.fullmatch(alias)}
            if not matches:
                known = [*self.layers, *aliases]
                nearest = difflib.get_close_matches(pattern, known, n=5, cutoff=0.3) or known[:5]
                raise KeyError(
                    f"No layer of {type(self.module).__name__} matches {pattern!r}; nearest: {', '.join(nearest)}."
                )
            found |= matches
        if not found:
            raise KeyError("Expected at least one layer name or glob, got an empty list.")
        return {path: module for path, module in self.layers.items() if path in found}


def _glob(pattern: str) -> re.Pattern[str]:
    parts = {"**": ".*", "*": "[^.]*", "?": "[^.]"}
    return re.compile("".join(parts.get(part) or re.escape(part) for part in re.split(r"(\*\*|\*|\?)", pattern)))


def stated_channels(module: nn.Module) -> int | None:
    """The number of channels that a module says its output has; `None` where only a call tells."""
    if isinstance(module, nn.Sequential) and len(module):
        return stated_channels(module[-1])
    for name in ("out_channels", "out_features", "num_channels"):
        channels = getattr(module, name, None)
        if isinstance(channels, int):
            return channels
    return None


def token_grid(tokens: int, sample_size: tuple[int, int]) -> tuple[int, int] | None:
    """(height, width) of `tokens` image tokens of a sample, or `None` if they do not cover it evenly."""
    height, width = sample_size
    nearest = round((height * width / tokens) ** 0.5)
    for stride in (nearest, nearest + 1, nearest - 1):  # odd sizes are rounded up where a layer down-samples
        if stride > 0 and (grid := (-(-height // stride), -(-width // stride)))[0] * grid[1] == tokens:
            return grid
    return None
