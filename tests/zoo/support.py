"""Makes the page that says what works with which family: `python -m tests.zoo.support [--out docs/support.md]`."""

import argparse
import functools
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from diffusers_xai import (
    Activations,
    AttentionOutputs,
    AttentionWeights,
    ChannelAblation,
    GradientEnergy,
    GradientMaps,
    GradientVolume,
    LabelSwitch,
    LayerEdit,
    Patch,
    PromptSwitch,
    Samples,
    WordMaps,
    record,
)
from tests.zoo import oracles
from tests.zoo.pipelines import ZOO, Entry
from tests.zoo.running import differentiated, run, spied


# Of the largest value: in single precision EDM's ε is a difference of nearly equal numbers, 3e-4 were seen.
_GRADIENT = 1e-3

FAULTS = ("WRONG", "CRASH", "LATE")


class Wrong(Exception):
    """What was recorded, or the result, is not what it has to be."""


class Case:
    """A pipeline of the zoo and what plain hooks see of its run."""

    def __init__(self, entry: Entry):
        self.entry = entry
        self.pipe = entry.make()
        self.steps = 0  # of the latest run
        self._gradients = {}

    @cached_property
    def seen(self):
        """The run without recording."""
        return spied(self.pipe, self.entry, after_step=self._differentiate)

    @cached_property
    def samples(self):
        """Number of images."""
        return oracles.samples_of(self.seen, self.entry)

    @cached_property
    def pixel(self):
        """A position of the sample."""
        return oracles.pixel_of(self.seen, self.entry)

    @cached_property
    def graph(self):
        """The last step with a graph."""
        return differentiated(self.pipe, self.entry, self.last)

    @property
    def last(self):
        """Index of the last step."""
        return len(self.seen.states) - 1

    @property
    def gradient_of_noise(self):
        """What autograd gives for the noise of the last step."""
        return self._gradients[self.last]

    def _differentiate(self, seen):
        """In the run itself: some pipelines put their attention processors back at its end."""
        step = len(seen.states) - 1
        if step > 0 and self.entry.predicts is not None:
            self._gradients[step] = oracles.gradient_of_noise(self.pipe, self.entry, seen, step)

    def record(self, *specs):
        """The profile of a run that must give the result of the run without recording, bit for bit."""
        self.steps = 0
        with record(self.pipe, list(specs)) as recording:
            result = run(self.pipe, self.entry)
        expect(np.array_equal(result, self.seen.result), "the result is another one with recording")
        expect(len(recording.profile) > 0, "nothing was recorded")
        return recording.profile

    def change(self, *edits):
        """The result of a run that is changed."""
        self.steps = 0
        with record(self.pipe, edits=list(edits)):
            return run(self.pipe, self.entry)

    def changed_by_hand(self, change):
        """The result of a run in which `change(image, step, call)` writes into what the layer puts out."""

        def edit(output, step, call):
            return oracles.edited(output, self.entry, self.samples, lambda image: change(image, step, call))

        return spied(self.pipe, self.entry, edit).result


def expect(is_true, what):
    if not is_true:
        raise Wrong(what)


def expect_close(got, expected, what, bound=1e-5):
    """Refuses values that are further from the expected ones than `bound` of their largest."""
    expected = np.asarray(expected)
    expect(np.shape(got) == expected.shape, f"{what}: expected {expected.shape}, got {np.shape(got)}")
    scale = np.nanmax(np.abs(expected))
    expect(scale > 0, f"{what}: nothing to compare")
    worst = np.max(np.abs(got - expected)) / scale
    expect(worst <= bound, f"{what}: off by {worst:.1e} of the largest")


def samples(case):
    profile = case.record(Samples(x0=case.entry.predicts is not None, measures=()))
    expect(np.allclose(profile["samples"].timestep, case.seen.timesteps), "timesteps")
    for values, state in zip(profile["samples"].values, case.seen.states, strict=True):
        expect(np.array_equal(values, oracles.state(state, case.entry)[: case.samples]), "samples")
    for step in range(case.last + 1):
        expected = oracles.clean(case.seen, case.entry, step)
        if expected is not None:
            expect_close(profile["x0"].sel(step=step).values, expected, "clean images")


