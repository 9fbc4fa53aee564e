"""The words behind the tokens of a prompt."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch

from diffusers_xai.denoisers import DenoiserCall, networks_of
from diffusers_xai.passed import Pipeline
from diffusers_xai.recording.clock import Run
from diffusers_xai.recording.condition import Condition, Key, attended_of, rows_of
from diffusers_xai.recording.repeat import tensors_in
from diffusers_xai.recording.spelling import SpelledText, read_ids, read_strings
from diffusers_xai.taps import tap_call, tap_output, tap_whole_call
from diffusers_xai.taps.call import another_runs, running_frame
from diffusers_xai.taps.token_flow import TokenFlow, token_sets


class UnknownWordError(ValueError):
    """A word that the network is not given whole: none of the prompt's, or cut off where the prompt is too long.

    Args:
        word (`str`): The word.
        message (`str`): What was expected.
    """

    def __init__(self, word: str, message: str):
        super().__init__(message)
        self.word = word


class PromptTokens:
    """Which tokens of a pipeline's text encoders the keys of attention are, followed from encoder to denoiser.

    Args:
        run (`Run`): The run.
    """

    def __init__(self, run: Run):
        self._run = run
        self._flow = TokenFlow()
        self._tokens: list[tuple[SpelledText, int]] = []  # of which text, and where in it; a label is an index
        self._own: list[Condition] = []  # of the denoiser calls of the first step
        self._switched: list[tuple[int, list[Condition]]] = []
        self._may_encode_again = False  # as pipelines do that have another prompt at every step
        self._encoded_at = 0  # which step
        self._later: list[tuple[int, list[Condition]]] = []  # of the steps at which it was encoded once more
        self._given: list[dict[str, list[tuple[torch.Tensor, int]]]] = []  # the arguments that hold them
        self._other_steps: set[int] = set()  # at which the network is given something else
        self._unchecked: list[tuple[str, int]] = []  # words and steps, whose prompt is not known yet
        self._texts: dict[tuple, np.ndarray | None] = {}
        self._thread = threading.get_ident()

    @staticmethod
    @contextmanager
    def followed(run: Run) -> Iterator["PromptTokens"]:
        """Follows the tokens of the pipeline's text encoders to the network: at the first step, or wherever they run.

        Which of both it is, is told by whether one ran behind the beginning of the loop.
        """
        prompt = PromptTokens(run)
        flow = prompt._flow
        with ExitStack() as stack:
            stack.callback(flow.clear)
            stack.callback(flow.stop)
            for name, module in networks_of(run.pipeline).items():
                tokenizer = _tokenizer_of(run.pipeline, name) if "text_encoder" in name else None
                if tokenizer is not None:
                    stack.enter_context(tap_call(module, lambda args, kwargs: flow.stop()))
                    stack.enter_context(tap_whole_call(module, partial(prompt._encoded, tokenizer)))
            for module in run.control_networks.values():
                stack.enter_context(tap_call(module, lambda args, kwargs: flow.stop()))
                stack.enter_context(tap_output(module, prompt._go_on, read=lambda output: output))
            for module in run.denoiser.components.values():
                stack.enter_context(tap_output(module, prompt._go_on, read=lambda output: output))
            run.on_arrival(prompt._arrived)
            run.on_start(prompt._read_switches)
            run.before_step(flow.stop)
            run.on_step(lambda step: prompt._end_step())
            yield prompt

    def _encoded(self, tokenizer: Any, args: tuple, kwargs: dict, output: Any) -> None:
        """Marks what an encoder puts out with its tokens."""
        ids = kwargs.get("input_ids", args[0] if args else None)
        if not self._is_of_run():
            return
        self._may_encode_again |= self._run.is_looping and not self._run.timesteps
        if self._run.step > 0 and not self._may_encode_again:
            return
        self._encoded_at = self._run.step
        if not isinstance(ids, torch.Tensor) or ids.ndim != 2 or ids.is_floating_point():
            return
        first = len(self._tokens)
        for row in ids.tolist():
            reading = read_ids(tokenizer, row)
            self._tokens += [(reading, i) for i in range(len(row))]
        labels = torch.arange(first, len(self._tokens), dtype=torch.int32).reshape(ids.shape)
        for tensor in tensors_in(output):
            if tensor.ndim == 3 and tensor.is_floating_point() and tensor.shape[:2] in (labels.shape, labels.T.shape):
                of_tensor = labels if tensor.shape[:2] == labels.shape else labels.T
                self._flow.mark(tensor, of_tensor[..., None].to(tensor.device))
        self._flow.start()

    def _go_on(self, output: Any) -> None:
        if self._tokens and self._run.step == self._encoded_at and not self._run.is_replaying and self._is_of_run():
            self._flow.start()

    def _is_of_run(self) -> bool:
        """Whether this thread runs the pipeline, or opened the recording: others may use the same encoders."""
        if self._thread == threading.get_ident():
            return not another_runs(self._run.pipeline)
        return running_frame(self._run.pipeline) is not None

    def _arrived(self, call: DenoiserCall) -> None:
        self._flow.stop()
        if self._run.is_replaying:
            return
        if self._run.step == self._encoded_at:
            if self._run.step > 0 and (not self._later or self._later[-1][0] != self._run.step):
                self._later.append((self._run.step, []))
                self._given = []
                self._unchecked = []
            (self._later[-1][1] if self._later else self._own).append(self._condition(call))
            self._given.append({name: _versions(value) for name, value in call.arguments.items()})
            return
        if not all(self._is_given(name, call.arguments.get(name)) for name in self._names()):
            self._other_steps.add(self._run.step)
        unchecked, self._unchecked = self._unchecked, []  # it goes on with the same prompt
        for word, step in unchecked:
            self._check_at(word, step)

    def _names(self) -> set[str]:
        """The arguments that hold tokens, in one branch at least: of another they may be zeros."""
        return {name for condition in self._own for name in condition.sequences}

    def _end_step(self) -> None:
        if self._may_encode_again:  # one prompt may be encoded again, and be joined to another that is not
            self._flow.prune()
            if self._run.step + 1 < len(self._run.timesteps):
                self._flow.start()  # what a callback does with it
        else:
            self._flow.clear()
        names = self._names()
        self._given = [{name: given[name] for name in given.keys() & names} for given in self._given]

    def _is_given(self, name: str, value: Any) -> bool:
        """Whether an argument is that of the first step, or rows of it: a callback may put in something else."""
        now = _versions(value)
        return any(_comes_from(now, given[name]) for given in self._given if name in given)

    def _read_switches(self) -> None:
        self._switched = [
            (first, [self._condition(call) for call in calls]) for first, calls in self._run.prompt_switches
        ]

    def _condition(self, call: DenoiserCall) -> Condition:
        sequences: dict[str, list[list[Key]] | None] = {}
        attended: dict[str, list[int]] = {}
        for name, value in call.arguments.items():
            rows = None if name == call.sample_name else rows_of(value, call.rows, self._flow.labels)
            labels = [] if rows is None else [self._flow.labels(row) for row in rows]
            if rows is None or all(row is None for row in labels):
                continue
            sets = [None if row is None else token_sets(row) for row in labels]
            known = [row for row in sets if row is not None]
            sequences[name] = [self._with_durations(row) for row in known] if len(known) == len(sets) else None
            attended[name] = attended_of(call, [len(row) for row in rows])
        layout = self._run.denoiser.layout
        pads = layout is not None and "pad" in (layout.order or ())
        return Condition(call.rows, sequences, attended, pads, () if layout is None else layout.text)

    def _with_durations(self, row: list[Key]) -> list[Key]:
        """The keys with names for what pipelines of sound put behind those of the text."""
        name = type(self._run.pipeline).__name__
        behind = ["[seconds]"] if name.startswith("StableAudio3") else ["[start]", "[end]"]
        if not name.startswith("StableAudio") or any(len(key) for key in row[-len(behind) :]):
            return row
        reading = read_strings(behind)
        self._tokens += [(reading, i) for i in range(len(behind))]
        return [*row[: -len(behind)], *([len(self._tokens) - i] for i in range(len(behind), 0, -1))]

    @property
    def changes(self) -> bool:
        """Whether another prompt may take over during the run."""
        return self._may_encode_again or self._is_said_to_change

    @property
    def _is_said_to_change(self) -> bool:
        """Whether another prompt is announced, or has been encoded during the run."""
        inputs = self._run.call.locals.get("callback_on_step_end_tensor_inputs") or ()
        told = self._run.call.locals.get("callback_on_step_end") is not None and any(
            "prompt" in name for name in inputs
        )
        is_switched = any(0 < first < len(self._run.timesteps) for first, _ in self._switched)
        return told or is_switched or bool(self._later)

    def _conditions(self, step: int) -> tuple[int, list[Condition]]:
        """The conditions by denoiser call at a step, and a number for them."""
        past = [(first, index) for index, (first, _) in enumerate(self._switched) if first <= step]
        if past:  # of switches at one step the last holds
            number = max(past)[1]
            return number + 1, self._switched[number][1]
        encoded = [index for index, (first, _) in enumerate(self._later) if first <= step]
        return (-2 - encoded[-1], self._later[encoded[-1]][1]) if encoded else (0, self._own)

    def text(self, step: int, lengths: Mapping[str, int]) -> np.ndarray | None:
        """The strings (sample, branch, key) of a layer's keys at a step; "" where there is none.

        Where several encoders give a key their tokens, these are told with ` | ` in between.

        Args:
            step (`int`): The step.
            lengths (mapping from `str` to `int`): How many keys the layer has in each branch.

        Returns:
            `np.ndarray`, or `None` if none is known.

        Raises:
            RuntimeError: if something was put in for the prompt, and it was not to be seen beforehand.
        """
        number, conditions = self._conditions(step)
        if step in self._other_steps:
            number, conditions = -1, []
            if not self._is_said_to_change:
                raise self._unforeseen(step)
        identity = number, tuple(lengths.items())
        if identity not in self._texts:
            run, keys = self._run, max(lengths.values())
            texts = np.full((run.num_samples, len(run.guidance.branches), keys), "", dtype=object)
            for index, condition in enumerate(conditions):
                for branch in lengths.keys() & set(run.guidance.of_call(index)):
                    for sample in range(run.num_samples):
                        row = self._row(index, condition, branch, sample, lengths[branch]) or []
                        at = sample, run.guidance.branches.index(branch)
                        texts[at][: len(row)] = [self._string(key) for key in row]
            is_known = texts.any() or (self.changes and bool(self._tokens))
            self._texts[identity] = texts.astype(str) if is_known else None
        return self._texts[identity]

    def _row(self, index: int, condition: Condition, branch: str, sample: int, keys: int) -> list[Key] | None:
        """The keys of an image in a branch of a call."""
        rows, names = condition.of_keys(keys), self._run.guidance.of_call(index)
        of_call = names.index(branch) * self._run.num_samples + sample
        row = None if rows is None or of_call >= condition.rows else condition.row(of_call, len(rows))
        return None if rows is None or row is None else rows[row]

    def _string(self, key: Key) -> str:
        return " | ".join(dict.fromkeys(reading.strings[i] for reading, i in (self._tokens[label] for label in key)))

    def positions(self, word: str, keys: int, sample: int) -> list[int]:
        """Indices among `keys` keys of those that spell `word` in the prompt of an image now; its first place.

        Raises:
            ValueError: if the tokens of the layer are not known, or the word is not among them.
            RuntimeError: if something was put in for the prompt.
        """
        if self._run.step in self._other_steps:
            raise self._unforeseen(self._run.step)
        for index, condition in enumerate(self._conditions(self._run.step)[1]):
            if "cond" in self._run.guidance.of_call(index):
                row = self._row(index, condition, "cond", sample, keys)
                if row is not None:
                    return self._spelled(row, word) or _raise_unknown(word, sample, self._shown(row), self._run.step)
        raise ValueError(
            f"WordMaps: expected a layer whose keys can be followed back to the prompt's tokens, got one with {keys}"
            f" keys in {self._run.denoiser.name}. Give their strings as `tokens=[…]`."
        )

    def _unforeseen(self, step: int) -> RuntimeError:
        return RuntimeError(
            f"Expected the prompt of the first step, got something else for it in {self._run.denoiser.name} at step"
            f" {step}, whose words are not known: a callback may have put it in. `PromptSwitch` changes prompts."
        )

    def check(self, word: str, steps: Sequence[int]) -> None:
        """Refuses, before the first step, a word that the network is not given at some of the steps.

        Where the prompt may be encoded again, it refuses that at the second step, unless it is.

        Raises:
            UnknownWordError: with the prompt as its tokens spell it.
            ValueError: if the prompt was not tokenized, or its tokens cannot be followed.
        """
        if not self._tokens:
            raise ValueError(
                "WordMaps: expected a pipeline that tokenizes its prompt, got none (were `prompt_embeds` given?). Give"
                " the tokens' strings as `tokens=[…]`."
            )
        checked = set()
        for step in sorted(steps):
            number, _ = self._conditions(step)
            if step > 0 and self._may_encode_again:
                self._unchecked.append((word, step))
            elif number not in checked:
                checked.add(number)
                self._check_at(word, step)

    def _check_at(self, word: str, step: int) -> None:
        run, conditions = self._run, self._conditions(step)[1]
        names = run.guidance.of_call(0)
        if "cond" in names:
            for sample in range(run.num_samples):
                self._check(conditions[0], names.index("cond") * run.num_samples + sample, sample, word, step)

    def _check(self, condition: Condition, row: int, sample: int, word: str, step: int) -> None:
        sequences = list(condition.sequences.values())
        every = [rows[at] for rows in sequences if rows and (at := condition.row(row, len(rows))) is not None]
        if not every:
            raise ValueError(
                f"WordMaps: expected tokens that can be followed into {self._run.denoiser.name}; something in between"
                " mixes them. Give their strings as `tokens=[…]`."
            )
        if not any(self._spelled(keys, word) for keys in every):
            _raise_unknown(word, sample, self._shown(every[0]), step)

    def _spelled(self, row: list[Key], word: str) -> list[int]:
        """Where a word stands first with all its tokens, text by text in the order in which they stand."""
        for reading, keys in self._texts_of(row):
            for place in reading.places(word):
                if keys.keys() >= set(place):
                    return sorted({keys[token] for token in place})
        return []

    def _texts_of(self, row: list[Key]) -> Iterator[tuple[SpelledText, dict[int, int]]]:
        """The texts in a row, with its key by token."""
        found: dict[int, tuple[SpelledText, dict[int, int]]] = {}
        for key, labels in enumerate(row):
            for reading, token in (self._tokens[label] for label in labels):
                found.setdefault(id(reading), (reading, {}))[1].setdefault(token, key)
        yield from found.values()

    def _shown(self, row: list[Key]) -> str:
        """The texts in a row, each once, as far as the row has them."""
        texts = dict.fromkeys(reading.shown(keys) for reading, keys in self._texts_of(row))
        shown = " | ".join(map(repr, texts))
        return shown if len(shown) <= 300 else shown[:300] + "…"


def _tokenizer_of(pipeline: Pipeline, encoder: str) -> Any:
    """The tokenizer of a text encoder, also inside a processor of texts and images; `None` if there is none."""
    found = getattr(pipeline, encoder.replace("text_encoder", "tokenizer"), None)
    return found if hasattr(found, "convert_ids_to_tokens") else getattr(found, "tokenizer", None)


def _raise_unknown(word: str, sample: int, text: str, step: int) -> Any:
    when = f" at step {step}" if step else ""
    raise UnknownWordError(
        word, f"WordMaps: expected words of the prompt, got {word!r}; what image {sample} is given{when}: {text}."
    )


def _versions(value: Any) -> list[tuple[torch.Tensor, int]]:
    """The tensors in an argument, and how often each has been changed in place, as far as that is counted."""
    return [(tensor, 0 if tensor.is_inference() else tensor._version) for tensor in tensors_in(value)]


def _comes_from(now: list[tuple[torch.Tensor, int]], then: list[tuple[torch.Tensor, int]]) -> bool:
    """Whether all tensors are, or have the values of rows of, some of those before, which nobody has changed."""

    def is_of(tensor: torch.Tensor, version: int, other: torch.Tensor, before: int) -> bool:
        if tensor is other:
            return version == before
        is_alike = tensor.shape[1:] == other.shape[1:] and tensor.dtype == other.dtype and len(tensor) > 0
        is_kept = _versions(other)[0][1] == before
        return is_alike and is_kept and any(torch.equal(tensor, part) for part in other.split(len(tensor)))

    return all(any(is_of(*of_now, *of_then) for of_then in then) for of_now in now)
