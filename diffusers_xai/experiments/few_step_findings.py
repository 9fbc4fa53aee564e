"""What of the thesis's findings survives where the process has four to eight steps."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import xarray as xr

from diffusers_xai.experiments.base import EXPERIMENTS, Experiment, ExperimentResult, register
from diffusers_xai.experiments.claims import NEEDED, Claim, claims
from diffusers_xai.experiments.few_steps import Way, ways_of
from diffusers_xai.experiments.findings import (
    CANNOT_TELL,
    FAILS,
    HOLDS,
    MIN_SEEDS,
    NOT_BEYOND,
    UNASKED,
    Finding,
    tested,
)
from diffusers_xai.experiments.findings_page import verdict_numbers
from diffusers_xai.experiments.nulls import Null, null_pipeline
from diffusers_xai.experiments.sampling import Sampling, measured_of
from diffusers_xai.measures import Mask
from diffusers_xai.pipelines import XAIPipeline
from diffusers_xai.plots.style import MUTED_COLOR, TEMPLATE


# Of the cells of the figure; light, so that numbers can be read on them.
COLORS = {
    HOLDS: "#8fd3bb",
    NOT_BEYOND: "#f5cf7a",
    FAILS: "#eaae7f",
    CANNOT_TELL: "#e4e7eb",
    UNASKED: "#ffffff",
}
_LINE, _CELL = 58, 34  # characters of a line of a claim, pixels of a row


def measure(
    pipe: XAIPipeline,
    sampling: Sampling,
    *,
    counts: Sequence[int] | None = None,
    others: Sequence[XAIPipeline] = (),
    student_steps: int = 4,
    mask: Mask | None = None,
    null: Null = "gaussian",
) -> xr.Dataset:
    """The claims of `findings`, asked of a run of many steps and of every way in few, each beside its control.

    Every way is measured by the same experiments as the findings. A claim is asked where the run has a state within
    half a step of each moment that it names, and two at least where it is about a slope; elsewhere the result says
    why not. Of the layers and channels the controls are those of the findings, of the same run; of states, labels and
    gradients they are Gaussians that go the same way: those fitted to the model's samples, of a student too.

    Source: METHOD: section 7; thesis chapter 7 (samplers of few steps).

    Args:
        pipe ([`XAIPipeline`]): A conditional model with the thesis's layers and a noise schedule by timesteps.
        sampling ([`Sampling`]): What is sampled, two labels; `steps` are those of the run of many steps, by DDIM.
        counts (`Sequence[int]`, *optional*): Steps of the solvers; 4 and 8, those below `steps`, if `None`.
        others (`Sequence` of [`XAIPipeline`]): Students, models distilled from it, each with its own scheduler, and
        student_steps (`int`): how many steps they take.
        mask (`(height, width)` bool): The eyes, whose gradients are looked at; a square in the middle if `None`.
        null (`str` or [`XAIPipeline`]): `"gaussian"`, Gaussians of the two labels, or `"none"` for no control at all.

    Returns:
        `xarray.Dataset`: `effect` and `null_effect` of dims (seed, way, claim), NaN where a claim cannot be asked or
        has no control. Its attributes tell the `claims`, and `unasked`, why a way cannot be asked one.

    Raises:
        ValueError: If the counts are not below the number of steps, the scheduler has no ᾱ, or the network is not of
            the thesis's kind.
    """
    ways = ways_of(pipe, sampling.steps, counts, others, student_steps)
    gaussians = null_pipeline(null, pipe, sampling)
    found = [_claims_of(way, sampling, gaussians, mask) for way in ways]
    unknown = np.full(len(sampling.seeds), np.nan)
    controls = [[unknown if claim.control is None else claim.control for claim in made] for made in found]
    dims = ("seed", "way", "claim")
    return xr.Dataset(
        {
            "effect": (dims, np.moveaxis(np.array([[claim.values for claim in made] for made in found]), -1, 0)),
            "null_effect": (dims, np.moveaxis(np.array(controls), -1, 0)),
        },
        {
            "seed": list(sampling.seeds),
            "way": [way.name for way in ways],
            "claim": [claim.text for claim in found[0]],
            "steps": ("way", [way.steps for way in ways]),
        },
        {"claims": [_told(claim) for claim in found[0]], "unasked": [[c.missing for c in made] for made in found]},
    )


def _claims_of(way: Way, sampling: Sampling, gaussians: XAIPipeline | None, mask: Mask | None) -> list[Claim]:
    """The claims, read from the experiments of one way."""
    results = {}
    for name in NEEDED:
        experiment = EXPERIMENTS[name]
        null: Null = "none" if gaussians is None else experiment.nulls[0]
        if gaussians is not None and null in ("gaussian", "forward-noising"):
            # Noise that is added step by step is the law of DDPM alone; Gaussians go any solver's way.
            null = XAIPipeline(gaussians.unet, way.pipe.scheduler)
            null.set_progress_bar_config(disable=True)
        labels = sampling.labels[: experiment.labels]
        region: dict[str, Any] = {"mask": mask} if experiment.region == "eyes" else {}
        with measured_of(way.name):
            results[name] = experiment.run(
                way.pipe, replace(sampling, steps=way.steps, labels=labels), null=null, **region
            )
    return claims(results)


def _told(claim: Claim) -> dict[str, str | float | None]:
    high = None if np.isinf(claim.high) else claim.high
    return {
        "measured": claim.measured, "experiment": claim.experiment, "control": claim.control_text, "low": claim.low,
        "high": high,
    }  # fmt: skip


def findings_by_way(result: ExperimentResult) -> Mapping[str, list[Finding]]:
    """The verdict on each claim by way, corrected for all tests of the table."""
    data, made = result.data, []
    for way, missing in zip(data["way"].values, result.settings["unasked"], strict=True):
        for text, facts, why in zip(data["claim"].values, result.settings["claims"], missing, strict=True):
            values, control = (data[name].sel(way=way, claim=text).values for name in ("effect", "null_effect"))
            high = np.inf if facts["high"] is None else facts["high"]
            known = control if facts["control"] else None
            made.append(
                Claim(
                    str(text), facts["measured"], facts["experiment"], facts["control"], values, known, facts["low"],
                    high, why,
                )
            )  # fmt: skip
    table, count = tested(made), data.sizes["claim"]
    return {str(way): table[i * count : (i + 1) * count] for i, way in enumerate(data["way"].values)}


def plot(result: ExperimentResult) -> go.Figure:
    """Draws the verdicts, a row for each claim and a column for each way, with effect and control in the cells."""
    by_way = findings_by_way(result)
    kinds = list(COLORS)
    rows = ["<br>".join(textwrap.wrap(text, _LINE)) for text in result.data["claim"].values.tolist()]
    columns = [way.replace(", ", "<br>").replace("DPM-", "DPM-<br>") for way in by_way]
    cells = list(zip(*by_way.values(), strict=True))
    figure = go.Figure()
    figure.add_heatmap(
        z=[[kinds.index(finding.verdict) for finding in row] for row in cells],
        x=columns, y=rows, zmin=-0.5, zmax=len(kinds) - 0.5, showscale=False, xgap=2, ygap=2,
        colorscale=[
            [(k + side) / len(kinds), color] for k, color in enumerate(COLORS.values()) for side in (0, 1)
        ],
        text=[[_cell(finding) for finding in row] for row in cells], texttemplate="%{text}", textfont={"size": 11},
        customdata=[[f"{f.verdict}<br>{f.claim.missing or f.claim.measured}" for f in row] for row in cells],
        hovertemplate="%{y}<br>%{x}<br>%{customdata}<extra></extra>",
    )  # fmt: skip
    for verdict, color in COLORS.items():
        figure.add_scatter(
            x=[None], y=[None], mode="markers", name=verdict,
            marker={"symbol": "square", "size": 12, "color": color, "line": {"color": MUTED_COLOR, "width": 1}},
        )  # fmt: skip
    figure.update_yaxes(autorange="reversed", automargin=True, tickfont={"size": 11}, showgrid=False)
    figure.update_xaxes(side="top", tickfont={"size": 11}, showgrid=False)
    legend = {"orientation": "h", "x": 0, "xanchor": "left", "y": -0.01, "yanchor": "top"}
    return figure.update_layout(
        template=TEMPLATE, height=_CELL * len(rows) + 150, legend=legend, margin={"t": 70, "b": 60}
    )


def _cell(finding: Finding) -> str:
    """The effect, and the control's in brackets."""
    if finding.claim.missing:
        return ""
    means = [round(facts[0], 2) + 0.0 for facts in (finding.effect, finding.control) if facts is not None]  # no −0
    return f"{means[0]:.2f}" + (f" ({means[1]:.2f})" if len(means) > 1 else "")


