"""What the thesis found, each as a number of every seed, and the same number of a control."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import xarray as xr

from diffusers_xai.experiments.base import ExperimentResult
from diffusers_xai.profile.selection import nearest


# The experiments that the claims are read from.
NEEDED = ("ssim-trajectory", "label-divergence", "emergence", "localisation", "ablation", "predetermination")
MIDDLE = "mid_attn.fn"


@dataclass(frozen=True)
class Claim:
    """A claim, and what it was read from.

    Args:
        text (`str`): What the thesis says.
        measured (`str`): What the effect is, in words.
        experiment (`str`): The experiment it is read from.
        control_text (`str`): What the control is, in a few words; empty without one.
        values (`(seed,)`): The effect of each seed; the claim is that their mean lies in
        low (`float`), high (`float`): this range.
        control (`(seed,)`, *optional*): The same number of the control.
        missing (`str`): Why the run cannot be asked, as it has no state where the claim needs one: `values` are NaN;
            empty where it can.
    """

    text: str
    measured: str
    experiment: str
    control_text: str
    values: np.ndarray
    control: np.ndarray | None = None
    low: float = 0.0
    high: float = np.inf
    missing: str = ""

    @property
    def excess(self) -> np.ndarray:
        """By how much the effect exceeds the control's in the claim's direction.

        Where the claim is that a number is small, by how much nearer it is to the middle of the range.

        Raises:
            ValueError: If the claim has no control.
        """
        if self.control is None:
            raise ValueError(f"Expected a claim with a control, got {self.text!r}.")
        if np.isinf(self.high):
            return self.values - self.control
        middle = (self.low + self.high) / 2
        return np.abs(self.control - middle) - np.abs(self.values - middle)


def claims(results: Mapping[str, ExperimentResult]) -> list[Claim]:
    """The thesis's claims on the results of the experiments in `NEEDED`.

    Raises:
        ValueError: If the network is not the thesis's kind: the claims name its layers.
    """
    layers = results["emergence"].data["layer"].values.tolist()
    if MIDDLE not in layers:
        raise ValueError(f"Expected a network with a layer {MIDDLE}, got {layers}.")
    makers = (_trajectory, _divergence, _emergence, _localisation, _ablation, _predetermination)
    return [claim for make in makers for claim in make(results)]


Number = Callable[[xr.DataArray], xr.DataArray]
_LEAST_REACH = 25.0  # timesteps: schedulers space theirs unevenly


class _Unasked(Exception):
    """A run has no state where a claim needs one."""


@dataclass(frozen=True)
class _Source:
    """Where claims are read from: an experiment's result, its numbers, and its control in words."""

    result: ExperimentResult
    data: xr.Dataset
    control_text: str

    def claim(
        self, text: str, measured: str, name: str, number: Number, low: float = 0.0, high: float = np.inf
    ) -> Claim:
        """The claim about a number of each seed, taken of the model's array and of its control's, if there is one."""
        null = f"null_{name}" if f"null_{name}" in self.data else None
        text_of_control, missing = self.control_text if null else "", ""
        unknown = np.full(self.data.sizes["seed"], np.nan)
        values, control = unknown, unknown if null else None
        try:
            values = number(self.data[name]).values
            control = number(self.data[null]).values if null else None
        except _Unasked as error:
            missing = str(error)
        return Claim(text, measured, self.result.name, text_of_control, values, control, low, high, missing)

    def at(self, array: xr.DataArray, t: float) -> xr.DataArray:
        """The value at the recorded step whose t is nearest, which is at most half a step of the run away."""
        timesteps = array["timestep"].values
        step = nearest(timesteps, t)
        reach = max(_LEAST_REACH, 500 / self.result.settings["steps"])
        if abs(timesteps[step] - t) > reach:
            raise _Unasked(f"no state within half a step of t = {t:g}: the nearest is at t = {timesteps[step]:.0f}")
        return array.isel(step=step)


