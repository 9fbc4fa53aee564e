"""What the thesis found, tested on a checkpoint: each claim with a criterion, an effect and its interval."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import xarray as xr

from diffusers_xai.analysis import mean_interval
from diffusers_xai.experiments.base import ExperimentResult


HOLDS, FAILS, UNDECIDED = "holds", "does not hold", "undecided"
# The experiments that the findings are read from.
NEEDED = ("ssim-trajectory", "label-divergence", "emergence", "localisation", "ablation", "predetermination")
MIN_SEEDS = 30


@dataclass(frozen=True)
class Finding:
    """A claim and what came out.

    Args:
        claim (`str`): What the thesis says.
        criterion (`str`): What has to be above zero, in words.
        experiment (`str`): The experiment it is read from.
        effect (`float`): The mean over the seeds of what the criterion says.
        low (`float`), high (`float`): 95 % interval of the mean.
        seeds (`int`): Number of seeds.
    """

    claim: str
    criterion: str
    experiment: str
    effect: float
    low: float
    high: float
    seeds: int

    @property
    def verdict(self) -> str:
        """Holds where the interval lies above zero, does not hold where it lies below, else undecided."""
        return HOLDS if self.low > 0 else FAILS if self.high < 0 else UNDECIDED


def _at(array: xr.DataArray, t: float) -> xr.DataArray:
    """The value at the recorded step whose t is nearest."""
    return array.isel(step=int(np.abs(array["timestep"].values - t).argmin()))


def _between(array: xr.DataArray, high: float, low: float) -> xr.DataArray:
    timesteps = array["timestep"].values
    return array.isel(step=np.flatnonzero((timesteps <= high) & (timesteps >= low)))


def _slope(array: xr.DataArray, high: float, low: float) -> xr.DataArray:
    """Rise of the least-squares line per hundred timesteps of the process."""
    part = _between(array, high, low)
    done = -(part["timestep"] - part["timestep"].mean())
    return 100 * (part * done).sum("step") / (done**2).sum("step")


def _level(layer: str) -> tuple[str, int]:
    path, _, rest = layer.partition(".")
    return path, int(rest.split(".")[0]) if rest[:1].isdigit() else -1


def _mean_over(ssim: xr.DataArray, wanted: Callable[[str], bool]) -> xr.DataArray:
    """Mean SSIM after the ablation of c* over the layers that are wanted."""
    layers = [layer for layer in ssim["layer"].values.tolist() if wanted(layer)]
    return ssim.sel(layer=layers).isel(draw=0).mean("layer")


def _is_full_size(layer: str, last_up: int) -> bool:
    return _level(layer) in (("downs", 0), ("ups", last_up))


# Claim, criterion, experiment, and the number of each seed that has to be above zero.
def _criteria(results: Mapping[str, ExperimentResult]) -> list[tuple[str, str, str, xr.DataArray]]:
    ssim = results["ssim-trajectory"].data["ssim"]
    divergence = results["label-divergence"].data
    emergence = results["emergence"].data
    radius = results["localisation"].data["radius"]
    ablation = results["ablation"].data["ssim"]
    switches = results["predetermination"].data
    last_up = max(level for path, level in map(_level, ablation["layer"].values.tolist()) if path == "ups")
    kinds = dict(zip(ablation["layer"].values.tolist(), ablation["kind"].values.tolist(), strict=True))
    earlier = xr.where(emergence["lead"].sel(layer="mid_attn.fn") > 0, 1.0, 0.0)
    tail = _between(ssim, 99, 0)
    return [
        (
            "SSIM of neighbouring states rises over the first 750 steps.",
            "mean slope of SSIM from t = 1000 to 250, per 100 timesteps",
            "ssim-trajectory",
            _slope(ssim, 1000, 250),
        ),
        (
            "It plateaus near t = 250.",
            "a third of the mean slope from t = 1000 to 300, less the absolute slope from t = 300 to 200",
            "ssim-trajectory",
            _slope(ssim, 1000, 300) / 3 - np.abs(_slope(ssim, 300, 200)),
        ),
        (
            "It dips within the last 100 steps.",
            "mean SSIM from t = 200 to 100, less the lowest one from t = 99 on, less 0.005",
            "ssim-trajectory",
            _between(ssim, 200, 100).mean("step") - tail.min("step") - 0.005,
        ),
        (
            "It rises at the very end (recovers from the dip).",
            "SSIM of the last step, less the lowest one from t = 99 on, less 0.005",
            "ssim-trajectory",
            ssim.isel(step=-1) - tail.min("step") - 0.005,
        ),
        (
            "The runs of two labels are almost identical until t = 800.",
            "SSIM of their states at t = 800, less 0.99",
            "label-divergence",
            _at(divergence["ssim"], 800) - 0.99,
        ),
        (
            "Their similarity falls again in the last 100 steps.",
            "SSIM at t = 100, less that of the final images",
            "label-divergence",
            _at(divergence["ssim"], 100) - divergence["final_ssim"],
        ),
        *(
            (
                f"Structure ({target}) shows in {where} mid_attn.fn before it shows in x_t.",
                "share of the seeds in which its correlation exceeds 0.3, at two records in turn, before that of x_t"
                " does, less one half",
                "emergence",
                earlier.sel(target=target, map=kind) - 0.5,
            )
            for kind, where in (("sum", "the sum over channels of"), ("c*", "the most active channel of"))
            for target in ("edges", "foreground")
        ),
        (
            "Gradients of the eyes are local at t = 950 and spread to the face by t = 600.",
            "root mean square distance from the eyes at t = 600, less that at t = 950, in pixels",
            "localisation",
            _at(radius, 600) - _at(radius, 950),
        ),
        (
            "They spread over the image by t = 100.",
            "root mean square distance from the eyes at t = 100, less that at t = 600, in pixels",
            "localisation",
            _at(radius, 100) - _at(radius, 600),
        ),
        (
            "Ablating c* hurts more in block outputs than in attention layers.",
            "mean SSIM to the intact image over attention layers, less that over blocks",
            "ablation",
            _mean_over(ablation, lambda x: kinds[x] == "attention")
            - _mean_over(ablation, lambda x: kinds[x] == "block"),
        ),
        (
            "It hurts more at high resolution.",
            "mean SSIM over layers of lower than full resolution, less that over those of full resolution",
            "ablation",
            _mean_over(ablation, lambda x: not _is_full_size(x, last_up))
            - _mean_over(ablation, lambda x: _is_full_size(x, last_up)),
        ),
        (
            "It hurts more in the contracting path.",
            "mean SSIM over the expanding path, less that over the contracting one",
            "ablation",
            _mean_over(ablation, lambda x: x.startswith("ups"))
            - _mean_over(ablation, lambda x: x.startswith("downs")),
        ),
        (
            "c* matters more than chance (not tested in the thesis).",
            "mean SSIM after random channels, less that after c*, over all layers",
            "ablation",
            (ablation.isel(draw=slice(1, None)).mean("draw") - ablation.isel(draw=0)).mean("layer"),
        ),
        (
            "After half of the process a label switch changes little.",
            "SSIM to the unswitched image of a switch after half of the steps, less 0.9",
            "predetermination",
            switches["ssim"].isel(switch=int(np.abs(switches["share"].values - 0.5).argmin())) - 0.9,
        ),
    ]


def findings(results: Mapping[str, ExperimentResult]) -> list[Finding]:
    """Tests what the thesis found, on the results of the experiments in `NEEDED`.

    Source: thesis chapter 5.

    Args:
        results (`Mapping[str, ExperimentResult]`): By the experiments' names.

    Raises:
        KeyError: If an experiment is missing.
        ValueError: If the network is not the thesis's kind: the claims name its layers.
    """
    missing = [name for name in NEEDED if name not in results]
    if missing:
        raise KeyError(f"findings need the experiments {', '.join(NEEDED)}; missing: {', '.join(missing)}")
    layers = results["emergence"].data["layer"].values.tolist()
    if "mid_attn.fn" not in layers:
        raise ValueError(f"findings are about networks with a layer mid_attn.fn, got {layers}")
    table = []
    for claim, criterion, experiment, values in _criteria(results):
        low, high = mean_interval(values.values)
        table.append(
            Finding(claim, criterion, experiment, float(values.mean()), float(low), float(high), values.sizes["seed"])
        )
    return table