def table(result: ExperimentResult) -> pd.DataFrame:
    """Every claim of every way: verdict, effect, control, excess, or why it cannot be asked."""
    by_way = findings_by_way(result)
    columns = ("effect (95 % interval)", "control", "excess over the control")
    rows = []
    for row in zip(*by_way.values(), strict=True):
        for way, finding in zip(by_way, row, strict=True):
            numbers = dict(zip(columns, verdict_numbers(finding), strict=True))
            named = {"claim": finding.claim.text, "way": way, "verdict": finding.verdict}
            rows.append({**named, **numbers, "measured as": finding.claim.measured})
    return pd.DataFrame(rows)


register(
    Experiment(
        "few-step-findings",
        "Which findings survive few steps",
        "The thesis's claims, asked by the same experiments of images made in many steps, and in four and eight by"
        " DDIM, DPM-Solver++, LCM and a distilled student where there is one. Colours are the verdicts, corrected for"
        " all tests of the table; the number in a cell is the effect, that in brackets the control's: random channels"
        " and random weights of the same run, and else Gaussians fitted to the model's own samples, which go the same"
        " way. A claim holds where its effect is shown to be there and to exceed the control's. A white cell is a"
        " claim that cannot be asked: the run has no state within half a step of a moment that the claim names; the"
        " table says which.",
        "thesis chapter 5, for the claims, and chapter 7 (future work: samplers of few steps)",
        measure,
        plot,
        labels=2,
        nulls=("gaussian",),
        needs="blocks",
        may_take="students",
        region="eyes",
        seeds=MIN_SEEDS,
        min_seeds=3,  # whose images are each other's chance
        runs=210,
        calls=24,
        steps=50,
        table=table,
    )
)
