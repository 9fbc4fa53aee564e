"""The figure of an audit."""

from collections.abc import Callable

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from diffusers_xai.audit.scale import CHECKPOINT, FAILS, GRADES, LIMIT, PASSES, TOLD, Grade
from diffusers_xai.plots.style import DASHES, LINE_COLORS, MUTED_COLOR, TEMPLATE


_COLORS = {PASSES: "#9ecae9", FAILS: "#f6c9a0", TOLD: "#e9ecef"}  # tell apart for every kind of colour vision
_ROW, _CURVES = 46, 300  # pixels


def audit_figure(table: pd.DataFrame, cascade: pd.DataFrame, is_faithful: Callable[[str, str], bool]) -> go.Figure:
    """Draws the grades as a coloured table, and below how explanations part as the weights change places.

    Args:
        table (`pd.DataFrame`): Of [`AuditResult`].
        cascade (`pd.DataFrame`): Of [`AuditResult`].
        is_faithful (`Callable`): Of [`AuditResult`].
    """
    tests = [test for test in GRADES if (table["test"] == test).any()]
    rows = list(table.groupby(["model", "explanation"], sort=False).groups)
    sizes = table.groupby(["model", "explanation"], sort=False)["size"].first()
    names = [row_name(row[0], row[1], sizes[row]) for row in rows]
    height = _ROW * len(rows)
    figure = make_subplots(
        rows=2,
        row_heights=[height / (height + _CURVES), _CURVES / (height + _CURVES)],
        vertical_spacing=90 / (height + _CURVES),
        subplot_titles=(None, "Rank correlation with the trained network's explanation, as weights change places"),
    )
    codes, texts, hovers = (np.full((len(rows), len(tests)), fill, dtype=object) for fill in (np.nan, "", ""))
    verdicts = list(_COLORS)
    for _, cell in table.iterrows():
        place = rows.index((cell["model"], cell["explanation"])), tests.index(cell["test"])
        grade = GRADES[cell["test"]]
        codes[place] = verdicts.index(cell["verdict"])
        against = (
            ""
            if cell["verdict"] == TOLD
            else f"{'above' if grade.higher_is_better else 'below'} {cell['reference']:.2f}?"
        )
        if cell["why_not"]:
            texts[place] = "none"
            hovers[place] = f"{cell['explanation']}<br>{cell['why_not']}<br>{grade.text}"
            continue
        texts[place] = f"<b>{cell['value']:.2f}</b> ± {(cell['high'] - cell['low']) / 2:.2f}<br>{against}"
        known = "" if np.isnan(cell["q"]) else f", q = {cell['q']:.2g}"
        hovers[place] = f"{cell['explanation']}<br>{cell['verdict']}{known}<br>{grade.text}"
    figure.add_heatmap(
        x=[_heading(GRADES[test]) for test in tests],
        y=[f"<b>{name}</b>" if is_faithful(*row) else name for row, name in zip(rows, names, strict=True)],
        z=codes.astype(float),
        zmin=0,
        zmax=len(verdicts) - 1,
        colorscale=[[i / (len(verdicts) - 1), _COLORS[verdict]] for i, verdict in enumerate(verdicts)],
        showscale=False,
        text=texts,
        texttemplate="%{text}",
        textfont={"size": 11},
        customdata=hovers,
        hovertemplate="%{customdata}<extra></extra>",
        hoverongaps=False,
        xgap=2,
        ygap=2,
        row=1,
        col=1,
    )
    bold = "<b>bold</b>: passes other weights, infidelity and, where they are made, permuted labels and deletion"
    for verdict, color in {**_COLORS, bold: "rgba(0, 0, 0, 0)"}.items():
        marker = {"symbol": "square", "size": 14, "color": color}
        figure.add_scatter(
            x=[None], y=[None], mode="markers", marker=marker, name=verdict, legend="legend", row=1, col=1
        )
    for index, ((model, explanation), curve) in enumerate(cascade.groupby(["model", "explanation"], sort=False)):
        figure.add_scatter(
            x=100 * curve["share"],
            y=curve["similarity"],
            name=row_name(str(model), str(explanation), sizes[model, explanation]),
            mode="lines+markers",
            line={
                "color": LINE_COLORS[index % len(LINE_COLORS)],
                "dash": DASHES[index // len(LINE_COLORS) % len(DASHES)],
            },
            legend="legend2",
            row=2,
            col=1,
        )
    figure.add_hline(y=LIMIT, line={"color": MUTED_COLOR, "dash": "dot"}, row=2, col=1)
    figure.update_layout(
        template=TEMPLATE,
        height=height + _CURVES + 330,
        margin={"l": 290, "r": 24, "t": 120, "b": 200},
        # Below a note.
        legend={"orientation": "h", "x": 0, "y": 0.975, "yanchor": "top", "yref": "container", "xref": "paper"},
        legend2={"orientation": "h", "x": 0, "y": 0, "yanchor": "bottom", "yref": "container", "font": {"size": 11}},
    )
    figure.update_xaxes(side="top", showgrid=False, ticks="", tickangle=0, tickfont={"size": 10}, row=1, col=1)
    figure.update_yaxes(autorange="reversed", showgrid=False, ticks="", row=1, col=1)
    figure.update_xaxes(
        title="layers whose weights have changed places, from the output on (%; at 0 the last alone)", row=2
    )
    figure.update_yaxes(title="|ρ|", range=[0, 1.03], row=2)
    return figure


def _heading(grade: Grade) -> str:
    return grade.title + (
        "<br>(high is good)" if grade.higher_is_better else "<br>(low is good)" if grade.judged else ""
    )


def row_name(model: str, explanation: str, size: str) -> str:
    """What a row is called; a map tells its size, for it cannot show what is smaller than its pixels."""
    name = f"{explanation}, {size}" if size else explanation
    return name if model == CHECKPOINT else f"{name}, on the {model} (control)"