def activations(case):
    entry = case.entry
    array = case.record(Activations(layers=entry.layer))[f"activations/{entry.layer}"]
    expect(len(array.step) > 0, "no step")
    if len(entry.branches) > 1:
        expect(tuple(array.branch.values) == entry.branches, f"branches {tuple(array.branch.values)}")
    for step in array.step.values:
        expected = oracles.of_layer(case.seen.outputs[step], case.seen.calls[step], entry, case.samples)
        expect(np.array_equal(array.sel(step=step), expected), "activations")


def attention_outputs(case):
    got = case.record(AttentionOutputs(steps=0))["attention_outputs"].isel(step=0)
    expect_close(got.values, oracles.attention_outputs(case.seen, case.entry, 0), "attention outputs")


def attention_weights(case):
    entry, step = case.entry, case.last
    profile = case.record(AttentionWeights(steps=step))
    expect(all(array.min() >= 0 and array.max() <= 1 for array in profile.values()), "weights")
    if entry.attention is not None:
        got = profile[f"attention_weights/{entry.attention}"].isel(step=0).values
        expected = oracles.attention_weights(case.seen, entry, step)
        expect_close(got.reshape(expected.shape), expected, "weights", 1e-6)


def word_maps(case):
    entry, prompts = case.entry, np.atleast_1d(case.entry.call.get("prompt", "w1"))
    words = [word for word in entry.words if all(word in prompt for prompt in prompts)]
    tokens = None if "prompt" in entry.call else [f"w{i}" for i in range(5)]
    profile = case.record(WordMaps(words, tokens=tokens, steps=case.last))
    maps = profile["word_maps"].isel(step=0)
    expect(maps.token.values.tolist() == words, "words")
    for word in words:
        expected = oracles.word_map(case.seen, entry, case.last, entry.words[word])
        expect_close(maps.sel(token=word).values, expected, f"map of {word}")


def volume_of_noise(case):
    spec = GradientVolume(pixels=[case.pixel], of="noise", steps=-1, channels="separate")
    got = case.record(spec)["gradient_volume"].isel(step=0, pixel=0)
    expect_close(got.values, case.gradient_of_noise, "gradient of the noise", _GRADIENT)


def volume_of_step(case):
    pixels = [case.pixel, (0,) * len(case.pixel)]
    spec = GradientVolume(pixels=pixels, steps=-1, channels="separate", chunk_size=2)
    got = case.record(spec)["gradient_volume"].isel(step=0)
    for i, pixel in enumerate(pixels):
        expected = oracles.gradient_of_step(case.graph, case.entry, case.samples, pixel)
        expect_close(got.isel(pixel=i).values, expected, "gradient of the step", _GRADIENT)


def gradient_energy(case):
    # Of a single pixel the energy is the gradient's absolute value, whatever the random signs are.
    profile = case.record(GradientEnergy(pixels=[case.pixel], of="noise", probes=2, steps=-1))
    expected = case.gradient_of_noise.sum(dim=2 if len(case.entry.branches) > 1 else 1).abs()
    expect_close(profile["gradient_energy"].isel(step=0).values, expected, "gradient energy", _GRADIENT)


def gradient_maps(case):
    got = case.record(GradientMaps(case.entry.layer, steps=-1))[f"gradient_maps/{case.entry.layer}"]
    expected = oracles.gradient_maps(case.graph, case.entry, case.seen, case.last)
    expect_close(got.isel(step=0).values, expected, "gradient maps", _GRADIENT)


def channel_ablation(case):
    def without_channel_1(image, step, call):
        image[:, 1] = 0

    got = case.change(ChannelAblation(case.entry.layer, channels=1))
    expect(not np.array_equal(got, case.seen.result), "unchanged")
    expect_close(got, case.changed_by_hand(without_channel_1), "the result")


def layer_edit(case):
    def turned(output):
        changed = output.clone()
        changed[:, 1] *= -1
        return changed

    def turn(image, step, call):
        image[:, 1] *= -1

    got = case.change(LayerEdit(case.entry.layer, turned))
    expect(not np.array_equal(got, case.seen.result), "unchanged")
    expect_close(got, case.changed_by_hand(turn), "the result")


