"""Shows how often each label occurs, and how the attributes go together (thesis fig. 5.2).

    python -m training.describe --data DATA --attributes Bangs Male Smiling Wearing_Lipstick --out labels.html

The figure is HTML, or PNG or SVG where kaleido and a Chrome are installed; the numbers are printed.
"""

import argparse
import sys
from pathlib import Path

import datasets
import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from diffusers_xai.labels import attributes_of, label_bits
from diffusers_xai.plots.style import DIVERGING_COLOR_SCALE, LINE_COLORS, TEMPLATE
from training.celeba import (
    DEFAULT_ATTRIBUTES,
    MAX_ATTRIBUTES,
    attribute_values,
    check_attributes,
    labels_from_values,
    open_splits,
    row_faults,
)
from training.figures import check_figure_path, write_figure


def label_counts(values: np.ndarray) -> np.ndarray:
    """Images of each label: attributes (row, attribute) of 0 and 1 -> (2 ** attribute,) int64."""
    return np.bincount(labels_from_values(values), minlength=2 ** values.shape[1])


def attribute_correlation(values: np.ndarray) -> np.ndarray:
    """Pearson correlation of the attributes, (attribute, attribute); NaN for one that is always or never there."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.corrcoef(values, rowvar=False).reshape(values.shape[1], values.shape[1])


def describe(splits: datasets.DatasetDict, attributes: list[str]) -> tuple[np.ndarray, int]:
    """The attributes of all images (row, attribute), and the number of rows without them, which are left out."""
    values = np.concatenate([attribute_values(split, attributes) for split in splits.values()])
    faulty = np.isnan(values).any(axis=1) | np.concatenate([list(map(bool, row_faults(s))) for s in splits.values()])
    return values[~faulty], int(faulty.sum())


def label_figure(values: np.ndarray, attributes: list[str]) -> go.Figure:
    """Draws the histogram of the labels, the most frequent first, beside the correlation of the attributes."""
    counts, correlation = label_counts(values), attribute_correlation(values)
    order = [int(label) for label in np.argsort(-counts, kind="stable") if counts[label] > 0][:32]
    names = [_label_name(label, attributes) for label in order]
    short = [name.replace("_", "<br>") for name in attributes]
    figure = make_subplots(
        rows=1, cols=2, column_widths=[0.55, 0.45], horizontal_spacing=0.17,
        subplot_titles=[f"Images of each label ({len(values):,} in all)", "Correlation of the attributes"],
    )  # fmt: skip
    figure.add_bar(
        x=counts[order], y=names, orientation="h", marker_color=LINE_COLORS[0], row=1, col=1,
        text=[f"{counts[label]:,} · {counts[label] / len(values):.1%}" for label in order], textposition="outside",
        cliponaxis=False,
    )  # fmt: skip
    figure.add_heatmap(
        z=correlation, x=short, y=short, zmin=-1, zmax=1, colorscale=DIVERGING_COLOR_SCALE, row=1, col=2,
        text=np.char.mod("%+.2f", correlation), texttemplate="%{text}", colorbar={"title": "r", "thickness": 12},
    )  # fmt: skip
    figure.update_xaxes(title="images", range=[0, 1.3 * counts.max()], row=1, col=1)
    figure.update_yaxes(autorange="reversed", automargin=True)
    figure.update_xaxes(tickangle=0, automargin=True)
    figure.update_layout(
        template=TEMPLATE,
        width=1200,
        height=max(420, 150 + 26 * len(order)),
        showlegend=False,
        margin={"l": 16, "t": 48, "b": 64},
    )
    return figure


def _label_name(label: int, attributes: list[str]) -> str:
    present = [name.replace("_", " ") for name in attributes_of(label, attributes)]
    return f"{', '.join(present) or 'none'}  {label_bits(label, attributes)}"


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="as in train.py")
    parser.add_argument("--data-config", help="the Hub data set's configuration")
    parser.add_argument(
        "--attributes",
        nargs="+",
        default=list(DEFAULT_ATTRIBUTES),
        help=f"up to {MAX_ATTRIBUTES} columns, most significant bit first. Default: the thesis's four",
    )
    parser.add_argument("--out", type=Path, default=Path("labels.html"), help="the figure. Default: labels.html")
    args = parser.parse_args(arguments)
    try:
        if len(args.attributes) > MAX_ATTRIBUTES:
            raise ValueError(f"expected at most {MAX_ATTRIBUTES} attributes, got {len(args.attributes)}")
        check_figure_path(args.out)
        splits = open_splits(args.data, args.data_config)
        for split in splits.values():
            check_attributes(args.attributes, split.column_names)
        values, faulty = describe(splits, args.attributes)
        if not len(values):
            raise ValueError(f"expected rows with the attributes as -1, 0 or 1, got none in {faulty}")
        write_figure(label_figure(values, args.attributes), args.out)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    counts = label_counts(values)
    for label in np.argsort(-counts, kind="stable"):
        if counts[label]:
            print(
                f"{counts[label]:8,}  {counts[label] / len(values):6.1%}  {_label_name(int(label), args.attributes)}"
            )
    print(f"{faulty} rows without valid attributes were left out; figure in {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
