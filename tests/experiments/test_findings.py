"""Verdicts on results made by hand, whose answers are known."""

import dataclasses

import numpy as np
import pytest
import xarray as xr

from diffusers_xai.experiments import ExperimentResult
from diffusers_xai.experiments.findings import FAILS, HOLDS, NEEDED, UNDECIDED, findings
from diffusers_xai.experiments.findings_page import to_markdown


SEEDS = np.arange(30)
STEPS = np.arange(100)
TIMES = 990.0 - 10 * STEPS


def over_time(values):
    noise = 1e-4 * np.random.default_rng(0).normal(size=(30, len(values)))
    coords = {"seed": SEEDS, "step": STEPS[: len(values)], "timestep": ("step", TIMES[: len(values)])}
    return xr.DataArray(np.asarray(values) + noise, dims=("seed", "step"), coords=coords)


def make_results(**changes):
    """Six results in which every claim of the thesis holds, but for what `changes` puts in."""
    rise = np.interp(TIMES, [0, 30, 100, 320, 1000], [0.97, 0.9, 0.95, 0.95, 0.5])
    falling = np.interp(TIMES, [0, 100, 800, 1000], [0.6, 0.8, 1.0, 1.0])
    layers = [
        "downs.0.3",
        "downs.1.3",
        "mid_block2",
        "ups.0.3",
        "ups.1.3",
        "downs.0.2.fn",
        "mid_attn.fn",
        "ups.1.2.fn",
    ]
    hurt = {"downs.0.3": 0.3, "downs.1.3": 0.7, "mid_block2": 0.8, "ups.0.3": 0.85, "ups.1.3": 0.6}
    ablation = np.array([[hurt.get(layer, 0.95), 0.99, 0.99] for layer in layers])
    noise = 1e-4 * np.random.default_rng(1).normal(size=(30, *ablation.shape))
    data = {
        "ssim-trajectory": xr.Dataset({"ssim": over_time(rise)}),
        "label-divergence": xr.Dataset({"ssim": over_time(falling), "final_ssim": ("seed", np.full(30, 0.6))}),
        "emergence": xr.Dataset(
            {"lead": (("seed", "target", "map", "layer"), np.tile([0.0, 0.2], (30, 2, 2, 1)))},
            {"target": ["edges", "foreground"], "map": ["sum", "c*"], "layer": ["x_t", "mid_attn.fn"], "seed": SEEDS},
        ),
        "localisation": xr.Dataset(
            {"radius": (("seed", "step"), np.tile([1.0, 2.0, 3.0, 8.0], (30, 1)))},
            {"timestep": ("step", [950.0, 700.0, 600.0, 100.0]), "seed": SEEDS},
        ),
        "ablation": xr.Dataset(
            {"ssim": (("seed", "layer", "draw"), ablation + noise)},
            {
                "layer": layers,
                "kind": ("layer", ["block"] * 5 + ["attention"] * 3),
                "channels": ("layer", [24] * 8),
                "seed": SEEDS,
            },
        ),
        "predetermination": xr.Dataset(
            {"ssim": (("seed", "switch"), np.tile([0.3, 0.6, 0.95, 0.99], (30, 1)))},
            {"share": ("switch", [0, 0.25, 0.5, 0.75]), "seed": SEEDS},
        ),
    } | changes
    settings = {"checkpoint": "x/faces", "seeds": SEEDS.tolist(), "labels": [3]}
    settings |= {"steps": 100, "scheduler": "DDPM"}
    return {name: ExperimentResult(name, value, settings) for name, value in data.items()}


def verdicts(results):
    return {finding.claim: finding.verdict for finding in findings(results)}


def test_all_claims_hold_where_they_are_true():
    assert set(verdicts(make_results()).values()) == {HOLDS}


def test_claims_fail_where_they_are_false():
    base = make_results()
    reverse = {
        "ssim-trajectory": xr.Dataset({"ssim": over_time(np.interp(TIMES, [0, 99, 200, 1000], [0.6, 0.6, 0.2, 0.9]))}),
        "label-divergence": xr.Dataset(
            {"ssim": over_time(np.full(100, 0.9)), "final_ssim": ("seed", np.full(30, 0.95))}
        ),
        "emergence": base["emergence"].data.assign(lead=-base["emergence"].data["lead"]),
        "localisation": base["localisation"].data.assign(radius=-base["localisation"].data["radius"]),
        "ablation": base["ablation"].data.assign(ssim=1 - base["ablation"].data["ssim"]),
        "predetermination": base["predetermination"].data.assign(ssim=base["predetermination"].data["ssim"] - 0.5),
    }
    assert set(verdicts(make_results(**reverse)).values()) == {FAILS}


def test_a_claim_between_is_undecided():
    data = make_results()["predetermination"].data
    half = np.where(SEEDS % 2, 0.85, 0.95)[:, None] * np.ones((1, 4))
    changed = verdicts(make_results(predetermination=data.assign(ssim=(("seed", "switch"), half))))
    assert changed["After half of the process a label switch changes little."] == UNDECIDED


def test_effects_are_those_of_the_criterion():
    table = {finding.claim: finding for finding in findings(make_results())}
    switch = table["After half of the process a label switch changes little."]
    assert (switch.effect, switch.low, switch.high) == pytest.approx((0.05, 0.05, 0.05))
    spread = table["They spread over the image by t = 100."]
    assert spread.effect == pytest.approx(5.0)
    contracting = table["It hurts more in the contracting path."]
    downs, ups = np.mean([0.3, 0.7, 0.95]), np.mean([0.85, 0.6, 0.95])
    assert contracting.effect == pytest.approx(ups - downs, abs=1e-3)
    resolution = table["It hurts more at high resolution."]
    full, lower = np.mean([0.3, 0.6, 0.95, 0.95]), np.mean([0.7, 0.8, 0.85, 0.95])
    assert resolution.effect == pytest.approx(lower - full, abs=1e-3)


def test_the_page_names_every_claim_and_verdict():
    results = make_results()
    table = findings(results)
    page = to_markdown(table, results, {"ablation": ["ablation.png", "ablation-images.png"]})
    assert f"{len(table)} hold, 0 do not, 0 are undecided" in page
    assert all(f"| {finding.claim} | **{HOLDS}** |" in page for finding in table)
    assert "checkpoint `faces`" in page
    assert page.index("](ablation.png)") < page.index("](ablation-images.png)")
    assert "| downs.0.3 | block | 24 | 0.300 (" in page
    opposite = dataclasses.replace(table[0], low=-2.0, high=-1.0)
    assert opposite.verdict == FAILS


def test_missing_experiments_are_named():
    results = make_results()
    del results["ablation"]
    with pytest.raises(KeyError, match="missing: ablation"):
        findings(results)
    assert len(NEEDED) == 6
