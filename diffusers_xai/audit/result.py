"""What an audit comes to: a table of grades with intervals and corrected verdicts, and whether the controls hold."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from diffusers_xai.analysis import above_test, benjamini_hochberg, interval_worth, mean_interval
from diffusers_xai.audit.figure import audit_figure, row_name
from diffusers_xai.audit.scale import CHECKPOINT, CLOSED_FORM, FAILS, GRADES, LEVEL, NEEDED, PASSES, TOLD
from diffusers_xai.plots.style import add_note


@dataclass(frozen=True)
class AuditResult:
    """The outcome of an audit.

    Args:
        table (`pd.DataFrame`): A row for each explanation and test: `model`, `explanation`, `size` (of maps that are
            smaller than the samples, such as "4×4"), `test`, `value` (mean over the seeds), `low` and `high` (95 %,
            Student's), `reference` (its mean), `p` (one-sided; NaN where nothing is judged, and of the error on
            known truth, which is arithmetic), `q` (corrected by Benjamini and Hochberg over the table), `verdict`,
            `seeds`, and `why_not`, where a test cannot be made; its numbers are then NaN.
        cascade (`pd.DataFrame`): `model`, `explanation`, `share` of the layers that have changed, `similarity`.
        settings (`dict[str, Any]`): How it was made, JSON-able.
        positive (`str`): The explanation that must pass, on the closed form, and
        negative (`str`): the one that must fail, on the checkpoint.
    """

    table: pd.DataFrame
    cascade: pd.DataFrame
    settings: dict[str, Any]
    positive: str
    negative: str

    def verdict(self, model: str, explanation: str, test: str) -> str | None:
        """What the table says of one test; `None` where it was not made."""
        row = self.table.query("model == @model and explanation == @explanation and test == @test")
        return None if row.empty else str(row["verdict"].iloc[0])

    def is_faithful(self, model: str, explanation: str) -> bool:
        """Whether an explanation passes what it must: of `NEEDED`, all tests that are made and judged."""
        verdicts = [self.verdict(model, explanation, test) for test in NEEDED]
        return FAILS not in verdicts and PASSES in verdicts

    @property
    def broken_controls(self) -> list[str]:
        """What the controls should have shown and did not, in words; empty where the audit can be trusted."""
        broken = []
        if self.is_faithful(CHECKPOINT, self.negative):
            broken.append(f"{self.negative} passes, although it does not look at the model")
        exact = self.verdict(CLOSED_FORM, self.positive, "closed_form")
        if not self.is_faithful(CLOSED_FORM, self.positive) or exact != PASSES:
            broken.append(f"the {self.positive} does not pass on the closed form, where it is the exact one")
        return broken

    def plot(self) -> go.Figure:
        """Draws the table, and how explanations part from the trained network's as its weights change."""
        figure, worth = audit_figure(self.table, self.cascade, self.is_faithful), self._worth
        return add_note(figure, worth) if worth else figure

    def to_markdown(self) -> str:
        """The table, with what passes in bold, and a line on the controls."""
        present = [test for test in GRADES if (self.table["test"] == test).any()]
        titles = [GRADES[test].title.replace("<br>", " ") for test in present]
        lines = ["| explanation | faithful | " + " | ".join(titles) + " |", "|---" * (len(titles) + 2) + "|"]
        for (model, explanation), rows in self.table.groupby(["model", "explanation"], sort=False):
            cells = [_cell(rows[rows["test"] == test]) for test in present]
            name = row_name(str(model), str(explanation), rows["size"].iloc[0])
            faithful = "yes" if self.is_faithful(str(model), str(explanation)) else "no"
            lines.append(f"| {name} | {faithful} | " + " | ".join(cells) + " |")
        controls = "Both controls hold." if not self.broken_controls else "; ".join(self.broken_controls) + "."
        return "\n".join([*lines, "", f"{controls} {self._worth}".rstrip(), ""])

    @property
    def _worth(self) -> str:
        """What the intervals of its seeds are worth, where that has to be said."""
        return interval_worth(int(self.table["seeds"].max()))

    def save(self, folder: str | os.PathLike) -> list[Path]:
        """Writes `audit.json`, `audit.md`, `audit.html` and `audit.parquet`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        facts = {
            "settings": self.settings,
            "broken_controls": self.broken_controls,
            "table": json.loads(self.table.to_json(orient="records")),
            "cascade": json.loads(self.cascade.to_json(orient="records")),
        }
        written = [folder / name for name in ("audit.json", "audit.md", "audit.html")]
        written[0].write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        written[1].write_text(self.to_markdown(), encoding="utf-8")
        self.plot().write_html(written[2], include_plotlyjs=True)
        self.table.to_parquet(folder / "audit.parquet", index=False)
        return [*written, folder / "audit.parquet"]


def table_of(scores: Mapping[tuple[str, str], Mapping[str, Any]]) -> pd.DataFrame:
    """The table of [`AuditResult`].

    Args:
        scores (`Mapping`): (model, explanation) -> test -> `values (case, seed)` and, where the test has one,
            `reference` of the same shape, `told` where there is no verdict, and `why_not` where there are no values;
            and `size`: `values` of a map's size.
    """
    rows = []
    for (model, explanation), tests in scores.items():
        size = "×".join(str(int(side)) for side in tests.get("size", {}).get("values", []))
        for test, numbers in tests.items():
            if test not in GRADES:
                continue
            grade = GRADES[test]
            why_not = numbers.get("why_not", "")
            values = np.full(1, np.nan) if why_not else np.asarray(numbers["values"]).mean(0)
            reference = grade.limit if "reference" not in numbers else np.asarray(numbers["reference"]).mean(0)
            low, high = mean_interval(values)
            sign = 1 if grade.higher_is_better else -1
            is_judged = grade.judged and not numbers.get("told", False) and not why_not
            verdict, p_value = TOLD, np.nan
            if is_judged and grade.exact:
                verdict = PASSES if high < reference else FAILS
            elif is_judged:
                p_value = float(above_test(sign * (values - reference)))
            rows.append(
                {
                    "model": model,
                    "explanation": explanation,
                    "size": size,
                    "test": test,
                    "value": values.mean(),
                    "low": float(low),
                    "high": float(high),
                    "reference": np.nan if reference is None else float(np.mean(reference)),
                    "p": p_value,
                    "verdict": verdict,
                    "seeds": 0 if why_not else len(values),
                    "why_not": why_not,
                }
            )
    table = pd.DataFrame(rows)
    table["q"] = benjamini_hochberg(table["p"].to_numpy())
    judged = np.where(table["q"] <= LEVEL, PASSES, FAILS)
    table["verdict"] = table["verdict"].where(table["p"].isna(), judged)
    return table


def _cell(rows: pd.DataFrame) -> str:
    if rows.empty:
        return "–"
    row = rows.iloc[0]
    if row["why_not"]:
        return f"none: {row['why_not']}"
    text = f"{row['value']:z.2f} ({row['low']:z.2f} to {row['high']:z.2f})"
    if row["test"] in GRADES and GRADES[row["test"]].limit is None and not np.isnan(row["reference"]):
        text += f" against {row['reference']:z.2f}"
    return f"**{text}**" if row["verdict"] == PASSES else text
