"""The findings as a page: verdicts, how they were made, figures and tables."""

from collections.abc import Mapping, Sequence

import pandas as pd

from diffusers_xai.experiments.base import EXPERIMENTS, ExperimentResult
from diffusers_xai.experiments.findings import FAILS, HOLDS, NEEDED, UNDECIDED, Finding


def to_markdown(
    table: list[Finding], results: Mapping[str, ExperimentResult], pictures: Mapping[str, Sequence[str]]
) -> str:
    """A page with the verdicts, how they were made, and the figures and tables of the experiments.

    Args:
        table (`list[Finding]`): Of [`findings`].
        results (`Mapping[str, ExperimentResult]`): What it was read from.
        pictures (`Mapping[str, Sequence[str]]`): Files of each experiment's figures, relative to the page.
    """
    first = results[NEEDED[0]].settings
    rows = [
        f"| {f.claim} | **{f.verdict}** | {f.effect:+.4f} ({f.low:+.4f} to {f.high:+.4f}) | {f.criterion} |"
        for f in table
    ]
    counts = {verdict: sum(f.verdict == verdict for f in table) for verdict in (HOLDS, FAILS, UNDECIDED)}
    lines = [
        "# Findings",
        "",
        f"What the thesis found, tested on the checkpoint `{first['checkpoint'].rstrip('/').rsplit('/', 1)[-1]}`:"
        f" {counts[HOLDS]} hold, {counts[FAILS]} do not, {counts[UNDECIDED]} are undecided. A claim holds where the"
        " 95 % interval of its effect lies above zero, and does not where it lies below. The criteria were"
        " fixed before these runs. Another checkpoint may answer otherwise: the thesis's was trained"
        " for longer, on more faces, at twice or four times the size.",
        "",
        "| claim | verdict | effect (95 % interval) | effect is the mean over the seeds of |",
        "|---|---|---|---|",
        *rows,
        "",
        "## How it was made",
        "",
        "| experiment | seeds | steps | scheduler | labels |",
        "|---|---:|---:|---|---|",
        *(
            f"| {name} | {len(results[name].settings['seeds'])} | {results[name].settings['steps']} |"
            f" {results[name].settings['scheduler']} | {', '.join(map(str, results[name].settings['labels']))} |"
            for name in NEEDED
        ),
        "",
        "## Figures and tables",
    ]
    for name, files in pictures.items():
        experiment = EXPERIMENTS[name]
        lines += ["", f"### {experiment.title}"]
        lines += [line for file in files for line in ("", f"![{experiment.title}]({file})")]
        lines += ["", experiment.text]
        if experiment.table is not None:
            lines += ["", *_markdown_rows(experiment.table(results[name]))]
        lines += ["", f"Source: {experiment.source}."]
    return "\n".join(lines) + "\n"


def _markdown_rows(table: pd.DataFrame) -> list[str]:
    rows = [table.columns, ["---"] * len(table.columns), *table.itertuples(index=False)]
    return [f"| {' | '.join(map(str, row))} |" for row in rows]