def patch(case):
    entry = case.entry
    with record(case.pipe, [Activations(layers=entry.layer)]) as recording:
        run(case.pipe, entry, seed=1)
    donor = spied(case.pipe, entry, seed=1)

    def overwrite(image, step, call):
        rows = oracles.rows_of(donor.calls[step][call])
        image.copy_(oracles.placed(oracles.image_of(donor.outputs[step][call], entry), entry, rows))

    steps = recording.profile[f"activations/{entry.layer}"].step.values.tolist()
    got = case.change(Patch(entry.layer, recording.profile, steps=steps))
    expect(not np.array_equal(got, case.seen.result), "unchanged")
    expect_close(got, case.changed_by_hand(overwrite), "the result")


def label_switch(case):
    labels = case.entry.call["class_labels"]
    got = case.change(LabelSwitch(to=5, from_step=0))
    expect(not np.array_equal(got, case.seen.result), "unchanged")
    other = with_call(case.entry, class_labels=[5] * len(labels))
    expect(np.array_equal(got, run(case.pipe, other)), "not the other label's run")


def prompt_switch(case):
    prompt = case.entry.call["prompt"]
    other = "b dog" if isinstance(prompt, str) else ["b dog"] * len(prompt)
    got = case.change(PromptSwitch(to=other, from_step=0))
    expect(not np.array_equal(got, case.seen.result), "unchanged")
    expect(np.array_equal(got, run(case.pipe, with_call(case.entry, prompt=other))), "not the other prompt's run")


def with_call(entry, **arguments):
    return replace(entry, call={**entry.call, **arguments})


@dataclass(frozen=True)
class Column:
    """A column of the page: how a cell is tried and judged, what the page says of it, which pipelines have it."""

    attempt: Callable[[Case], None]
    judged: str
    applies: Callable[[Entry], bool] = lambda entry: True


_SAME = "The run's result is that of the run without recording, bit for bit"
_OWN_CODE = "`torch.autograd.grad` through the pipeline's own `__call__`, its guidance and its scheduler"

TABLES: dict[str, dict[str, Column]] = {
    "Recorded": {
        "Samples": Column(
            samples,
            f"{_SAME}; states and timesteps are those that a wrapped `scheduler.step` was given, x̂_0 what it told.",
        ),
        "Activations": Column(
            activations, f"{_SAME}; values and branches are those that a plain hook sees of the layer, bit for bit."
        ),
        "AttentionOutputs": Column(
            attention_outputs,
            f"{_SAME}; the map is the sum of what plain hooks see of every attention module, up-sampled.",
        ),
        "AttentionWeights": Column(
            attention_weights,
            f"{_SAME}; in all layers the values lie in [0, 1], in one they are the softmax by its definition of the"
            " queries, keys and mask that the layer was seen to use.",
        ),
        "WordMaps": Column(
            word_maps,
            f"{_SAME}; the maps are the means, over all layers and heads, of the softmax by its definition. Where the"
            " tiny pipeline gets `prompt_embeds`, the strings are given as `tokens=[…]`.",
            lambda entry: bool(entry.words),
        ),
    },
    "Gradients": {
        "GradientVolume of the noise": Column(
            volume_of_noise,
            f"{_SAME}; a pixel's gradient is that of `torch.autograd.grad` through a call of the network and ε by its"
            " definition.",
        ),
        "GradientVolume of the step": Column(
            volume_of_step, f"{_SAME}; two pixels' gradients, made in one pass, are those of {_OWN_CODE}."
        ),
        "GradientEnergy": Column(
            gradient_energy,
            f"{_SAME}; of a single pixel the energy is the absolute value of autograd's gradient of the noise.",
        ),
        "GradientMaps": Column(gradient_maps, f"{_SAME}; the maps of the step are those of {_OWN_CODE}."),
    },
    "Changed": {
        "ChannelAblation": Column(
            channel_ablation, "The result changes, to that of a plain hook that sets the channel to zero."
        ),
        "LayerEdit": Column(layer_edit, "The result changes, to that of a plain hook that turns a channel's sign."),
        "Patch": Column(
            patch,
            "The result is that of a plain hook that puts in what was seen of the layer in a run from another seed.",
        ),
        "LabelSwitch": Column(
            label_switch,
            "Switched from step 0, the result is that of a run with the other label, bit for bit.",
            lambda entry: "class_labels" in entry.call,
        ),
        "PromptSwitch": Column(
            prompt_switch,
            "Switched from step 0, the result is that of a run with the other prompt, bit for bit.",
            lambda entry: "prompt" in entry.call,
        ),
    },
}
COLUMNS = {name: column for table in TABLES.values() for name, column in table.items()}


