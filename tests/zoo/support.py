"""Makes the page that says what works with which family: `python -m tests.zoo.support [--out docs/support.md]`."""

import argparse
import functools
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
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
from tests.zoo.pipelines import ZOO, Entry
from tests.zoo.running import run, spied


FAULTS = ("WRONG", "CRASH", "LATE")


class Wrong(Exception):
    """What was recorded, or the result, is not what it has to be."""


class Case:
    """A pipeline of the zoo and what plain hooks see of its run."""

    def __init__(self, entry: Entry):
        self.entry = entry
        self.pipe = entry.make()
        self.steps = 0  # of the latest run

    @cached_property
    def seen(self):
        """The run without recording."""
        return spied(self.pipe, self.entry, self.entry.layer)

    @cached_property
    def pixel(self):
        """A position of the sample."""
        return (1,) * (self.record(Samples(x0=False, measures=()))["samples"].ndim - 3)

    def record(self, *specs):
        """The profile of a run that must give the result of the run without recording, bit for bit."""
        self.steps = 0
        with record(self.pipe, list(specs)) as recording:
            result = run(self.pipe, self.entry)
        expect(np.array_equal(result, self.seen.result), "the result is another one with recording")
        expect(len(recording.profile) > 0, "nothing was recorded")
        for name, array in recording.profile.items():
            if array.dtype.kind == "f" and not name.startswith("samples"):
                expect(np.isfinite(array.values).all(), f"{name} is not finite")
        return recording.profile

    def change(self, *edits):
        """The result of a run that is changed."""
        self.steps = 0
        with record(self.pipe, edits=list(edits)):
            return run(self.pipe, self.entry)


def expect(is_true, what):
    if not is_true:
        raise Wrong(what)


def samples(case):
    got = case.record(Samples(x0=False, measures=()))["samples"]
    for values, state in zip(got.values, case.seen.states, strict=True):
        expect(np.array_equal(np.sort(values, axis=None), np.sort(state[: len(values)].numpy(), axis=None)), "samples")


def activations(case):
    profile = case.record(Activations(layers=case.entry.layer))
    array = profile[f"activations/{case.entry.layer}"]
    for step in array.step.values:
        raw = [np.concatenate([t.numpy().ravel() for t in tensors(out)]) for out in case.seen.outputs[step]]
        expect(np.isin(array.sel(step=step).values, np.concatenate(raw)).all(), "activations")


def tensors(output):
    if hasattr(output, "numpy"):
        return [output]
    return [tensor for part in (output or ()) for tensor in tensors(part)]


def attention_weights(case):
    profile = case.record(AttentionWeights(steps=0))
    expect(all(array.values.min() >= 0 and array.values.max() <= 1 for array in profile.values()), "weights")


def word_maps(case):
    call = case.entry.call
    if "prompt" in call:
        profile = case.record(WordMaps("a", steps=0))
    else:
        lengths = [call[key][0].shape[-2] if isinstance(call[key], list) else call[key].shape[-2]
                   for key in ("prompt_embeds", "prompt_embeds_2") if key in call]  # fmt: skip
        words = [f"w{i}" for i in range(sum(lengths))]
        profile = case.record(WordMaps(words[1], tokens=words, steps=0))
    values = profile["word_maps"].values
    expect(0 < values.max() <= 1 and values.min() >= 0, "word maps")


def volume_of_noise(case):
    values = case.record(GradientVolume(pixels=[case.pixel], of="noise", steps=-1))["gradient_volume"].values
    expect(np.abs(values).max() > 0, "no gradient")


def volume_of_step(case):
    values = case.record(GradientVolume(pixels=[case.pixel], steps=-1))["gradient_volume"].values
    expect(np.abs(values).max() > 0, "no gradient")


def gradient_energy(case):
    # Of a single pixel the energy is the gradient's absolute value, whatever the random signs are.
    volume = GradientVolume(pixels=[case.pixel], of="noise", steps=-1)
    profile = case.record(volume, GradientEnergy(pixels=[case.pixel], of="noise", probes=2, steps=-1))
    energy = profile["gradient_energy"]
    absolute = np.abs(profile["gradient_volume"].isel(pixel=0).values)
    expect(np.allclose(energy.values, absolute, rtol=1e-4, atol=1e-5 * absolute.max()), "gradient energy")


def gradient_maps(case):
    profile = case.record(GradientMaps(case.entry.layer, steps=-1))
    expect(all(np.abs(array.values).max() > 0 for array in profile.values()), "no gradient")


def channel_ablation(case):
    expect(
        not np.array_equal(case.change(ChannelAblation(case.entry.layer, channels=1)), case.seen.result), "unchanged"
    )


def layer_edit(case):
    def without_channel_1(output):
        changed = output.clone()
        changed[:, 1] = 0
        return changed

    got = case.change(LayerEdit(case.entry.layer, without_channel_1))
    expect(np.array_equal(got, case.change(ChannelAblation(case.entry.layer, channels=1))), "not as the ablation")
    expect(
        np.array_equal(case.change(LayerEdit(case.entry.layer, lambda output: output)), case.seen.result), "changed"
    )


def patch(case):
    source = case.record(Activations(layers=case.entry.layer))
    steps = source[f"activations/{case.entry.layer}"].step.values.tolist()
    edit = Patch(case.entry.layer, source, steps=steps)
    expect(np.array_equal(case.change(edit), case.seen.result), "patched with itself, it is another one")


