"""A denoiser of any class seen as named layers: what every model family answers about itself."""

import difflib
import re
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_processor import Attention
from torch import nn

from diffusers_xai.denoisers.layouts import Layout, layout_of
from diffusers_xai.profile.names import layer_path, short_name


_ATTENTION = re.compile(r"(?!.*Block).*(?:Attention|Attn)(?:2_0|1d|1D)?")


class Denoiser:
    """The network, or the networks, that a pipeline calls before `scheduler.step`.

    Args:
        components (mapping from `str` to `nn.Module`): The pipeline's components by name, wrapped (see [`unwrapped`])
            or not. Layers of the first go by their module path, those of further ones have the component's name in
            front.

    Attributes:
        components (`dict[str, nn.Module]`): The networks themselves, out of any wrapper.
        module (`nn.Module`): The first of them.
        layers (`dict[str, nn.Module]`): Layer name -> module, without the roots and the lists that never run.
        layout (`Layout` or `None`): What is known of the first one's class.
    """

    def __init__(self, components: Mapping[str, nn.Module]):
        self.pipeline_modules = list(components.values())
        self.components: dict[str, Any] = {name: unwrapped(module) for name, module in components.items()}
        self.module: Any = next(iter(self.components.values()))
        self.layout: Layout | None = layout_of(self.module)
        self.layers: dict[str, nn.Module] = {}
        for name, component in self.components.items():
            prefix = "" if component is self.module else f"{name}."
            for path, module in component.named_modules():
                # A compiled submodule inserts `_orig_mod` into the paths: names stay those of the model.
                path = path.replace("_orig_mod.", "").removesuffix("._orig_mod")
                if path and not isinstance(module, (nn.ModuleList, nn.ModuleDict)):
                    self.layers[prefix + path] = module

    @property
    def name(self) -> str:
        """The class of the network."""
        return type(self.module).__name__

    @property
    def config(self) -> Mapping[str, Any]:
        """The network's configuration; empty for a plain `nn.Module`."""
        return dict(getattr(self.module, "config", {}))

    @cached_property
    def aliases(self) -> dict[str, str]:
        """Other names of layers -> module paths."""
        return dict(getattr(self.module, self.layout.aliases)) if self.layout and self.layout.aliases else {}

    def component_of(self, path: str) -> str:
        """The component that a layer belongs to."""
        names = list(self.components)
        return next((name for name in names[1:] if path.startswith(f"{name}.")), names[0])

    def looks_from_image(self, path: str) -> bool:
        """Whether an attention layer is known to look from the image, which may be one part of its sequence."""
        component = self.component_of(path)
        layout = layout_of(self.components[component])
        inside = path if self.components[component] is self.module else path.removeprefix(f"{component}.")
        return layout is not None and inside.partition(".")[0] in layout.image_blocks

    @cached_property
    def attention_layers(self) -> dict[str, nn.Module]:
        """Attention layer -> its module, of any kind of attention."""
        return {path: module for path, module in self.layers.items() if is_attention(module)}

    def softmax_attention(self) -> dict[str, nn.Module]:
        """Attention layer -> the module inside which its softmax attention is computed."""
        return {
            path: module
            for path, module in self.attention_layers.items()
            if "Linear" not in type(getattr(module, "processor", None)).__name__
        }

    def attention_outputs(self) -> dict[str, nn.Module]:
        """Attention layer -> the module whose output is the layer's output before any residual sum.

        diffusers' `Attention` may add its residual inside; its last projection is before it.
        """
        return {
            path: self.layers.get(f"{path}.to_out.1", module)
            if getattr(module, "residual_connection", False)
            else module
            for path, module in self.attention_layers.items()
        }

    def resolve_layers(self, patterns: str | Iterable[str]) -> dict[str, nn.Module]:
        """The layers that one or several names match, in the network's order.

        Args:
            patterns (`str` or iterable of `str`): Module paths, aliases, or globs of either: `*` stands for one
                component of a path or a part of it (`down_blocks.*`), `**` for any number of them (`**.attn`).

        Returns:
            `dict[str, nn.Module]` from module path to module.

        Raises:
            KeyError: if a pattern matches no layer, with the nearest names.
            ValueError: if a named layer is given its input in chunks.
        """
        patterns = [patterns] if isinstance(patterns, str) else list(patterns)
        found: set[str] = set()
        for pattern in patterns:
            glob = _glob(pattern)
            matches = {path for path in self.layers if glob.fullmatch(path)}
            matches |= {path for alias, path in self.aliases.items() if glob.fullmatch(alias)}
            if not matches:
                known = [*self.layers, *self.aliases]
                nearest = difflib.get_close_matches(pattern, known, n=5, cutoff=0.3) or known[:5]
                raise KeyError(f"Expected layers of {self.name}, got {pattern!r}; nearest: {', '.join(nearest)}.")
            found |= matches
        if not found:
            raise KeyError("Expected at least one layer name or glob, got an empty list.")
        in_chunks = {path for path in found if self._is_in_chunks(path)}
        if in_chunks == found or any(self.is_named(path, patterns) for path in in_chunks):
            raise ValueError(
                f"Expected layers that see all rows and tokens at once, got {', '.join(sorted(in_chunks)[:5])}:"
                f" forward chunking is on. Call `disable_forward_chunking()` on {self.name} before."
            )
        found -= in_chunks
        return {path: module for path, module in self.layers.items() if path in found}

    def _is_in_chunks(self, path: str) -> bool:
        """Whether a layer lies in a feed-forward layer that its block calls chunk by chunk."""
        parts = path.split(".")
        blocks = ((self.layers.get(".".join(parts[:i])), parts[i]) for i in range(1, len(parts)))
        return any(getattr(block, "_chunk_size", None) and leaf.startswith("ff") for block, leaf in blocks)

    def is_named(self, path: str, patterns: Iterable[str]) -> bool:
        """Whether one of `patterns` names the layer itself, and not a glob that it happens to match."""
        return any(path == layer_path(pattern, self.aliases) for pattern in patterns)

    def short_name(self, path: str) -> str:
        """The shortest alias of a layer, or its path."""
        return short_name(path, self.aliases)


def unwrapped(module: nn.Module) -> Any:
    """The network in a wrapper that passes calls on and has no weights of its own.

    Out of `torch.compile` and `DistributedDataParallel` comes any network. Of others, peft's or the user's own, it
    comes only if its class is known: what they do beside that is then no part of a layer.
    """
    inner = getattr(module, "_orig_mod", None) or (
        module.module if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)) else None
    )
    if inner is not None:
        return unwrapped(inner)
    found: nn.Module | None = module
    while found is not None and layout_of(found) is None:
        children = list(found.children())
        is_wrapper = len(children) == 1 and not any(True for _ in found.parameters(recurse=False))
        found = getattr(children[0], "_orig_mod", children[0]) if is_wrapper else None
    return module if found is None else found


def is_attention(module: nn.Module) -> bool:
    """Whether a module is an attention layer: one of diffusers', or one whose class says so."""
    return isinstance(module, (Attention, AttentionModuleMixin)) or bool(_ATTENTION.fullmatch(type(module).__name__))


def channels_beside_mlp(module: Any) -> int | None:
    """How many channels attention puts into a last projection that it shares with an MLP; `None` elsewhere."""
    return module.inner_dim if hasattr(module, "to_qkv_mlp_proj") else None


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
