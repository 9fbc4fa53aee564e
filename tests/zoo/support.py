"""Makes the page that says what works with which family: `python -m tests.zoo.support [--out docs/support.md]`."""

import argparse
import functools
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.zoo import judges
from tests.zoo.judges import Case, Wrong, expect
from tests.zoo.pipelines import ZOO


FAULTS = ("WRONG", "CRASH", "LATE")


@dataclass(frozen=True)
class Column:
    """A column of the page: how a cell is tried and judged, what the page says of it, which pipelines have it."""

    attempt: Callable[[Case], None]
    judged: str
    applies: Callable[[Case], bool] = lambda case: True


_SAME = "The run's result is that of the run without recording, bit for bit"
_OWN_CODE = "`torch.autograd.grad` through the pipeline's own `__call__`, its guidance and its scheduler"

TABLES: dict[str, dict[str, Column]] = {
    "Recorded": {
        "Samples": Column(
            judges.samples,
            f"{_SAME}; states and timesteps are those that a wrapped `scheduler.step` was given, x̂_0 what it told.",
        ),
        "Activations": Column(
            judges.activations,
            f"{_SAME}; values and branches are those that a plain hook sees of the layer, bit for bit.",
        ),
        "AttentionOutputs": Column(
            judges.attention_outputs,
            f"{_SAME}; the map is the sum of what plain hooks see of every attention module, up-sampled.",
        ),
        "AttentionWeights": Column(
            judges.attention_weights,
            f"{_SAME}; in all layers the values lie in [0, 1], in one they are the softmax by its definition of the"
            " queries, keys and mask that the layer was seen to use.",
        ),
        "WordMaps": Column(
            judges.word_maps,
            f"{_SAME}; the maps are the means, over all layers and heads, of the softmax by its definition. Where the"
            " tiny pipeline gets `prompt_embeds`, the strings are given as `tokens=[…]`.",
            lambda case: bool(case.entry.words),
        ),
        "DecodedImages": Column(
            judges.decoded_images,
            f"{_SAME}; the pictures of x̂_0, or of the last state where the scheduler tells none, are those that the"
            " pipeline's own `__call__` decodes when its last step is made to end there, rounded to bytes.",
            judges.has_pictures,
        ),
    },
    "Gradients": {
        "GradientVolume of the noise": Column(
            judges.volume_of_noise,
            f"{_SAME}; a pixel's gradient is that of `torch.autograd.grad` through a call of the network and ε by its"
            " definition.",
        ),
        "GradientVolume of the step": Column(
            judges.volume_of_step, f"{_SAME}; two pixels' gradients, made in one pass, are those of {_OWN_CODE}."
        ),
        "GradientEnergy": Column(
            judges.gradient_energy,
            f"{_SAME}; of a single pixel the energy is the absolute value of autograd's gradient of the noise.",
        ),
        "GradientMaps": Column(judges.gradient_maps, f"{_SAME}; the maps of the step are those of {_OWN_CODE}."),
        "GradientAttention": Column(
            judges.gradient_attention,
            f"{_SAME}; the map is the layer's output weighted by the means of the gradients of {_OWN_CODE}.",
        ),
    },
    "Changed": {
        "ChannelAblation": Column(
            judges.channel_ablation, "The result changes, to that of a plain hook that sets the channel to zero."
        ),
        "LayerEdit": Column(
            judges.layer_edit, "The result changes, to that of a plain hook that turns a channel's sign."
        ),
        "Patch": Column(
            judges.patch,
            "The result is that of a plain hook that puts in what was seen of the layer in a run from another seed.",
        ),
        "LabelSwitch": Column(
            judges.label_switch,
            "Switched from step 0, the result is that of a run with the other label, bit for bit.",
            lambda case: "class_labels" in case.entry.call,
        ),
        "PromptSwitch": Column(
            judges.prompt_switch,
            "Switched from step 0, the result is that of a run with the other prompt, bit for bit.",
            lambda case: "prompt" in case.entry.call,
        ),
    },
}
COLUMNS = {name: column for table in TABLES.values() for name, column in table.items()}


def cell(case: Case, column: Column) -> tuple[str, str]:
    """What a spec does in a family: a word, and the reason where it is not SUPPORTED."""
    if not column.applies(case):
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

{len(rows)} pipelines and variants × {len(COLUMNS)} specs: {counts}; "–" where a tiny
pipeline has no prompt, no labels or no autoencoder of pictures.

Every row is a tiny pipeline of the real class with random weights, and every cell is a run of it. REFUSED: a clear
error before the first step, with the reason below the tables. WRONG, CRASH and LATE (an error after a step was made)
would be faults. Other pipelines are recorded the same way, see [Record a run](how-to/record.md); these are the ones
that are tested.

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
