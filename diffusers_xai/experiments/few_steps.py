"""What remains of the process where it has four to eight steps."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
import xarray as xr
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, LCMScheduler, SchedulerMixin
from plotly.subplots import make_subplots

from diffusers_xai.analysis import predetermination_index, summary
from diffusers_xai.experiments.base import Experiment, ExperimentResult, register
from diffusers_xai.experiments.figures import null_name
from diffusers_xai.experiments.nulls import Null, null_pipeline
from diffusers_xai.experiments.sampling import Sampling
from diffusers_xai.experiments.tables import excess_columns, in_table
from diffusers_xai.explainers import Samples
from diffusers_xai.measures import structural_similarity
from diffusers_xai.models.noise_schedule import FIELDS
from diffusers_xai.passed import Scheduler
from diffusers_xai.pipelines import XAIPipeline
from diffusers_xai.pipelines.switch_sweep import switch_sweep
from diffusers_xai.plots.style import LINE_COLORS, MUTED_COLOR, TEMPLATE, line_style
from diffusers_xai.plots.tiles import Tile, tile_grid
from diffusers_xai.profile.pictures import to_rgb


SOLVERS: dict[str, type[SchedulerMixin]] = {
    "DDIM": DDIMScheduler,
    "DPM-Solver++": DPMSolverMultistepScheduler,
    "LCM": LCMScheduler,
}
COUNTS = (4, 8)
THRESHOLD = 0.9  # of SSIM, from which on images count as alike
SWITCHES = 20  # at most


@dataclass(frozen=True)
class Way:
    """A way from noise to an image."""

    name: str
    pipe: XAIPipeline
    steps: int


def measure(
    pipe: XAIPipeline,
    sampling: Sampling,
    *,
    counts: Sequence[int] | None = None,
    others: Sequence[XAIPipeline] = (),
    student_steps: int = 4,
    null: Null = "gaussian",
) -> xr.Dataset:
    """Runs of few steps, by three solvers and by a distilled student, beside one of many steps from the same noise.

    Of each way: how near its image is to that of many steps; from when on a switch of the label no longer changes
    its image, as `predetermination` has it, the switches being at every step; and how much of its image the prediction
    x̂_0 shows at each step. Chance is the image of many steps from the next seed's noise. The control goes the same
    ways: its loss is that of the solver, for any model.

    Source: Luo et al. 2023 (LCM); Lu et al. 2022 (DPM-Solver++); Salimans and Ho 2022 (distillation).

    Args:
        pipe ([`XAIPipeline`]): A conditional model with a noise schedule by timesteps.
        sampling ([`Sampling`]): What is sampled; `steps` are those of the run of many steps, by DDIM.
        counts (`Sequence[int]`, *optional*): Steps of the solvers; 4 and 8, those below `steps`, if `None`.
        others (`Sequence` of [`XAIPipeline`]): Students, models distilled from it, each with its own scheduler, and
        student_steps (`int`): how many steps they take.
        null (`str` or [`XAIPipeline`]): `"gaussian"`, a pipeline, or `"none"`.

    Returns:
        `xarray.Dataset`: Of dims (seed, way): `ssim` to the image of many steps, `chance`, `index`, and the control's
        as `null_ssim` and `null_index`; students have none. `shown` (seed, way, step): SSIM of x̂_0 with the
        way's own image, NaN behind its last step, with the coordinates `steps` (way) and `timestep` (way, step). Of
        the first seed `x0` (way, step, rgb, height, width) and `final`, without the many steps' x̂_0.

    Raises:
        ValueError: If the counts are not below the number of steps, or the scheduler has no ᾱ.
    """
    ways = ways_of(pipe, sampling.steps, counts, others, student_steps)
    other = null_pipeline(null, pipe, sampling)
    theirs = [] if other is None else ways_of(other, sampling.steps, counts)
    longest = max(way.steps for way in ways[1:])

    def measure_batch(part: list[int]) -> xr.Dataset:
        data = xr.concat(
            [_of_way(way, sampling, part, longest) for way in ways], "way", coords="different", compat="equals"
        )
        data["ssim"], data["chance"] = _to_first(data["final"]), _to_first(data["final"], data["final"].roll(seed=1))
        if theirs:
            control = xr.concat(
                [_of_way(way, sampling, part, longest) for way in theirs], "way", coords="different", compat="equals"
            )
            control["ssim"] = _to_first(control["final"])
            for name in ("ssim", "index"):
                data[f"null_{name}"] = control[name].reindex(way=data["way"])
        return data.transpose("seed", "way", ...)

    at_once, least = max(2, sampling.batch_size // 4), min(2, len(sampling.seeds))  # seeds are each other's chance
    data = sampling.over_seeds(
        measure_batch, "few steps", seeds_at_once=at_once, at_least=least, of_first=["x0", "final"]
    )
    return data.assign_attrs(threshold=THRESHOLD)


def few_step_scheduler(scheduler: Scheduler, solver: type[SchedulerMixin] = DDIMScheduler) -> SchedulerMixin:
    """A solver with the noise schedule of another one, which begins at the last timestep and does not clip.

    Args:
        scheduler: A scheduler with ᾱ.
        solver: The class of the new one.
    """
    config = scheduler.config
    # As arguments: values of a configuration that its class has by default give way to the new class's defaults.
    same = {name: config[name] for name in ("prediction_type", *FIELDS) if name in config}
    changes: dict[str, Any] = {"timestep_spacing": "trailing", "clip_sample": False, "thresholding": False}
    changes["set_alpha_to_one"] = True  # the last step ends in the image
    return solver.from_config(config, **same, **changes)


def ways_of(
    pipe: XAIPipeline,
    many: int,
    counts: Sequence[int] | None = None,
    students: Sequence[XAIPipeline] = (),
    student_steps: int = 4,
) -> list[Way]:
    """The ways from noise to an image: DDIM in many steps first, then every solver in few, then the students.

    Args:
        pipe ([`XAIPipeline`]): The model.
        many (`int`): Of many steps.
        counts (`Sequence[int]`, *optional*): Of few; 4 and 8, those below `many`, if `None`.
        students (`Sequence` of [`XAIPipeline`]): Models distilled from it, each with its own scheduler, and
        student_steps (`int`): how many steps they take.

    Raises:
        ValueError: If the counts are not below `many`, or the scheduler has no ᾱ.
    """
    if not hasattr(pipe.scheduler, "alphas_cumprod"):
        raise ValueError(f"Expected a scheduler with `alphas_cumprod`, got {type(pipe.scheduler).__name__}")
    if counts is None:
        counts = [count for count in COUNTS if count < many] or [max(2, many // 2)]
    every = [*counts, *([student_steps] if students else [])]
    if not counts or min(every) < 2 or max(every) >= many:
        raise ValueError(f"Expected counts from 2 to below {many} steps, got {every}")
    pipes = {}
    for name, solver in SOLVERS.items():
        pipes[name] = XAIPipeline(pipe.unet, few_step_scheduler(pipe.scheduler, solver))
        pipes[name].set_progress_bar_config(disable=True)
    ways = [Way(f"DDIM, {many} steps", pipes["DDIM"], many)]
    ways += [Way(f"{name}, {count} steps", which, count) for name, which in pipes.items() for count in counts]
    for number, student in enumerate(students, 1):
        name = "student" if len(students) == 1 else f"student {number}"
        ways.append(Way(f"{name}, {student_steps} steps", student, student_steps))
    return ways


def _of_way(way: Way, sampling: Sampling, seeds: list[int], longest: int) -> xr.Dataset:
    """Image, index and predictions of a way; of that of many steps the predictions are thinned."""
    own = replace(sampling, steps=way.steps)
    kept = [way.steps * k // min(way.steps, longest) for k in range(min(way.steps, longest))]
    profile = own.profile(way.pipe, seeds, [Samples(steps=kept, measures=())])
    final = profile["final_sample"].values.clip(-1, 1)
    x0 = profile["x0"].values.clip(-1, 1)
    shown = [structural_similarity(torch.from_numpy(x), torch.from_numpy(final)).numpy() for x in x0]
    places = [way.steps * k // min(way.steps, SWITCHES) for k in range(min(way.steps, SWITCHES))]
    first, second = sampling.labels
    runs = switch_sweep(
        way.pipe, first, second, seeds, places, num_inference_steps=way.steps,
        guidance_scale=sampling.guidance_scale, max_rows=sampling.batch_size,
    )  # fmt: skip
    whole, switched = runs[0], runs[1:]
    alike = torch.stack([structural_similarity(whole, image) for image in switched], 1).cpu().numpy()
    curve = xr.DataArray(alike, dims=("seed", "switch"), coords={"share": ("switch", np.array(places) / way.steps)})
    missing = longest - len(kept)
    image = ("rgb", "height", "width")
    return xr.Dataset(
        {
            "index": predetermination_index(curve, THRESHOLD),
            "shown": (("step", "seed"), np.pad(np.stack(shown), [(0, missing), (0, 0)], constant_values=np.nan)),
            "x0": (("step", "seed", *image), np.pad(x0, [(0, missing), *[(0, 0)] * 4])),
            "final": (("seed", *image), final),
        },
        {
            "way": way.name,
            "steps": way.steps,
            "timestep": ("step", np.pad(profile["x0"]["timestep"].values, (0, missing), constant_values=np.nan)),
            "seed": seeds,
        },
    )


def _to_first(images: xr.DataArray, first: xr.DataArray | None = None) -> xr.DataArray:
    """SSIM of each way's images (way, seed, …) to those of the first way, of dims (way, seed)."""
    reference = torch.from_numpy((images if first is None else first).isel(way=0).transpose("seed", ...).values)
    rows = [structural_similarity(torch.from_numpy(i), reference) for i in images.transpose("way", "seed", ...).values]
    return xr.DataArray(torch.stack(rows).numpy(), dims=("way", "seed"), coords={"way": images["way"]})


