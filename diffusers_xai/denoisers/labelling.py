"""Names for the dims of what a denoiser receives and of what its layers put out."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import torch
from torch import nn

from diffusers_xai.denoisers.axes import channel_axis, channels_come_first, token_axis
from diffusers_xai.denoisers.base import Denoiser
from diffusers_xai.denoisers.call import DenoiserCall
from diffusers_xai.denoisers.grids import strided
from diffusers_xai.denoisers.layouts import Layout, layout_of
from diffusers_xai.denoisers.origins import Origins, holds_sample, marks_of, position_of, run_of


POSITIONS = {1: ("frame",), 2: ("height", "width"), 3: ("frame", "height", "width")}
# Blocks over time by their paths and classes; what has "SpatioTemporal" in its name holds layers over space too.
_OVER_TIME = re.compile("motion_modules|temp")
_TEMPORAL = re.compile("(?<!Spatio)Temporal")


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
        origins (`Origins`, *optional*): Which tokens come from the sample; all of them if `None`. A sequence is the
            image's, and has its height and width, only if it comes from the sample, however long it is.
        ran (mapping from `str` to `int`, *optional*): How often a layer has run in the call, where that matters.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        call: DenoiserCall,
        origins: Origins | None = None,
        ran: Mapping[str, int] | None = None,
    ):
        self._origins = origins
        self._ran = {} if ran is None else ran
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
    def _sample(self) -> Labelled:
        return self.sample(self.call.sample)

    @property
    def positions(self) -> tuple[int, ...]:
        """Sizes of the dims over which the sample extends, such as (height, width)."""
        return tuple(self._sample.values.shape[2:])

    @property
    def position_dims(self) -> tuple[str, ...]:
        """Their names."""
        return self._sample.dims[1:]

    @property
    def size(self) -> tuple[int, ...] | None:
        """(height, width) of the sample, of sound (frame,); `None` if it is not known to have them."""
        is_known = len(self.positions) > 1 or self.position_dims == POSITIONS[1]
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
        if channels is None and len(shape) == 3:  # its layers tell
            layers = list(self.call.module.modules())
            takes_last = any(isinstance(layer, nn.Linear) and layer.in_features == shape[2] for layer in layers)
            return takes_last and not any(getattr(layer, "in_channels", None) == shape[1] for layer in layers)
        return len(shape) in (3, 5) and shape[2] == channels != shape[1]

    @cached_property
    def form(self) -> tuple[Any, ...]:
        """What of the call says where tokens stand; equal in calls of a run in which every layer means the same."""
        known = self.positions, self.position_dims, self.grid, self.call.text_tokens, self.registers
        return self.call.component, self.call.rows, id(self._origins), *known

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
            return Labelled(tokens.unflatten(2, self.grid), ("channel", *POSITIONS[len(self.grid)]))
        if tensor.ndim == 5:
            last = self.layout is not None and self.layout.channels_last
            values = tensor.movedim(-1, 1) if last else tensor.transpose(1, 2) if self.frames_first else tensor
            return Labelled(values, ("channel", *POSITIONS[3]))
        if tensor.ndim == 3:
            values = tensor.transpose(1, 2) if self.frames_first else tensor
            return Labelled(values, ("channel", "token") if self.layout is None else ("channel", *POSITIONS[1]))
        return Labelled(tensor, ("channel", *POSITIONS.get(tensor.ndim - 2, ())))

    def output(self, path: str, tensor: torch.Tensor, position: int = 0) -> dict[str, Labelled]:
        """A tensor of a layer's output by stream: `"image"`, `"text"`, or `""` where it is not known which it is.

        Args:
            path (`str`): The layer.
            tensor (`torch.Tensor`): The tensor.
            position (`int`): Which of the tensors that the layer puts out it is.

        Raises:
            ValueError: if its rows are not those of the call, or it is not known which axis is which.
        """
        module = self.denoiser.layers[path]
        if channels_come_first(module, tensor, self.call):
            tokens = tensor.shape[2]
            return self._tokens(path, tensor.transpose(1, 2), self._from_sample(path, position, 2, tokens))
        if tensor.ndim == 3:
            return self._tokens(path, tensor, self._from_sample(path, position, 1, tensor.shape[1]))
        rows, folded = self._rows(path, tensor)
        if tensor.ndim == 2 and not folded:
            return {"": Labelled(rows, ("channel",))}
        if tensor.ndim == 4:
            return self._of_four_dims(path, rows, folded, position)
        if tensor.ndim == 5 and not folded and channel_axis(self.denoiser, path, tensor.shape) != -1:
            first = self.frames_first and rows.shape[1] == self.frames
            return {"image": Labelled(rows.transpose(1, 2) if first else rows, ("channel", *POSITIONS[3]))}
        raise self._unreadable(path, tensor)

    def outputs(self, path: str, output: Any) -> dict[str, tuple[torch.Tensor, Labelled]]:
        """By stream, the tensor in a module's output that holds it, and the stream itself.

        Raises:
            TypeError: if there is no tensor in the output.
            ValueError: see `output`.
        """
        tensors = output_tensors(output)
        if not tensors:
            raise TypeError(f"Expected a module output that holds a tensor, got {type(output).__name__}.")
        labelled = [(tensors[0], self.output(path, tensors[0]))]
        if len(tensors) > 1 and self.layout is not None and self.layout.order is not None and tensors[1].ndim == 3:
            if self._origins is not None and not self._origins:
                raise ValueError(
                    f"{path}: expected a network that can be called beside the run, to tell which of this layer's"
                    f" tensors is the image, got {type(self.call.module).__name__}, which cannot"
                    f" ({getattr(self._origins, 'error', 'its sample is of integers')})."
                )
            labelled.append((tensors[1], self.output(path, tensors[1], 1)))
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

    def stream_in(self, path: str, tensor: torch.Tensor, name: str = "image") -> Labelled:
        """One stream in the tensor that `stream` gave, or in one of its form.

        Raises:
            ValueError: see `output`.
        """
        streams = self.output(path, tensor, self._position(path, name))
        return streams.get(name) or streams.get("") or next(iter(streams.values()))

    def edited(
        self, path: str, tensor: torch.Tensor, stream: str, edit: Callable[[Labelled], torch.Tensor]
    ) -> torch.Tensor:
        """`tensor`, a layer's output, with the values of one stream replaced by `edit(stream)`; out of place."""
        original = self.stream_in(path, tensor, stream)
        values = edit(original)
        if original.values.shape == tensor.shape and original.values.stride() == tensor.stride():
            return values
        changed = tensor.clone()
        self.stream_in(path, changed, stream).values.copy_(values)  # streams are views
        return changed

    def looks_from_image(self, path: str) -> bool | None:
        """Whether an attention layer puts out tokens of the sample; `None` if that could not be found out."""
        return True if self.denoiser.looks_from_image(path) else holds_sample(self._origins, path)

    def _position(self, path: str, stream: str) -> int:
        """Which of the tensors that a layer puts out holds a stream."""
        has_order = self.layout is not None and self.layout.order is not None
        return position_of(self._origins, path, stream) if has_order else 0

    def _from_sample(self, path: str, position: int, axis: int, size: int) -> Sequence[bool] | None:
        """Which indices of an axis of a layer's output hold places of the sample; `None` if that is not known."""
        return marks_of(self._origins, path, position, axis, size, self._ran.get(path, 0))

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
            return path.rpartition(".")[2] in ("attn2", "cross_attn", "cross_attention")
        # A layer that could take a condition may be left to look at the image (Kandinsky 3).
        widths = [getattr(getattr(module, name, None), "in_features", None) for name in ("to_q", "to_k")]
        return bool(stated) and (widths[0] != widths[1] or self.call.text_tokens in (None, keys))

    def over_time(self, path: str, batch: int, tokens: int) -> tuple[int, ...] | None:
        """(height, width) of the places that are rows of a layer whose tokens are frames; `None` in other layers."""
        if not self.frames or self.size is None or tokens != self.frames or batch <= self.rows:
            return None
        if batch == self.rows * self.frames and not self._is_over_time(path):  # as many places as frames
            return None
        places = strided(batch // self.rows, self.size)
        return places if places is not None and batch == self.rows * prod(places) else None

    def _is_over_time(self, path: str) -> bool:
        parts = path.split(".")
        above = (self.denoiser.layers.get(".".join(parts[: i + 1])) for i in range(len(parts)))
        return bool(_OVER_TIME.search(path)) or any(_TEMPORAL.search(type(module).__name__) for module in above)

    def _tokens(self, path: str, tensor: torch.Tensor, from_sample: Sequence[bool] | None) -> dict[str, Labelled]:
        """(row, token, channel) by stream."""
        tokens, places = tensor.shape[1], self.over_time(path, tensor.shape[0], tensor.shape[1])
        if places is not None and (from_sample is None or any(from_sample)):
            grid = tensor.unflatten(0, (self.rows, *places)).permute(0, 4, 3, 1, 2)
            return {"image": Labelled(grid, ("channel", *POSITIONS[3]))}
        rows, folded = self._rows(path, tensor)
        if folded:
            cells = self.image_grid(tokens, frame=True) if from_sample and all(from_sample) else None
            if cells is None or len(cells) != 2:
                raise self._unreadable(path, tensor)
            return {"image": Labelled(rows.unflatten(2, cells).permute(0, 4, 1, 2, 3), ("channel", *POSITIONS[3]))}
        if from_sample is None:
            return {"": _as_tokens(rows)}
        if not any(from_sample):
            return {"text": _as_tokens(rows)}
        image = run_of(from_sample)
        grid = self.image_grid(image.stop - image.start) if image is not None else None
        if image is None or grid is None:
            return {"": _as_tokens(rows)}
        values = rows[:, image].transpose(1, 2).unflatten(2, grid)
        found = {"image": Labelled(values, ("channel", *POSITIONS[len(grid)]))}
        is_packed = self.call.sample.ndim == 3 and len(grid) > 1 and tokens == self.call.sample.shape[1]
        order = self.layout.order if self.layout is not None else None
        if all(from_sample) or is_packed:  # references stand behind the image
            return found
        if order is None:
            return {"": _as_tokens(rows)}
        parts = self.parts(tokens, order)
        if parts["image"] != image:
            raise ValueError(
                f"{path}: expected the image at tokens {parts['image'].start} to {parts['image'].stop - 1}, by the"
                f" `order` of its layout, got it at {image.start} to {image.stop - 1} of {tokens}."
            )
        return {**found, "text": _as_tokens(rows[:, parts["text"]])} if "text" in parts else found

    def _of_four_dims(self, path: str, rows: torch.Tensor, folded: bool, position: int) -> dict[str, Labelled]:
        """(row, channel, height, width), frames folded into rows; heads; tokens with a dim of their own."""
        shape = (self.rows, *(rows.shape[2:] if folded else rows.shape[1:]))
        axis = channel_axis(self.denoiser, path, shape)
        attention = self.denoiser.attention_layers
        # Of a U-Net, attention itself gives back the form of its input.
        inside = any(path.startswith(f"{name}.") for name in attention) or (
            path in attention and self.grid is not None
        )
        if folded:
            if axis == -1 or (inside and axis is None):
                raise self._unreadable(path, rows)
            return {"image": Labelled(rows.transpose(1, 2), ("channel", *POSITIONS[3]))}
        of_sample = self._from_sample(path, position, 1, shape[1])
        if axis == 1 or (axis is None and not inside and any(of_sample or ())):
            return {"image": Labelled(rows, ("channel", *POSITIONS[2]))}
        is_projection = isinstance(self.denoiser.layers[path], nn.Linear)
        if of_sample is not None and not any(of_sample) and (is_projection or not inside):
            return {"text": _as_tokens(rows.flatten(1, 2))}  # of one image prompt or several
        if inside:
            tokens = token_axis(self.denoiser, path, shape)
            if tokens is None:
                raise self._unreadable(path, rows)
            heads = rows if tokens == 2 else rows.transpose(1, 2)  # (row, head, token, channel)
            from_sample = self._from_sample(path, position, tokens, shape[tokens])
            name = "text" if from_sample is not None and not any(from_sample) else ""
            return {name: Labelled(heads.transpose(2, 3), ("head", "channel", "token"))}
        from_sample = self._from_sample(path, position, 2, shape[2])
        if shape[1] == 1:
            return self._tokens(path, rows[:, 0], from_sample)
        if from_sample and all(from_sample) and self.image_grid(shape[1] * shape[2]) == shape[1:3]:
            return {"image": Labelled(rows.permute(0, 3, 1, 2), ("channel", *POSITIONS[2]))}
        raise self._unreadable(path, rows)

    def _rows(self, path: str, tensor: torch.Tensor) -> tuple[torch.Tensor, bool]:
        """(row, …), or (row, frame, …) and `True` where the layer takes frames as rows."""
        if tensor.shape[0] == self.rows:
            return tensor, False
        if self.frames and tensor.shape[0] == self.rows * self.frames:
            return tensor.unflatten(0, (self.rows, self.frames)), True
        raise self._unreadable(path, tensor)

    def _unreadable(self, path: str, tensor: torch.Tensor) -> ValueError:
        return ValueError(
            f"{path}: expected an output with the {self.rows} rows of the denoiser's batch, got shape"
            f" {tuple(tensor.shape)}."
        )


def output_tensors(output: Any) -> list[torch.Tensor]:
    """The tensors that stand in a module's output itself, not in containers in it."""
    values = output.values() if isinstance(output, dict) else output if isinstance(output, (tuple, list)) else [output]
    return [value for value in values if isinstance(value, torch.Tensor)]


def _as_tokens(rows: torch.Tensor) -> Labelled:
    return Labelled(rows.transpose(1, 2), ("channel", "token"))
