"""The findings as a page: verdicts, how they were made, figures and tables."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from diffusers_xai.experiments.base import EXPERIMENTS, ExperimentResult
from diffusers_xai.experiments.claims import NEEDED
from diffusers_xai.experiments.findings import LEVEL, VERDICTS, Finding


COLUMNS = ("claim", "verdict", "effect (95 % interval)", "control", "excess over the control", "measured as")


def verdict_rows(table: Sequence[Finding]) -> list[str]:
    """The table of the verdicts in Markdown, a row for each claim.

    Args:
        table (`Sequence[Finding]`): Of [`findings`].
    """
    rows = [
        f"| {finding.claim.text} | **{finding.verdict}** | {' | '.join(verdict_numbers(finding))} |"
        f" {finding.claim.measured} |"
        for finding in table
    ]
    return [f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}", *rows]


def verdict_numbers(finding: Finding) -> tuple[str, str, str]:
    """Effect, control and excess of a finding as they stand in a table, or why there are none."""
    claim = finding.claim
    if claim.missing:
        return claim.missing, "", ""
    control = f"{finding.control[0]:z.4f} ({claim.control_text})" if finding.control is not None else "none"
    excess = _interval(finding.excess, signed=True) if finding.excess is not None else ""
    return _interval(finding.effect), control, excess


def _interval(facts: tuple[float, float, float], *, signed: bool = False) -> str:
    mean, low, high = (f"{value:+z.4f}" if signed else f"{value:z.4f}" for value in facts)
    return f"{mean} ({low} to {high})"


def to_markdown(
    table: Sequence[Finding], results: Mapping[str, ExperimentResult], pictures: Mapping[str, Sequence[str]]
) -> str:
    """A page with the verdicts, how they were made, and the figures and tables of the experiments.

    Args:
        table (`Sequence[Finding]`): Of [`findings`].
        results (`Mapping[str, ExperimentResult]`): What it was read from.
        pictures (`Mapping[str, Sequence[str]]`): Files of each experiment's figures, relative to the page.
    """
    checkpoint = Path(results[NEEDED[0]].settings["checkpoint"]).name
    counts = ", ".join(f"{sum(f.verdict == v for f in table)} {words}" for v, words in VERDICTS.items())
    lines = [
        "# Findings",
        "",
        f"What the thesis found, tested on the checkpoint `{checkpoint}`. Of {len(table)} claims, {counts}.",
        "",
        "A claim *holds* where its effect is shown to lie where the claim has it and to exceed its control, which has"
        " learned nothing. It is *not beyond the control* where the effect is there but not shown to exceed the"
        " control's. It *does not hold* where the effect is shown to lie elsewhere. Otherwise *this test"
        " cannot tell*. A run without a state where the claim needs one *cannot be asked*. Intervals"
        f" are Student's over the seeds; tests are at the {LEVEL:.0%} level after Benjamini and Hochberg's correction"
        " for all claims of the page.",
        "",
        *verdict_rows(table),
        "",
        "## How it was made",
        "",
        "| experiment | seeds | steps | scheduler | labels | control |",
        "|---|---:|---:|---|---|---|",
    ]
    for name in NEEDED:
        made = results[name].settings
        labels = ", ".join(map(str, made["labels"]))
        lines.append(
            f"| {name} | {len(made['seeds'])} | {made['steps']} | {made['scheduler']} | {labels} | {made['null']} |"
        )
    lines += ["", "## Figures and tables"]
    for name, files in pictures.items():
        experiment = EXPERIMENTS[name]
        lines += ["", f"### {experiment.title}"]
        lines += [line for file in files for line in ("", f"![{experiment.title}]({file})")]
        lines += ["", experiment.text]
        if experiment.table is not None:
            lines += ["", *markdown_rows(experiment.table(results[name]))]
        lines += ["", f"Source: {experiment.source}."]
    return "\n".join(lines) + "\n"


def markdown_rows(table: pd.DataFrame) -> list[str]:
    """A table in Markdown, line by line."""
    rows = [table.columns, ["---"] * len(table.columns), *table.itertuples(index=False)]
    return [f"| {' | '.join(map(str, row))} |" for row in rows]
