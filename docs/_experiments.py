"""Writes docs/experiment-list.md from the experiments' own entries; `make docs` runs it."""

from pathlib import Path

from diffusers_xai.experiments import EXPERIMENTS


def page() -> str:
    """A section for each experiment: what it asks, how to read its figure, where the thesis has it."""
    sections = [
        f"## {experiment.title}\n\n`{experiment.name}`: {experiment.text}\n\nSource: {experiment.source}. By default"
        f" {experiment.seeds} seeds, {experiment.steps} steps.\n"
        for experiment in EXPERIMENTS.values()
    ]
    return "\n".join(["# List of experiments\n", *sections])


if __name__ == "__main__":
    Path(__file__).with_name("experiment-list.md").write_text(page(), encoding="utf-8")
