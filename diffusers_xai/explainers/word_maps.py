"""Where each word of a prompt looks at the image."""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property

import torch
import torch.nn.functional as F

from diffusers_xai.explainers.attention_weights import softmax_layers
from diffusers_xai.recording.attention import heads_of, is_to_text, joined, relations, wholes
from diffusers_xai.recording.clock import Run
from diffusers_xai.recording.layers import layer_names
from diffusers_xai.recording.recording import Recording
from diffusers_xai.recording.spec import RecordSpec
from diffusers_xai.recording.spelling import read_strings
from diffusers_xai.recording.text import PromptTokens
from diffusers_xai.taps.attention import AttentionCall, tap_attention


@dataclass(frozen=True, kw_only=True)
class WordMaps(RecordSpec):
    """Records, for words of the prompt, how much each place of the image looks at them.

    The softmax weights from image to text, the mean over heads, over a word's sub-tokens and over the layers, each
    layer's map enlarged (bi)linearly to the sample's size; of the branch with the prompt. Array: `word_maps` of dims
    (step, sample, [frame,] height, width, token), of sound (step, sample, frame, token), with the words as coordinate
    `token`; in [0, 1], of differential attention (Stable Audio 3), the difference of two weights, in [-1, 1].

    Args:
        words (`str` or list of `str`): Whole words of the prompt, upper or lower case; several in one string are a
            phrase. A word's tokens are those that hold its characters, or bytes of them. Of one that stands there more
            than once, or in the sequences of several text encoders that a layer looks at in one
            (SD3), its first place is meant. With a [`PromptSwitch`], the prompt is that of each step.
        layers (`str` or list of `str`, *optional*): See [`Activations`]; all layers that look from image to text if
            `None`.
        tokens (sequence of `str`, *optional*): The strings of the condition's tokens, for pipelines without a
            tokenizer or calls with `prompt_embeds`: from the very first token on, start tokens included. Those behind
            the last string, such as padding, have no name.
        steps, timesteps, every: See [`RecordSpec`].

    Raises:
        KeyError: when recording starts, if a name matches no layer.
        ValueError: if `words` is empty; before the first step, for a word that is not in the prompt of a recorded
            step, with its tokens, if no layer looks from image to text, if its keys cannot be followed back to the
            prompt's tokens, or if a layer has fewer tokens than `tokens` names.

    Source: Tang et al. 2023 (DAAM), here per step.
    """

    words: str | Iterable[str] = field(kw_only=False)
    layers: str | Iterable[str] | None = None
    tokens: Sequence[str] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        words = (self.words,) if isinstance(self.words, str) else tuple(self.words)
        if not words or not all(isinstance(word, str) and word.strip() for word in words):
            raise ValueError(f"Expected `words` as one or several words, got {self.words!r}.")
        object.__setattr__(self, "words", words)
        if self.layers is not None:
            object.__setattr__(self, "layers", layer_names(self.layers))
        if self.tokens is not None:
            object.__setattr__(self, "tokens", tuple(str(token) for token in self.tokens))

    def attach(self, recording: Recording, stack: ExitStack) -> None:
        """Taps the attention of every matching layer."""
        run = recording.run
        layers = softmax_layers(run.denoiser, self.layers)
        recording.expect(self, ["word_maps"], exclusive=True)
        run.origins.ask_of_attention(layers)
        prompt = recording.follow_prompt(stack)
        totals: list[torch.Tensor] = []

        def add(path: str, rows_of_layer: int, calls: list[AttentionCall]) -> None:
            parts = wholes(calls, run.labelling, path, rows_of_layer, heads_of(layers[path]))
            every = [joined(calls[part]) for part in parts]
            of_text = [i for i in range(len(every)) if is_to_text(run.labelling, layers[path], i, len(every))]
            call = every[of_text[0]] if of_text else None
            relation = relations(run.labelling, path, call).get("image_to_text") if call is not None else None
            if call is None or relation is None or relation.queries.grid is None:
                return
            rows = [row for row, (branch, _) in enumerate(run.rows()) if branch == "cond"]
            if not rows:
                return
            device = None if recording.is_selected(self) else "meta"
            index, heads = relation.queries.index, heads_of(layers[path])
            weights = call.weights(index, heads, device)
            if getattr(layers[path], "use_differential", False):  # what is put in is the difference of two
                weights = weights - every[1].weights(index, heads, device)
            weights = weights.mean(dim=1)[..., relation.keys.index]
            if weights.shape[0] != run.labelling.rows:  # frames are rows
                weights = weights.unflatten(0, (run.labelling.rows, -1)).flatten(1, 2)
            of_words = self._of_words(prompt, weights[rows], device is None)  # (sample, query, word)
            grid, positions = relation.queries.grid, run.positions
            grid = grid if len(grid) == len(positions) else (positions[0], *grid)
            maps = of_words.transpose(1, 2).unflatten(2, grid)
            mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(positions)]
            totals.append(F.interpolate(maps, size=positions, mode=mode, align_corners=False))

        def keep() -> None:
            if not recording.looks(self):
                return
            if not totals:
                raise ValueError(
                    f"WordMaps: expected layers that look from image to text, got none of {run.denoiser.name}."
                )
            maps = torch.stack(totals).mean(dim=0).movedim(1, -1)
            dims = (*run.labelling.position_dims, "token")
            recording.keep(self, "word_maps", maps, dims, {"token": list(self.words)}, per_branch=False, is_own=True)
            totals.clear()

        run.on_start(lambda: self._check(prompt, run))
        run.before_step(keep)
        stack.enter_context(tap_attention(layers, add, lambda: recording.looks(self)))

    @cached_property
    def _given_places(self) -> dict[str, list[int]]:
        """By word, where it stands in `tokens`."""
        reading = read_strings(self.tokens or ())
        return {word: next(reading.places(word), []) for word in self.words}

    def _check(self, prompt: PromptTokens, run: Run) -> None:
        if self.tokens is None:
            steps = sorted(self.select_steps(run.timesteps, run.num_train_timesteps))
            for word in self.words:
                prompt.check(word, steps)
        else:
            for word in self.words:
                if not self._given_places[word]:
                    raise ValueError(f"WordMaps: expected words among `tokens` {list(self.tokens)}, got {word!r}.")

    def _of_words(self, prompt: PromptTokens, weights: torch.Tensor, is_selected: bool) -> torch.Tensor:
        """(sample, query, key) -> (sample, query, word)."""
        samples, _, keys = weights.shape
        if self.tokens is not None and len(self.tokens) > keys:
            raise ValueError(
                f"WordMaps: expected at most as many `tokens` as the layer looks at, {keys}, got {len(self.tokens)}."
            )
        columns = []
        for word in self.words:
            if self.tokens is not None:
                places = [self._given_places[word]] * samples
            elif is_selected:
                places = [prompt.positions(word, keys, sample) for sample in range(samples)]
            else:  # only the size is noted
                places = [[0]] * samples
            columns.append(torch.stack([weights[i][:, place].mean(dim=-1) for i, place in enumerate(places)]))
        return torch.stack(columns, dim=-1)
