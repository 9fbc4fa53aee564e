"""Draws the curves of a training: the loss, and L1, SSIM and PSNR on the validation images (thesis fig. B.1, B.2).

    python -m training.curves RUN [RUN …] --out curves.html

A run is the folder that `train.py` wrote; several are drawn over each other.
"""

import argparse
import sys
from pathlib import Path

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from diffusers_xai.plots.style import TEMPLATE, line_style
from training.figures import check_figure_path, write_figure
from training.log import read_log


_PANELS = (
    ("loss", "Training loss"),
    ("l1", "Validation: L1"),
    ("ssim", "Validation: SSIM"),
    ("psnr", "Validation: PSNR (dB)"),
)


def curves(logs: dict[str, list[dict]]) -> go.Figure:
    """Draws the logs of runs by name: over epochs, or over steps where a log does not know its epochs."""
    over = "epoch" if all("epoch" in record for log in logs.values() for record in log) else "step"
    figure = make_subplots(rows=2, cols=2, subplot_titles=[title for _, title in _PANELS], vertical_spacing=0.16)
    for index, (name, log) in enumerate(logs.items()):
        for panel, (key, _) in enumerate(_PANELS):
            records = [record for record in log if key in record]
            figure.add_scatter(
                x=[record[over] for record in records],
                y=[record[key] for record in records],
                mode="lines" if len(records) > 1 else "markers",
                name=name,
                legendgroup=name,
                showlegend=panel == 0 and len(logs) > 1,
                line=line_style(index),
                row=panel // 2 + 1,
                col=panel % 2 + 1,
            )
    figure.update_xaxes(title=over)
    figure.update_layout(template=TEMPLATE, width=1100, height=720, margin={"t": 64}, legend={"y": 1.08})
    return figure


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a training")
    parser.add_argument("--out", type=Path, default=Path("curves.html"), help="the figure. Default: curves.html")
    args = parser.parse_args(arguments)
    try:
        check_figure_path(args.out)
        write_figure(curves({run.name: read_log(run) for run in args.runs}), args.out)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