def _between(array: xr.DataArray, high: float, low: float, least: int = 1) -> xr.DataArray:
    timesteps = array["timestep"].values
    there = np.flatnonzero((timesteps <= high) & (timesteps >= low))
    if len(there) < least:
        needed = "no state" if least == 1 else f"fewer than {least} states"
        raise _Unasked(f"{needed} between t = {high:g} and {low:g}")
    return array.isel(step=there)


def _slope(array: xr.DataArray, high: float, low: float) -> xr.DataArray:
    """Rise of the least-squares line per hundred timesteps of the process."""
    part = _between(array, high, low, least=2)
    done = -(part["timestep"] - part["timestep"].mean())
    return 100 * (part * done).sum("step") / (done**2).sum("step")


def _trajectory(results: Mapping[str, ExperimentResult]) -> list[Claim]:
    result = results["ssim-trajectory"]
    noised = result.settings["null"] == "forward-noising"
    source = _Source(result, result.data, "forward noising" if noised else "a Gaussian")
    return [
        source.claim(
            "SSIM of neighbouring states rises over the first 750 steps.",
            "slope of SSIM from t = 1000 to 250, per 100 timesteps",
            "ssim",
            lambda x: _slope(x, 1000, 250),
        ),
        source.claim(
            "It plateaus near t = 250.",
            "slope from t = 300 to 200 as a share of that from t = 1000 to 300; equivalent to 0 within a third",
            "ssim",
            lambda x: _slope(x, 300, 200) / _slope(x, 1000, 300).mean(),
            low=-1 / 3,
            high=1 / 3,
        ),
        source.claim(
            "It dips within the last 100 steps.",
            "mean SSIM from t = 200 to 100, less the lowest one from t = 99 on; more than 0.005",
            "ssim",
            lambda x: _between(x, 200, 100).mean("step") - _between(x, 99, 0).min("step"),
            low=0.005,
        ),
        source.claim(
            "It recovers from the dip at the very end.",
            "SSIM of the last step, less the lowest one from t = 99 on; more than 0.005",
            "ssim",
            lambda x: x.isel(step=-1) - _between(x, 99, 0, least=2).min("step"),
            low=0.005,
        ),
    ]


def _divergence(results: Mapping[str, ExperimentResult]) -> list[Claim]:
    result = results["label-divergence"]
    source = _Source(result, result.data, "two Gaussians")
    return [
        source.claim(
            "The runs of two labels are almost identical until t = 800.",
            "SSIM of their states at t = 800; equivalent to 1 within 0.01",
            "ssim",
            lambda x: source.at(x, 800),
            low=0.99,
            high=1.01,
        ),
        source.claim(
            "Their similarity falls again in the last 100 steps.",
            "SSIM at t = 100, less that of the final images",
            "ssim",
            lambda x: source.at(x, 100) - result.data[str(x.name).replace("ssim", "final_ssim")],
        ),
    ]


def _emergence(results: Mapping[str, ExperimentResult]) -> list[Claim]:
    result = results["emergence"]
    data = result.data.sel(layer=MIDDLE)
    kinds = {"sum": "the sum over channels", "c*": "the most active channel"}
    return [
        _Source(result, data.sel(target=target, map=kind), "random weights").claim(
            f"The image's {target} can be seen in {where} of {MIDDLE} before it can be in x_t.",
            "by which share of the process earlier, compared at the layer's size",
            "lead",
            lambda x: x,
        )
        for kind, where in kinds.items()
        for target in data["target"].values.tolist()
    ]


