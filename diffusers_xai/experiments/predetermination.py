"""From when on a label no longer changes the image (thesis fig. 5.17, D.2)."""

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
import xarray as xr

from diffusers_xai.analysis import predetermination_index, summary
from diffusers_xai.experiments.base import Experiment, ExperimentResult, register
from diffusers_xai.experiments.figures import band, interval_text, label_text
from diffusers_xai.experiments.sampling import Sampling, of_first_seed
from diffusers_xai.measures import structural_similarity
from diffusers_xai.pipelines import XAIPipeline
from diffusers_xai.pipelines.switch_sweep import switch_sweep
from diffusers_xai.plots.style import MUTED_COLOR, TEMPLATE
from diffusers_xai.plots.tiles import Tile, tile_rows, to_rgb


THRESHOLD = 0.9


def measure(
    pipe: XAIPipeline,
    sampling: Sampling,
    *,
    switches: int = 10,
    **options: Any,
) -> xr.Dataset:
    """Switches the label at several steps and compares the image with the unswitched run's.

    The steps before a switch are done once for all, see `switch_sweep`.

    Source: thesis section 5.3.2, fig. 5.17, D.2.

    Args:
        pipe ([`XAIPipeline`]): A conditional model.
        sampling ([`Sampling`]): What is sampled.
        switches (`int`): How many switches, evenly spread; the first one is at step 0.
        options: Passed to `switch_sweep`, such as `callback_on_step_end`.

    Returns:
        `xarray.Dataset`: `ssim` of dims (seed, switch) with the coordinates `step` and `share` (part of the steps
        done before the switch), `index` (seed), and the final states `images` (run, rgb, height, width) of the
        first seed, the unswitched run first.
    """
    if not 2 <= switches <= sampling.steps:
        raise ValueError(f"expected switches in 2..{sampling.steps}, got {switches}")
    pipe.scheduler.set_timesteps(sampling.steps)
    calls = len(pipe.scheduler.timesteps)
    steps = [calls * i // switches for i in range(switches)]
    coords = {"step": ("switch", steps), "share": ("switch", np.array(steps) / calls)}
    coords["timestep"] = ("switch", [float(pipe.scheduler.timesteps[step]) for step in steps])

    def measure_batch(part: list[int]) -> xr.Dataset:
        first, second = sampling.labels
        final = switch_sweep(
            pipe,
            first,
            second,
            part,
            steps,
            num_inference_steps=sampling.steps,
            guidance_scale=sampling.guidance_scale,
            max_rows=sampling.batch_size,
            **options,
        )
        ssim = torch.stack([structural_similarity(final[0], switched) for switched in final[1:]], dim=1)
        return xr.Dataset(
            {
                "ssim": (("seed", "switch"), ssim.cpu().numpy()),
                "images": (("seed", "run", "rgb", "height", "width"), final.transpose(0, 1).float().cpu().numpy()),
            },
            coords,
        )

    data = sampling.over_seeds(measure_batch, "label switches", seeds_at_once=max(1, sampling.batch_size // 4))
    data = data.assign(index=predetermination_index(data["ssim"], THRESHOLD))
    return of_first_seed(data, "images").assign_attrs(threshold=THRESHOLD)


def plot(result: ExperimentResult) -> go.Figure:
    """Draws SSIM to the unswitched image over the step of the switch, with the index and its interval."""
    data, settings = result.data, result.settings
    index = summary(data["index"])
    first, second = (label_text(settings, label) for label in settings["labels"])
    share = 100 * data["share"].values
    figure = go.Figure()
    low, high = 100 * float(index["low"]), 100 * float(index["high"])
    figure.add_vrect(low, high, fillcolor="#e69f00", opacity=0.25, line_width=0)
    figure.add_vline(
        100 * float(index["mean"]), line={"color": "#e69f00", "width": 2},
        annotation={"text": f"index {float(index['mean']):.2f} ({low / 100:.2f}–{high / 100:.2f})"},
        annotation_position="bottom right",
    )  # fmt: skip
    figure.add_hline(
        settings["threshold"], line={"color": MUTED_COLOR, "dash": "dot", "width": 1},
        annotation={"text": f"alike from {settings['threshold']}", "font": {"color": MUTED_COLOR}},
        annotation_position="top left",
    )  # fmt: skip
    band(figure, share, data["ssim"], f"{first} → {second}")
    figure.update_layout(
        template=TEMPLATE,
        height=440,
        showlegend=True,
        xaxis={"title": "share of the steps done before the switch (%)", "range": [0, 100]},
        yaxis={"title": "SSIM to the unswitched image", "range": [min(0.0, float(data["ssim"].min())), 1.02]},
    )
    return figure


def plot_images(result: ExperimentResult) -> go.Figure:
    """Draws the final images of the first seed: never switched, and switched at each step."""
    data = result.data
    captions = ["never switched"]
    for step, ssim in zip(data["step"].values, data["ssim"].isel(seed=0).values, strict=True):
        captions.append(f"at step {step}: SSIM {ssim:.2f}")
    images = data["images"].values
    return tile_rows([Tile(to_rgb(image), text, text) for image, text in zip(images, captions, strict=True)], 6)


def table(result: ExperimentResult) -> pd.DataFrame:
    """SSIM to the unswitched image for each switch, and the index, each as mean and 95 % interval over the seeds."""
    data = result.data
    similarity, index = summary(data["ssim"]), summary(data["index"])

    rows = [
        {
            "switch": f"at step {int(step)}",
            "steps done": f"{share:.2f}",
            "SSIM": interval_text(similarity.isel(switch=i)),
        }
        for i, (step, share) in enumerate(zip(data["step"].values, data["share"].values, strict=True))
    ]
    return pd.DataFrame([*rows, {"switch": "predetermination index", "steps done": interval_text(index), "SSIM": ""}])


EXPERIMENT = register(
    Experiment(
        "predetermination",
        "From when on the label no longer matters",
        "The label is switched at ten steps of the process, and each image is compared with that of the run that was"
        " never switched. The index is the share of the process after which a switch leaves the image alike (SSIM of"
        " at least 0.9), with the 95 % interval over the seeds. The images are those of the first seed.",
        "thesis section 5.3.2, fig. 5.17, D.2",
        measure,
        plot,
        labels=2,
        steps=100,
        plot_images=plot_images,
        table=table,
    )
)