def label_switch(case):
    labels = case.entry.call["class_labels"]
    expect(not np.array_equal(case.change(LabelSwitch(to=5, from_step=0)), case.seen.result), "unchanged")
    case_of = lambda label: run(case.pipe, with_call(case.entry, class_labels=[label] * len(labels)))  # noqa: E731
    expect(np.array_equal(case.change(LabelSwitch(to=5, from_step=0)), case_of(5)), "not the other label's run")


def prompt_switch(case):
    prompt = case.entry.call["prompt"]
    other = "b dog" if isinstance(prompt, str) else ["b dog"] * len(prompt)
    got = case.change(PromptSwitch(to=other, from_step=0))
    expect(np.array_equal(got, run(case.pipe, with_call(case.entry, prompt=other))), "not the other prompt's run")


def with_call(entry, **arguments):
    return Entry(**{**vars(entry), "call": {**entry.call, **arguments}})


def always(call):
    return True


def has_text(call):
    return "prompt" in call or "prompt_embeds" in call


@dataclass(frozen=True)
class Column:
    """A column of the page: how a cell is tried, how it is judged, which test judges the values."""

    attempt: Callable[[Case], None]
    judged: str
    oracle: str
    applies: Callable[[dict], bool] = always


_SAME = "The run's result is that of the run without recording, bit for bit"
_FAMILIES = "tests/recording/test_families.py"
_HOOKS = f"`{_FAMILIES}`, `test_recording_changes_nothing_and_gives_what_hooks_give`: every family"
_AUTOGRAD = f"`{_FAMILIES}`, `test_gradients_of_the_noise_are_those_of_autograd`: thirteen families"
_STEP = "`tests/explainers/test_gradients.py`: the values; " + (
    f"`{_FAMILIES}`, `test_gradients_of_the_step_exist_in_every_family_and_leave_the_result_as_it_is`"
)
_ABLATION = f"`{_FAMILIES}`, `test_an_ablation_equals_an_edit_by_hand`: every family"

TABLES: dict[str, dict[str, Column]] = {
    "Recorded": {
        "Samples": Column(
            samples, f"{_SAME}; every state has the values that a wrapped `scheduler.step` was given.", _HOOKS
        ),
        "Activations": Column(
            activations, f"{_SAME}; every value is among those that a plain hook sees of the layer.", _HOOKS
        ),
        "AttentionOutputs": Column(
            lambda case: case.record(AttentionOutputs(steps=0)),
            f"{_SAME}; all values are finite.",
            f"`{_FAMILIES}`, `test_attention_outputs_of_a_joint_transformer_are_those_of_the_image`: one family",
        ),
        "AttentionWeights": Column(
            attention_weights,
            f"{_SAME}; all layers; all values lie in [0, 1].",
            f"`{_FAMILIES}`, `test_attention_weights_are_the_scores_by_hand`: every family with softmax attention",
        ),
        "WordMaps": Column(
            word_maps,
            f"{_SAME}; the maps lie in [0, 1] and are not zero. Where the tiny pipeline gets `prompt_embeds`, the"
            " strings are given as `tokens=[…]`.",
            f"`{_FAMILIES}`, `test_word_maps_are_means_over_heads_and_layers`: every family with a tokenizer",
            has_text,
        ),
    },
    "Gradients": {
        "GradientVolume of the noise": Column(
            volume_of_noise, f"{_SAME}; the gradient is finite and not zero.", _AUTOGRAD
        ),
        "GradientVolume of the step": Column(volume_of_step, f"{_SAME}; the gradient is finite and not zero.", _STEP),
        "GradientEnergy": Column(
            gradient_energy,
            f"{_SAME}; of a single pixel the energy of the noise is the absolute value of the volume.",
            f"that of the volume of the noise: {_AUTOGRAD}",
        ),
        "GradientMaps": Column(gradient_maps, f"{_SAME}; the gradient is finite and not zero.", _STEP),
    },
    "Changed": {
        "ChannelAblation": Column(channel_ablation, "The result changes.", _ABLATION),
        "LayerEdit": Column(
            layer_edit,
            "A function that sets a channel to zero gives the ablation's result; one that returns its argument changes"
            " nothing.",
            f"that of the ablation: {_ABLATION}",
        ),
        "Patch": Column(
            patch,
            "A run patched with what was recorded of itself gives its result, bit for bit.",
            "the judgement itself",
        ),
        "LabelSwitch": Column(
            label_switch,
            "Switched from step 0, the result is that of a run with the other label, bit for bit.",
            "the judgement itself",
            lambda call: "class_labels" in call,
        ),
        "PromptSwitch": Column(
            prompt_switch,
            "Switched from step 0, the result is that of a run with the other prompt, bit for bit.",
            "the judgement itself",
            lambda call: "prompt" in call,
        ),
    },
}
COLUMNS = {name: column for table in TABLES.values() for name, column in table.items()}


def cell(case: Case, column: Column) -> tuple[str, str]:
    """What a spec does in a family: a word, and the reason where it is not SUPPORTED."""
    if not column.applies(case.entry.call):
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
    judged = ["| column | the cell is SUPPORTED if | the values are tested by |", "|---|---|---|"]
    judged += [f"| {name} | {column.judged} | {column.oracle} |" for name, column in COLUMNS.items()]
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