def _localisation(results: Mapping[str, ExperimentResult]) -> list[Claim]:
    result = results["localisation"]
    source = _Source(result, result.data, "a Gaussian")
    reached = "share of input pixels above the volume's mean"
    objects = {
        "reached_step": ("PGV of μ, as in the thesis", reached, "more than 1 %", 0.01),
        "reached_noise": ("PGV of ε, as in the thesis", reached, "more than 1 %", 0.01),
        "radius": ("gradient of x̂_0", "root mean square distance from the eyes", "more than half a pixel", 0.5),
    }
    spreads = (("spread from the eyes to the face", 950, 600), ("spread from the face to the image", 600, 100))

    def rise(start: float, end: float) -> Number:
        return lambda x: source.at(x, end) - source.at(x, start)

    local = [
        source.claim(
            f"Gradients are local to the eyes at t = 950 ({objects[name][0]}).",
            f"{reached} at t = 950; equivalent to 0 within 1 %",
            name,
            lambda x: source.at(x, 950),
            low=-0.01,  # a share of 0 is the most local, and the middle of the range
            high=0.01,
        )
        for name in ("reached_step", "reached_noise")
    ]
    spread = [
        source.claim(
            f"Gradients {words} between t = {start} and {end} ({title}).",
            f"{what} at t = {end}, less that at t = {start}; {more}",
            name,
            rise(start, end),
            low=low,
        )
        for name, (title, what, more, low) in objects.items()
        for words, start, end in spreads
    ]
    return local + spread


def _ablation(results: Mapping[str, ExperimentResult]) -> list[Claim]:
    result = results["ablation"]
    data = result.data
    if "null_ssim" in data:
        data = data.assign(null_ssim=data["null_ssim"].mean("draw"))
    kinds = dict(zip(data["layer"].values.tolist(), data["kind"].values.tolist(), strict=True))
    last_up = max(level for path, level in map(_level, kinds) if path == "ups")
    source = _Source(result, data, "random channels")

    def contrast(spared: Callable[[str], bool], hurt: Callable[[str], bool]) -> Number:
        def number(ssim: xr.DataArray) -> xr.DataArray:
            first, second = (ssim.sel(layer=[x for x in kinds if in_group(x)]) for in_group in (spared, hurt))
            return first.mean("layer") - second.mean("layer")

        return number

    def is_full_size(layer: str) -> bool:
        return _level(layer) in (("downs", 0), ("ups", last_up))

    found = [
        source.claim(
            "Ablating c* hurts more in block outputs than in attention layers.",
            "mean SSIM to the intact image over attention layers, less that over blocks",
            "ssim",
            contrast(lambda x: kinds[x] == "attention", lambda x: kinds[x] == "block"),
        ),
        source.claim(
            "It hurts more at high resolution.",
            "mean SSIM over layers of lower than full resolution, less that over those of full resolution",
            "ssim",
            contrast(lambda x: not is_full_size(x), is_full_size),
        ),
        source.claim(
            "It hurts more in the contracting path.",
            "mean SSIM over the expanding path, less that over the contracting one",
            "ssim",
            contrast(lambda x: x.startswith("ups"), lambda x: x.startswith("downs")),
        ),
    ]
    if "null_ssim" in data:  # without random channels, nothing is known of chance
        text = "Ablating c* changes the image, and more than chance would (not tested in the thesis)."
        measured = "1 less the mean SSIM to the intact image, over all layers"
        found.append(source.claim(text, measured, "ssim", lambda x: 1 - x.mean("layer")))
    return found


def _level(layer: str) -> tuple[str, int]:
    path, _, rest = layer.partition(".")
    return path, int(rest.split(".")[0]) if rest[:1].isdigit() else -1


def _predetermination(results: Mapping[str, ExperimentResult]) -> list[Claim]:
    result = results["predetermination"]
    half = nearest(result.data["share"].values, 0.5)
    return [
        _Source(result, result.data, "two Gaussians").claim(
            "After half of the process a label switch changes little.",
            "SSIM to the unswitched image of a switch after half of the steps; equivalent to 1 within 0.1",
            "ssim",
            lambda x: x.isel(switch=half),
            low=0.9,
            high=1.1,
        )
    ]
