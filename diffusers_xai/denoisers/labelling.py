"""Names for the dims of what a denoiser receives and of what its layers put out."""

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import torch
from torch import nn

from diffusers_xai.denoisers.base import Denoiser, is_attention
from diffusers_xai.denoisers.call import DenoiserCall
from diffusers_xai.denoisers.grids import strided
from diffusers_xai.denoisers.layouts import Layout, layout_of


_POSITIONS = {1: ("frame",), 2: ("height", "width"), 3: ("frame", "height", "width")}
# Layers that project what attention looks at: the condition always, or in cross-attention.
_CONDITION_ALWAYS = (
    "add_k_proj", "add_v_proj", "add_q_proj", "to_add_out", "kv_mapper", "encoder_hid_proj", "condition_embedder",
    "cross_attn_norm_c",
)  # fmt: skip
_OVER_TIME = re.compile("motion|temp")
_CONDITION_IN_CROSS = ("to_k", "to_v", "to_kv", "norm_k", "k_norm", "norm_cross")


@dataclass(frozen=True)
class Labelled:
    """A tensor (row, *dims) whose rows are those of the denoiser's call.

    Attributes:
        values (`torch.Tensor` of shape `(row, …)`): The values.
        dims (`tuple[str, ...]`): Names of the dims behind the rows.
    """

    values: torch.Tensor
    dims: tuple[str, ...]