def plot(result: ExperimentResult) -> go.Figure:
    """Draws nearness and index of each way with their controls, and how early each shows its image."""
    data = result.data
    few = data.isel(way=slice(1, None))
    titles = ["SSIM to the image<br>of many steps", "predetermination<br>index"]
    titles += ["SSIM of x̂<sub>0</sub><br>with its own image"]
    figure = make_subplots(rows=1, cols=3, horizontal_spacing=0.08, shared_yaxes=True, subplot_titles=titles)
    for column, (name, part) in enumerate((("ssim", data), ("index", data)), start=1):
        for key, text, color in ((f"null_{name}", null_name(result.settings), MUTED_COLOR), (name, "the model", None)):
            if key not in part:
                continue
            facts = summary(part[key])
            half = (facts["high"] - facts["mean"]).values
            figure.add_scatter(
                x=facts["mean"].values, y=part["way"].values, error_x={"array": half, "thickness": 1.5},
                mode="markers", marker={"size": 9, "color": color or LINE_COLORS[0]}, name=text, legendgroup=text,
                showlegend=column == 1, row=1, col=column,
            )  # fmt: skip
    chance = float(few["chance"].mean())
    figure.add_vline(
        chance, line={"color": MUTED_COLOR, "dash": "dot"}, row=1, col=1, annotation_position="top right",
        annotation={"text": f"chance {chance:.2f}", "font": {"color": MUTED_COLOR}},
    )  # fmt: skip
    shortest = few["way"].values[few["steps"].values == few["steps"].values.min()].tolist()
    students = [way for way in few["way"].values.tolist() if way.startswith("student") and way not in shortest]
    for index, way in enumerate([str(data["way"].values[0]), *shortest, *students]):
        part = data.sel(way=way)
        figure.add_scatter(
            x=part["timestep"].values, y=part["shown"].mean("seed").values, name=way, mode="lines+markers",
            line=line_style(index), row=1, col=3,
        )  # fmt: skip
    figure.update_xaxes(title="timestep t", autorange="reversed", col=3)
    figure.update_yaxes(autorange="reversed", automargin=True, col=1)
    figure.update_yaxes(matches=None, showticklabels=True, col=3)
    lowest = min(0.0, *(float(summary(data[name])["low"].min()) for name in ("ssim", "null_ssim") if name in data))
    figure.update_xaxes(range=[lowest - 0.05 * (lowest < 0), 1.05], col=1)
    figure.update_xaxes(range=[0, 1.05], col=2)
    return figure.update_layout(template=TEMPLATE, height=520, legend={"y": -0.42}, margin={"b": 170, "t": 44})


