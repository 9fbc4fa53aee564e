"""Results of experiments as one self-contained HTML page."""

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffusers_xai.analysis import interval_worth
from diffusers_xai.experiments.base import EXPERIMENTS, ExperimentResult
from diffusers_xai.experiments.tables import q_note
from diffusers_xai.report import write_page
from diffusers_xai.report.page import Section, page, render, render_figure


def write_experiments(results: Sequence[ExperimentResult], path: Path, command: str) -> None:
    """Writes one section for each result: figure, words, and how it was made.

    Raises:
        OSError: If the file cannot be written; what was at `path` stays.
    """
    body = [_head(results, command), *map(_section, results)]
    write_page(page("Experiments", body), path)


def _section(result: ExperimentResult) -> str:
    experiment = EXPERIMENTS[result.name]
    section = Section(
        title=html.escape(experiment.title),
        text=html.escape(experiment.text),
        alt=experiment.title,
        source=f"Source: {html.escape(experiment.source)}. {html.escape(_made(result.settings))}",
        draw=result.plot,
        wide=True,
    )
    images = result.plot_images()
    more = "" if images is None else render_figure(images, f"{experiment.title}: images of the first seed", wide=True)
    if experiment.table is not None:
        table = experiment.table(result)
        rows = table.to_html(index=False, border=0, justify="left")
        note = f"<p>{html.escape(q_note(table))}</p>" if q_note(table) else ""
        more += f'<details open><summary>Table</summary><div class="table" tabindex="0">{rows}</div>{note}</details>'
    return render(section, more)


def _made(settings: dict[str, Any]) -> str:
    seeds = settings["seeds"]
    made = (
        f"{_words_of(seeds)}, {settings['steps']} steps of"
        f" {settings['scheduler']}, guidance {settings['guidance_scale']:g}, labels"
        f" {', '.join(map(str, settings['labels'])) or 'none'}."
    )
    return f"{made} {interval_worth(len(seeds))}".rstrip()


def _words_of(seeds: Sequence[int]) -> str:
    return f"{len(seeds)} seeds ({seeds[0]} to {seeds[-1]})" if len(seeds) > 1 else f"Seed {seeds[0]}"


def _head(results: Sequence[ExperimentResult], command: str) -> str:
    facts = {
        "Checkpoint": Path(results[0].settings["checkpoint"]).name or "not saved yet",
        "Experiments": str(len(results)),
        "diffusers": results[0].settings["versions"].get("diffusers", ""),
    }
    items = "".join(f"<div><dt>{name}</dt><dd>{html.escape(value)}</dd></div>" for name, value in facts.items())
    return (
        "<header><h1>How the model makes its images, over many seeds</h1>"
        f'<dl class="facts">{items}</dl><pre>{html.escape(command)}</pre></header>'
    )