class Labelling:
    """What the dims mean in one call of a denoiser.

    Args:
        denoiser ([`Denoiser`]): The denoiser.
        call ([`DenoiserCall`]): The call.
    """

    def __init__(self, denoiser: Denoiser, call: DenoiserCall):
        self.denoiser = denoiser
        self.call = call
        self.layout: Layout | None = layout_of(call.module)
        self.copies = 1  # of every image, in a replay

    @property
    def rows(self) -> int:
        """How many rows the batch has."""
        return self.call.rows * self.copies

    @cached_property
    def grid(self) -> tuple[int, ...] | None:
        """The grid of the image tokens, see [`Layout`]; `None` where levels have their own grids."""
        return self.layout.grid(self.call) if self.layout is not None and self.layout.grid is not None else None

    @cached_property
    def positions(self) -> tuple[int, ...]:
        """Sizes of the dims over which the sample extends, such as (height, width)."""
        return tuple(self.sample(self.call.sample).values.shape[2:])

    @property
    def position_dims(self) -> tuple[str, ...]:
        """Their names."""
        return self.sample(self.call.sample).dims[1:]

    @property
    def size(self) -> tuple[int, ...] | None:
        """(height, width) of the sample, of sound (frame,); `None` if it is not known to have them."""
        is_known = len(self.positions) > 1 or self.position_dims == _POSITIONS[1]
        return self.positions[-2:] if is_known else None

    @property
    def frames(self) -> int | None:
        """Number of frames of a video."""
        return self.positions[0] if len(self.positions) == 3 else None

    @cached_property
    def frames_first(self) -> bool:
        """Whether a sample of video or sound, or of tokens of an unknown kind, is (row, frame, channel, …)."""
        if self.layout is not None:
            return self.layout.frames_first
        channels, shape = self.denoiser.config.get("in_channels"), self.call.sample.shape
        return len(shape) in (3, 5) and shape[2] == channels != shape[1]

    @property
    def registers(self) -> int:
        """Number of register tokens."""
        name = self.layout.registers if self.layout is not None else None
        held = self.call.arguments.get(name, getattr(self.call.module, name, None)) if name else None
        return 0 if held is None else held.shape[-2]

    @property
    def registers_beside_image(self) -> int:
        """Number of register tokens in a sequence of the image alone, in front of it."""
        order = self.layout.order if self.layout is not None else None
        return self.registers if order is not None and "text" not in order else 0

    def sample(self, tensor: torch.Tensor) -> Labelled:
        """A state of the scheduler, or anything of its form, as (row, channel, *positions)."""
        if tensor.ndim == 3 and self.grid is not None and len(self.grid) > 1:  # packed; references stand last
            tokens = tensor[:, : prod(self.grid)].transpose(1, 2)
            return Labelled(tokens.unflatten(2, self.grid), ("channel", *_POSITIONS[len(self.grid)]))
        if tensor.ndim == 5:
            values = tensor.transpose(1, 2) if self.frames_first else tensor
            return Labelled(values, ("channel", *_POSITIONS[3]))
        if tensor.ndim == 3:
            values = tensor.transpose(1, 2) if self.frames_first else tensor
            return Labelled(values, ("channel", "token") if self.layout is None else ("channel", *_POSITIONS[1]))
        return Labelled(tensor, ("channel", *_POSITIONS.get(tensor.ndim - 2, ())))

    def output(self, path: str, tensor: torch.Tensor) -> dict[str, Labelled]:
        """A layer's output by stream: `"image"`, `"text"`, or `""` where the family's streams are not known.

        Raises:
            ValueError: if its rows are not those of the call.
        """
        module = self.denoiser.layers[path]
        if _channels_come_first(module, tensor, self.call):
            tensor = tensor.transpose(1, 2)  # like tokens: (row, token, channel)
        if tensor.ndim == 3:
            return self._tokens(path, module, tensor)
        rows, folded = self._rows(path, tensor)
        if tensor.ndim == 2 and not folded:
            return {"": Labelled(rows, ("channel",))}
        if tensor.ndim == 4 and not folded and self._is_heads(tensor):
            return {"": Labelled(rows.permute(0, 2, 3, 1), ("head", "channel", "token"))}
        if tensor.ndim == 4:
            if folded:
                return {"image": Labelled(rows.transpose(1, 2), ("channel", *_POSITIONS[3]))}
            return {"image": Labelled(rows, ("channel", *_POSITIONS[2]))}
        if tensor.ndim == 5 and not folded:
            first = self.frames_first and rows.shape[1] == self.frames
            return {"image": Labelled(rows.transpose(1, 2) if first else rows, ("channel", *_POSITIONS[3]))}
        raise self._unreadable(path, tensor)

    def outputs(self, path: str, output: Any) -> dict[str, tuple[torch.Tensor, Labelled]]:
        """By stream, the tensor in a module's output that holds it, and the stream itself.

        Raises:
            TypeError: if there is no tensor in the output.
            ValueError: if its rows are not those of the call.
        """
        values = (
            output.values() if isinstance(output, dict) else output if isinstance(output, (tuple, list)) else [output]
        )
        tensors = [value for value in values if isinstance(value, torch.Tensor)]
        if not tensors:
            raise TypeError(f"Expected a module output that holds a tensor, got {type(output).__name__}.")
        labelled = [(tensors[0], self.output(path, tensors[0]))]
        if len(tensors) > 1 and self.layout is not None and self.layout.order is not None and tensors[1].ndim == 3:
            labelled.append((tensors[1], self.output(path, tensors[1])))
            if all(set(streams) == {"image"} for _, streams in labelled):  # as many tokens in both
                order = ("image", "text") if is_attention(self.denoiser.layers[path]) else self.layout.returns
                labelled = [
                    (tensor, {name: streams["image"]}) for name, (tensor, streams) in zip(order, labelled, strict=True)
                ]
        found: dict[str, tuple[torch.Tensor, Labelled]] = {}
        for tensor, streams in labelled:
            for name, part in streams.items():
                found.setdefault(name, (tensor, part))
        return found

    def stream(self, path: str, output: Any, name: str = "image") -> tuple[torch.Tensor, Labelled]:
        """One stream of a module's output: the tensor that holds it, and the stream; the only one where there is one.

        Raises:
            TypeError, ValueError: see `outputs`.
        """
        streams = self.outputs(path, output)
        return streams.get(name) or streams.get("") or next(iter(streams.values()))

    def edited(
        self, path: str, tensor: torch.Tensor, stream: str, edit: Callable[[Labelled], torch.Tensor]
    ) -> torch.Tensor:
        """`tensor`, a layer's output, with the values of one stream replaced by `edit(stream)`; out of place."""
        original = self.output(path, tensor)
        name = stream if stream in original else next(iter(original))
        values = edit(original[name])
        if original[name].values.shape == tensor.shape and original[name].values.stride() == tensor.stride():
            return values
        changed = tensor.clone()
        self.output(path, changed)[name].values.copy_(values)  # streams are views
        return changed

    def parts(self, tokens: int, order: Sequence[str] | None) -> dict[str, slice]:
        """Where image and text lie in a sequence of `tokens` tokens of joint attention; text may be absent.

        Raises:
            ValueError: if the order of image and text is not known in this class, or their numbers do not add up.
        """
        if order is None or self.grid is None:
            raise ValueError(
                f"The order of text and image in {type(self.call.module).__name__} is not known; tell it with"
                " `register_layout`."
            )
        image, text, found, start = prod(self.grid), self.call.text_tokens, {}, 0
        padded = "pad" in order
        for i, part in enumerate(order):
            if part == "pad":
                start = -(-start // 32) * 32
                continue
            rest = tokens - start - (image if "image" in order[i + 1 :] else 0)
            size = {"image": image, "register": self.registers, "text": rest, "reference": rest}[part]
            if part == "text" and text is not None and (padded or "reference" in order):
                size = text
            found[part] = slice(start, start + size)
            start += size
        found = {name: part for name, part in found.items() if part.start < part.stop <= tokens}
        if "image" not in found:
            raise ValueError(f"Expected a sequence with the {image} tokens of the image, got {tokens} tokens.")
        return found

    def image_grid(self, tokens: int, frame: bool = False) -> tuple[int, ...] | None:
        """The grid of `tokens` image tokens, of a single frame if `frame`; `None` if they do not lie on one."""
        if self.grid is not None:
            grid = self.grid[1:] if frame else self.grid
            return grid if tokens == prod(grid) else None
        if self.size is None or self.layout is None:
            return None
        return strided(tokens, self.size)

    def crosses(self, path: str, keys: int) -> bool:
        """Whether an attention layer whose keys are `keys` tokens looks at the condition."""
        module: Any = self.denoiser.layers.get(path)
        stated = getattr(module, "is_cross_attention", None)
        if stated is None:
            return path.rpartition(".")[2] in ("attn2", "cross_attn")
        # A layer that could take a condition may be left to look at the image (Kandinsky 3).
        widths = [getattr(getattr(module, name, None), "in_features", None) for name in ("to_q", "to_k")]
        return bool(stated) and (widths[0] != widths[1] or self.call.text_tokens in (None, keys))

    def over_time(self, path: str, batch: int, tokens: int) -> tuple[int, ...] | None:
        """(height, width) of the places that are rows of a layer whose tokens are frames; `None` in other layers."""
        if not self.frames or self.size is None or tokens != self.frames or batch <= self.rows:
            return None
        if batch == self.rows * self.frames and not _OVER_TIME.search(path):  # as many places as frames
            return None
        places = strided(batch // self.rows, self.size)
        return places if places is not None and batch == self.rows * prod(places) else None

    def _tokens(self, path: str, module: nn.Module, tensor: torch.Tensor) -> dict[str, Labelled]:
        tokens, places = tensor.shape[1], self.over_time(path, tensor.shape[0], tensor.shape[1])
        if places is not None:
            grid = tensor.unflatten(0, (self.rows, *places)).permute(0, 4, 3, 1, 2)
            return {"image": Labelled(grid, ("channel", *_POSITIONS[3]))}
        rows, folded = self._rows(path, tensor)
        if folded:
            cells = None if self._is_condition(path, tokens) else self.image_grid(tokens, frame=True)
            if cells is None or len(cells) != 2:
                raise self._unreadable(path, tensor)
            return {"image": Labelled(rows.unflatten(2, cells).permute(0, 4, 1, 2, 3), ("channel", *_POSITIONS[3]))}
        if self._is_condition(path, tokens):
            return {"text": _as_tokens(rows)}
        is_packed = self.grid is not None and len(self.grid) > 1 and self.call.sample.ndim == 3
        if is_packed and self.grid is not None and tokens == self.call.sample.shape[1]:
            rows = rows[:, : prod(self.grid)]  # references stand behind the image
        grid = self.image_grid(rows.shape[1])
        if grid is not None:
            values = rows.transpose(1, 2).unflatten(2, grid)
            return {"image": Labelled(values, ("channel", *_POSITIONS[len(grid)]))}
        if self.layout is not None and self.layout.order is not None and self.grid is not None:
            text = self.call.text_tokens or 0
            alone = prod(self.grid) + self.registers_beside_image
            has_image = "text" not in self.layout.order and tokens == alone
            if not has_image and (tokens in (text, text + self.registers) or tokens < prod(self.grid)):
                return {"text": _as_tokens(rows)}
            parts = self.parts(tokens, self.layout.order)
            image = rows[:, parts["image"]].transpose(1, 2).unflatten(2, self.grid)
            found = {"image": Labelled(image, ("channel", *_POSITIONS[len(self.grid)]))}
            return {**found, "text": _as_tokens(rows[:, parts["text"]])} if "text" in parts else found
        return {"": _as_tokens(rows)}

    def _rows(self, path: str, tensor: torch.Tensor) -> tuple[torch.Tensor, bool]:
        """(row, …), or (row, frame, …) and `True` where the layer takes frames as rows."""
        if tensor.shape[0] == self.rows:
            return tensor, False
        if self.frames and tensor.shape[0] == self.rows * self.frames:
            return tensor.unflatten(0, (self.rows, self.frames)), True
        raise self._unreadable(path, tensor)

    def _is_heads(self, tensor: torch.Tensor) -> bool:
        """Whether (row, token, head, channel): what is inside the attention of a transformer."""
        if self.grid is None or self.layout is None:
            return False
        if len(self.grid) == 1:
            return True
        image, text = prod(self.grid), self.call.text_tokens
        return tensor.shape[1] in {image, text, image + (text or 0)} and tuple(tensor.shape[2:]) != self.grid

    def _is_condition(self, path: str, tokens: int) -> bool:
        """Whether a layer projects what cross-attention looks at."""
        parent, _, leaf = path.rpartition(".")
        if leaf in _CONDITION_ALWAYS or is_of_text(path):
            return True
        return leaf in _CONDITION_IN_CROSS and self.crosses(parent, tokens)

    def _unreadable(self, path: str, tensor: torch.Tensor) -> ValueError:
        return ValueError(
            f"{path}: expected an output with the {self.rows} rows of the denoiser's batch, got shape"
            f" {tuple(tensor.shape)}."
        )


@functools.cache
def is_of_text(path: str) -> bool:
    """Whether a layer sees the condition alone, before it meets the image, however many tokens either has."""
    names = ("cap_", "caption_", "txt_", "text_", "add_time_condition", "cross_attention_proj", "to_cond_")
    return any(name.startswith(names) or "context" in name for name in path.split("."))


def _as_tokens(rows: torch.Tensor) -> Labelled:
    return Labelled(rows.transpose(1, 2), ("channel", "token"))


def _channels_come_first(module: nn.Module, tensor: torch.Tensor, call: DenoiserCall) -> bool:
    """Whether a tensor of three dims is (row, channel, token): one-dimensional convolutions, norms over channels."""
    if tensor.ndim != 3:
        return False
    if isinstance(module, (nn.GroupNorm, nn.Conv1d, nn.ConvTranspose1d)):
        return True
    name = type(module).__name__.lower()
    return call.sample.ndim == 3 and ("1d" in name or name in ("resconvblock",))