def cell(case: Case, column: Column) -> tuple[str, str]:
    """What a spec does in a family: a word, and the reason where it is not SUPPORTED."""
    if not column.applies(case.entry):
        return "–", ""
    try:
        column.attempt(case)
    except Wrong as wrong:
        return "WRONG", str(wrong)
    except Exception as error:
        text = str(error.args[0] if error.args else error)
        origin = traceback.extract_tb(error.__traceback__)[-1]
        if "diffusers_xai" not in origin.filename or not (origin.line or "").startswith("raise"):
            return "CRASH", f"{type(error).__name__}: {text}"
        return ("LATE" if case.steps else "REFUSED"), text.split(". ")[0].removesuffix(".") + "."
    return "SUPPORTED", ""


def row(name: str) -> dict[str, tuple[str, str]]:
    """The cells of a family."""
    case = Case(ZOO[name])
    expect(len(case.seen.states) > 0, "no step")  # the hooks come before what counts
    scheduler = case.pipe.scheduler
    step = scheduler.step

    @functools.wraps(step)
    def counted(*args, **kwargs):
        case.steps += 1
        return step(*args, **kwargs)

    scheduler.step = counted
    return {title: cell(case, column) for title, column in COLUMNS.items()}


def page(rows: dict[str, dict[str, tuple[str, str]]]) -> str:
    """The page in Markdown."""
    reasons: list[str] = []
    body = []
    for title, columns in TABLES.items():
        lines = [f"| family | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
        for name, cells in rows.items():
            words = []
            for column in columns:
                word, reason = cells[column]
                if reason and reason not in reasons:
                    reasons.append(reason)
                words.append(f"{word} ({reasons.index(reason) + 1})" if reason else word)
            lines.append(f"| {name} | {' | '.join(words)} |")
        body += [f"## {title}\n", *lines, ""]
    words = [cells[column][0] for cells in rows.values() for column in COLUMNS]
    counts = ", ".join(f"{words.count(word)} {word}" for word in ("SUPPORTED", "REFUSED", *FAULTS))
    # Without the side columns the tables fit.
    head = f"""---
hide:
  - navigation
  - toc
---

# What works with which pipeline

{len(rows)} pipelines and variants × {len(COLUMNS)} specs: {counts}; "–" where a pipeline has no prompt or no labels.

Every row is a tiny pipeline of the real class with random weights, every cell a run of it. REFUSED: a clear error
before the first step, with the reason below the tables. WRONG, CRASH and LATE (an error after a step was made) would
be faults. Other pipelines go the same way, see [Record a run](how-to/record.md): these are the ones that are tried.

`python -m tests.zoo.support` writes this page.
"""
    notes = [f"{number}. {reason}" for number, reason in enumerate(reasons, 1)] or ["None."]
    judged = ["| column | the cell is SUPPORTED if |", "|---|---|"]
    judged += [f"| {name} | {column.judged} |" for name, column in COLUMNS.items()]
    return "\n".join([head, *body, "## Reasons\n", *notes, "", "## How a cell is judged\n", *judged, ""])


def main() -> None:
    """Runs every cell and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/support.md"), help="the page (docs/support.md)")
    parser.add_argument("--only", nargs="*", default=list(ZOO), help="families to run, for a look at some of them")
    arguments = parser.parse_args()
    rows = {}
    for name in arguments.only:
        rows[name] = row(name)
        faults = {title: found for title, found in rows[name].items() if found[0] not in ("SUPPORTED", "–")}
        print(name, faults or "", file=sys.stderr, flush=True)
    arguments.out.write_text(page(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