def plot_images(result: ExperimentResult) -> go.Figure:
    """Draws what each way predicts at each of its steps, and its image, of the first seed."""
    data = result.data
    rows: list[list[Tile | None]] = []
    longest = data.sizes["step"]
    for way in data["way"].values.tolist():
        part = data.sel(way=way)
        row: list[Tile | None] = []
        for k in range(longest):
            t = float(part["timestep"][k])
            known = not np.isnan(t)
            row.append(
                Tile(to_rgb(part["x0"][k].values), f"x̂<sub>0</sub> at t = {t:.0f}", f"t = {t:.0f}") if known else None
            )
        rows.append([*row, Tile(to_rgb(part["final"].values), "the image")])
    columns = [f"x̂<sub>0</sub>, {k + 1}" for k in range(longest)]
    names = [way.replace(", ", ",<br>").replace("DPM-", "DPM-<br>") for way in data["way"].values.tolist()]
    return tile_grid(rows, [*columns, "image"], names)


def table(result: ExperimentResult) -> pd.DataFrame:
    """Nearness and index of each way beside the control's, and chance."""
    data = result.data
    rows: list[dict[str, Any]] = []
    for name, text in (("ssim", "SSIM to the image of many steps"), ("index", "predetermination index")):
        for k, way in enumerate(data["way"].values.tolist()):
            part = data.isel(way=k)
            part = part.drop_vars([n for n in (f"null_{name}",) if n in part and bool(part[n].isnull().all())])
            row = {"": text, "way": way, **excess_columns(part, name)}
            rows.append({**row, "chance": f"{float(part['chance'].mean()):.3f}" if name == "ssim" else ""})
    return in_table(rows)


register(
    Experiment(
        "few-steps",
        "What remains in few steps",
        "Images made in four and eight steps, by DDIM, DPM-Solver++ and LCM, and by a distilled student where there is"
        " one, beside those of many steps from the same noise. Left: SSIM to the image of many steps; chance is the"
        " image of another noise. Middle: the predetermination index, the share of the process after which a switch of"
        " the label leaves the image alike. Right: how much of its own image the prediction x̂_0 shows at each step."
        " Grey: two Gaussians fitted to the model's own samples, by the same solvers: what a solver loses with any"
        " model. Below, of one seed, x̂_0 at each step and the image.",
        "thesis chapter 7 (future work: samplers of few steps); section 5.3.2 for the index",
        measure,
        plot,
        labels=2,
        nulls=("gaussian",),
        may_take="students",
        seeds=16,
        min_seeds=2,  # whose images are each other's chance
        runs=14,
        steps=50,
        plot_images=plot_images,
        table=table,
    )
)
