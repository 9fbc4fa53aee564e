"""The true weights of softmax attention."""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from torch import nn

from diffusers_xai.denoisers import Denoiser
from diffusers_xai.recording.attention import RELATIONS, heads_of, is_to_text, joined, relations, wholes
from diffusers_xai.recording.clock import Run
from diffusers_xai.recording.layers import layer_names
from diffusers_xai.recording.reading import Reading, reading_of
from diffusers_xai.recording.recording import Recording
from diffusers_xai.recording.spec import RecordSpec
from diffusers_xai.taps.attention import AttentionCall, check_backends, tap_attention


QUERIES = ("mean", "all")


@dataclass(frozen=True, kw_only=True)
class AttentionWeights(RecordSpec):
    """Records softmax attention weights: how much a query looks at every key. Over all keys of a layer they sum to 1.

    Arrays: `attention_weights/<layer>`, of the natural relation of each layer: image to text where it looks at a
    condition, else image to image. With `relation`, `attention_weights_<relation>/<layer>` of the layers that have it.
    Dims, behind (step, sample, [branch]):

    | relation | `queries="mean"` | `queries="all"` | with `pixels` |
    |---|---|---|---|
    | image_to_text | head, token | head, height, width, token | head, pixel, token |
    | image_to_image | head, height, width (of the keys) | head, query, height, width | head, pixel, height, width |
    | text_to_image | head, height, width (of the keys) | head, height, width, token | |

    The coordinates `row` and `column` say where a pixel or query lies, `token` holds the strings of the text's tokens,
    as a reader sees them: where several have the bytes of one character (accents, Chinese, emoji), each shows it.
    Where these differ between images, branches or, with a [`PromptSwitch`], steps, `text` holds them, over those dims
    and `token`. They are those of the encoders whose output the layer is given, "" for what comes from no token, and
    missing where that cannot be followed. Videos have `frame`
    before `height`, sound has `frame` in place of both. Attention whose tokens are not known to lie on an image is
    (head, [query,] token). A second attention in one layer (IP-Adapter, differential attention) is `…/<layer>@2`.
    Linear attention has no such weights: see [`AttentionOutputs`].

    Args:
        layers (`str` or list of `str`, *optional*): See [`Activations`]; all layers of softmax attention if `None`.
        relation (`str`, *optional*): `"image_to_text"`, `"image_to_image"` or `"text_to_image"`.
        queries (`str`, defaults to `"mean"`): `"mean"` over all queries, or `"all"`.
        pixels (sequence of `(row, column)`, *optional*): Query pixels at the sample's resolution; each means the
            query of the layer's grid that covers it; of a video, in its first frame.
        heads (`int` or sequence of `int`, *optional*): 0-based indices of heads, in the order in which they are
            wanted, which the coordinate `head` tells; all if `None`.
        steps, timesteps, every: See [`RecordSpec`].

    Raises:
        KeyError: when recording starts, if a name matches no layer.
        ValueError: for values that are not possible, a layer of linear attention, or another attention backend than
            PyTorch's; before the first step, for pixels outside the sample, a head that is not there, or a class whose
            order of image and text is not known.
    """

    layers: str | Iterable[str] | None = None
    relation: str | None = None
    queries: str = "mean"
    pixels: Sequence[tuple[int, int]] | None = None
    heads: int | Sequence[int] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layers is not None:
            object.__setattr__(self, "layers", layer_names(self.layers))
        if self.relation is not None and self.relation not in RELATIONS:
            raise ValueError(f"Expected `relation` in {RELATIONS}, got {self.relation!r}.")
        if self.queries not in QUERIES:
            raise ValueError(f"Expected `queries` in {QUERIES}, got {self.queries!r}.")
        if self.pixels is not None:
            if self.queries == "all" or self.relation == "text_to_image":
                raise ValueError(
                    f"Expected image queries for `pixels`, got queries={self.queries!r}, relation={self.relation!r}."
                )
            pixels = tuple((int(row), int(column)) for row, column in self.pixels)
            if not pixels:
                raise ValueError(f"Expected `pixels` as one or several (row, column), got {self.pixels!r}.")
            object.__setattr__(self, "pixels", pixels)
        if self.heads is not None:
            heads = tuple(int(head) for head in _as_list(self.heads))
            if not heads or min(heads) < 0:
                raise ValueError(f"Expected `heads` as one or several indices from 0 on, got {self.heads!r}.")
            object.__setattr__(self, "heads", heads)

    def attach(self, recording: Recording, stack: ExitStack) -> None:
        """Taps the attention of every matching layer."""
        run = recording.run
        layers = softmax_layers(run.denoiser, self.layers)
        heads = {path: heads_of(module) for path, module in layers.items()}
        group = "attention_weights" if self.relation is None else f"attention_weights_{self.relation}"
        named = [path for path in layers if self.layers is not None and run.denoiser.is_named(path, self.layers)]
        names = {path: f"{group}/{path}" for path in layers}
        recording.expect(self, list(names.values()) if named else [], exclusive=True)
        run.origins.ask_of_attention(layers)
        recording.follow_prompt(stack)
        found: set[str] = set()

        def check_pixels() -> None:
            outside = [
                p for p in self.pixels or () if any(not 0 <= i < n for i, n in zip(p, run.sample_size, strict=True))
            ]
            if outside:
                raise ValueError(
                    f"AttentionWeights: expected pixels (row, column) within {run.sample_size}, got {outside[:5]}."
                )

        readings: dict[Any, list[tuple[slice, Reading, bool]]] = {}

        def keep(path: str, rows: int, calls: list[AttentionCall]) -> None:
            form = path, rows, run.labelling.form, *[call.form for call in calls]
            known = readings.get(form)
            if known is None:
                known = readings[form] = self._readings(run, path, layers[path], rows, calls, path in named)
                found.update([path] if known else [])
            device = None if recording.is_selected(self) else "meta"
            for part, reading, of_text in known:
                values = reading.values(joined(calls[part]), heads[path], device)
                recording.keep(self, names[path], values, reading.dims, reading.coords, is_own=True, of_text=of_text)

        def check_found() -> None:
            if recording.looks(self) and not found:
                raise ValueError(
                    f"AttentionWeights: expected layers whose softmax attention of {self.relation or 'any relation'}"
                    f" PyTorch shows, got none of {run.denoiser.name}."
                )

        if self.pixels is not None:
            run.on_start(check_pixels)
        run.before_step(check_found)
        stack.enter_context(tap_attention(layers, keep, lambda: recording.looks(self)))

    def _readings(
        self, run: Run, path: str, module: nn.Module, rows: int, calls: Sequence[AttentionCall], is_named: bool
    ) -> list[tuple[slice, Reading, bool]]:
        """Which attentions of a layer are read, how, and whether their tokens are the prompt's."""
        heads = heads_of(module)
        parts = wholes(calls, run.labelling, path, rows, heads)
        if calls and not parts and is_named:
            raise ValueError(
                f"AttentionWeights: expected {path} to attend in every row of the denoiser's batch; guidance leaves"
                " out some."
            )
        to_text = [is_to_text(run.labelling, module, i, len(parts)) for i in range(len(parts))]
        found = []
        for part, is_of_text in sorted(zip(parts, to_text, strict=True), key=lambda pair: not pair[1]):
            call = joined(calls[part])
            known = relations(run.labelling, path, call)
            if (self.relation or self.pixels) and run.labelling.looks_from_image(path) is None:
                known = {}
            name = self.relation or next((n for n in (*RELATIONS, "") if n in known), None)
            if "" in known and self.relation is not None:
                raise ValueError(
                    f"AttentionWeights: expected a class whose image and text tokens are known, to tell"
                    f" {self.relation!r}, got {run.denoiser.name}: say with `register_layout` where they are."
                )
            if name is None or name not in known:
                if is_named:
                    raise ValueError(
                        f"AttentionWeights: expected {path} to relate {self.relation or 'image and text'}; it has"
                        f" {', '.join(known) or 'neither, as far as is known'}."
                    )
                continue
            reading = reading_of(
                run.labelling,
                call,
                known[name],
                heads,
                from_text=name == "text_to_image",
                mean=self.queries == "mean",
                pixels=self.pixels,
                chosen=None if self.heads is None else _as_list(self.heads),
            )
            found.append((part, reading, is_of_text and bool(name) and "token" in reading.dims))
        return found


def _as_list(heads: int | Iterable[int]) -> list[int]:
    return [heads] if isinstance(heads, int) else list(heads)


def softmax_layers(denoiser: Denoiser, layers: str | Iterable[str] | None) -> dict[str, nn.Module]:
    """The layers of softmax attention that are meant; all if `layers` is `None`.

    Raises:
        KeyError: if a name matches no layer.
        ValueError: if one has no softmax attention, or a backend computes it that does not show its weights.
    """
    available = denoiser.softmax_attention()
    if layers is None:
        if not available:
            raise ValueError(f"AttentionWeights: expected a network with softmax attention, got {denoiser.name}.")
        found = available
    else:
        patterns = layer_names(layers)
        asked = denoiser.resolve_layers(patterns)
        without = [path for path in asked if path not in available and denoiser.is_named(path, patterns)]
        found = {path: module for path, module in asked.items() if path in available}
        if without or not found:
            raise ValueError(
                f"Expected layers of softmax attention, available: {', '.join(available) or 'none'}; got"
                f" {', '.join(without[:5] or list(asked)[:5])}. `AttentionOutputs` shows linear attention."
            )
    check_backends(found)
    return found
