"""Verdicts on results made by hand, whose answers are known."""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from diffusers_xai.experiments import EXPERIMENTS, ExperimentResult
from diffusers_xai.experiments.claims import NEEDED
from diffusers_xai.experiments.findings import CANNOT_TELL, FAILS, HOLDS, NOT_BEYOND, findings
from diffusers_xai.experiments.findings_page import markdown_rows, to_markdown, verdict_rows


SEEDS = np.arange(30)
STEPS = np.arange(100)
TIMES = 990.0 - 10 * STEPS
LAYERS = ["downs.0.3", "downs.1.3", "mid_block2", "ups.0.3", "ups.1.3", "downs.0.2.fn", "mid_attn.fn", "ups.1.2.fn"]
TIMES_OF_GRADIENTS = [950.0, 700.0, 600.0, 100.0]
SWITCH = "After half of the process a label switch changes little."


def spread(shape, seed):
    return 1e-4 * np.random.default_rng(seed).normal(size=shape)


def over_time(values, seed=0):
    coords = {"seed": SEEDS, "step": STEPS, "timestep": ("step", TIMES)}
    return xr.DataArray(np.asarray(values) + spread((30, 100), seed), dims=("seed", "step"), coords=coords)


def per_seed(values, dims, seed, **coords):
    values = np.asarray(values, dtype=float)
    return xr.DataArray(values + spread((30, *values.shape), seed), dims=("seed", *dims), coords=coords)


def make_results(**changes):
    """Six results in which every claim of the thesis holds, and nothing of it in the controls; but for `changes`."""
    rise = np.interp(TIMES, [0, 30, 100, 320, 1000], [0.97, 0.9, 0.95, 0.95, 0.5])
    falling = np.interp(TIMES, [0, 100, 800, 1000], [0.6, 0.8, 1.0, 1.0])
    flat = np.interp(TIMES, [0, 1000], [0.9, 0.1])  # a control that rises no more at first, and everywhere alike
    hurt = {"downs.0.3": 0.3, "downs.1.3": 0.7, "mid_block2": 0.8, "ups.0.3": 0.85, "ups.1.3": 0.6}
    ablation = [hurt.get(layer, 0.95) for layer in LAYERS]
    times = {"timestep": ("step", TIMES_OF_GRADIENTS)}
    growing, still = [0.001, 0.4, 0.8, 1.6], [0.2] * 4
    gradients = {}
    for i, name in enumerate(("reached_step", "reached_noise", "radius")):
        gradients[name] = per_seed(growing, ["step"], 10 + i, **times)
        gradients[f"null_{name}"] = per_seed(still, ["step"], 20 + i, **times)
    structure = {"target": ["edges", "foreground"], "map": ["sum", "c*"], "layer": ["downs.0.2.fn", "mid_attn.fn"]}
    lead = np.tile([0.0, 0.2], (2, 2, 1))
    shares = {"share": ("switch", [0, 0.25, 0.5, 0.75])}
    data = {
        "ssim-trajectory": xr.Dataset({"ssim": over_time(rise), "null_ssim": over_time(0.5 * flat, 1)}),
        "label-divergence": xr.Dataset(
            {
                "ssim": over_time(falling),
                "final_ssim": per_seed(0.6, [], 1),
                "null_ssim": over_time(np.full(100, 0.8), 2),
                "null_final_ssim": per_seed(0.8, [], 3),
            }
        ),
        "emergence": xr.Dataset(
            {
                "lead": per_seed(lead, ["target", "map", "layer"], 4),
                "null_lead": per_seed(0 * lead, ["target", "map", "layer"], 5),
            },
            structure,
        ),
        "localisation": xr.Dataset(gradients),
        "ablation": xr.Dataset(
            {
                "ssim": per_seed(ablation, ["layer"], 6),
                "null_ssim": per_seed(np.full((8, 2), 0.99), ["layer", "draw"], 7),
            },
            {"layer": LAYERS, "kind": ("layer", ["block"] * 5 + ["attention"] * 3), "channels": ("layer", [24] * 8)},
        ),
        "predetermination": xr.Dataset(
            {
                "ssim": per_seed([0.3, 0.6, 0.95, 0.99], ["switch"], 8, **shares),
                "null_ssim": per_seed([0.1, 0.2, 0.3, 0.4], ["switch"], 9, **shares),
            }
        ),
    } | changes
    settings = {"checkpoint": "x/faces", "seeds": SEEDS.tolist(), "labels": [3], "steps": 100}
    settings |= {"scheduler": "DDPM", "null": "gaussian"}
    return {name: ExperimentResult(name, value.assign_coords(seed=SEEDS), settings) for name, value in data.items()}


def verdicts(results):
    return {finding.claim.text: finding.verdict for finding in findings(results)}


def test_all_claims_hold_where_they_are_true_of_the_model_alone():
    found = verdicts(make_results())
    assert set(found.values()) == {HOLDS}
    assert len(found) == 23


def test_claims_that_are_as_true_of_the_control_are_not_beyond_it():
    results = make_results()
    for result in results.values():
        for name in list(result.data.data_vars):
            null = result.data.get(f"null_{name}")
            if null is not None and null.dims == result.data[name].dims:
                result.data[f"null_{name}"] = result.data[name] + spread(null.shape, 99)
    found = [(finding.claim, finding.verdict) for finding in findings(results)]
    assert {verdict for claim, verdict in found if claim.experiment == "ablation"} == {HOLDS}
    assert {verdict for claim, verdict in found if claim.experiment != "ablation"} == {NOT_BEYOND}


def test_claims_fail_where_they_are_false():
    base = {name: result.data for name, result in make_results().items()}
    reverse = {
        "ssim-trajectory": base["ssim-trajectory"].assign(
            ssim=over_time(np.interp(TIMES, [0, 99, 200, 300, 1000], [0.6, 0.6, 0.2, 0.6, 0.7]))
        ),
        "label-divergence": base["label-divergence"].assign(
            ssim=over_time(np.full(100, 0.9)), final_ssim=per_seed(0.95, [], 1)
        ),
        "emergence": base["emergence"].assign(lead=-base["emergence"]["lead"]),
        "localisation": base["localisation"].assign(
            {name: 0.5 - base["localisation"][name] for name in ("reached_step", "reached_noise", "radius")}
        ),
        "ablation": base["ablation"].assign(ssim=2 - base["ablation"]["ssim"]),
        "predetermination": base["predetermination"].assign(ssim=base["predetermination"]["ssim"] - 0.5),
    }
    assert set(verdicts(make_results(**reverse)).values()) == {FAILS}


def test_what_scatters_around_the_bar_cannot_be_told():
    data = make_results()["predetermination"].data
    half = np.where(SEEDS % 2, 0.85, 0.95)[:, None] * np.ones((1, 4))
    changed = verdicts(make_results(predetermination=data.assign(ssim=(("seed", "switch"), half))))
    assert changed[SWITCH] == CANNOT_TELL


def test_seeds_without_a_number_tell_nothing():
    data = make_results()["predetermination"].data
    unknown = data["ssim"].where(data["seed"] > 0)
    assert verdicts(make_results(predetermination=data.assign(ssim=unknown)))[SWITCH] == CANNOT_TELL


def test_effects_controls_and_intervals_are_those_of_the_numbers():
    results = make_results()
    table = {finding.claim.text: finding for finding in findings(results)}
    switch = table[SWITCH]
    values = results["predetermination"].data["ssim"].values[:, 2]
    low, high = stats.t.interval(0.95, 29, values.mean(), stats.sem(values))
    assert switch.effect == pytest.approx((values.mean(), low, high), rel=1e-9)
    control = results["predetermination"].data["null_ssim"].values[:, 2]
    assert switch.control[0] == pytest.approx(control.mean())
    assert switch.excess[0] == pytest.approx((np.abs(control - 1) - np.abs(values - 1)).mean())
    spreads = table["Gradients spread from the face to the image between t = 600 and 100 (gradient of x̂_0)."]
    assert spreads.effect[0] == pytest.approx(0.8, abs=1e-3)
    assert spreads.excess[0] == pytest.approx(0.8, abs=1e-3)
    contracting = table["It hurts more in the contracting path."]
    downs, ups = np.mean([0.3, 0.7, 0.95]), np.mean([0.85, 0.6, 0.95])
    assert contracting.effect[0] == pytest.approx(ups - downs, abs=1e-3)
    resolution = table["It hurts more at high resolution."]
    full, lower = np.mean([0.3, 0.6, 0.95, 0.95]), np.mean([0.7, 0.8, 0.85, 0.95])
    assert resolution.effect[0] == pytest.approx(lower - full, abs=1e-3)


def test_p_values_are_corrected_for_all_claims_of_the_page():
    """One claim of twenty-three whose own p-value is just below 5 % is not enough."""
    base = make_results()
    data = base["predetermination"].data
    values = np.random.default_rng(3).normal(size=30)
    values = (values - values.mean()) / values.std(ddof=1)
    just = 0.9 + 0.01 * (values + stats.t.ppf(0.96, 29) / np.sqrt(30))
    assert stats.ttest_1samp(just, 0.9, alternative="greater").pvalue == pytest.approx(0.04)
    ssim = data["ssim"].copy(data=np.repeat(just[:, None], 4, axis=1))
    noise = {name: result.data.copy() for name, result in base.items()}
    scattered = np.random.default_rng(4).normal(size=(30, 2, 2, 2))
    noise["emergence"] = noise["emergence"].assign(lead=(("seed", "target", "map", "layer"), scattered))
    gradient = np.random.default_rng(5).normal(size=(3, 30, 4))
    for i, name in enumerate(("reached_step", "reached_noise", "radius")):
        noise["localisation"][name] = ("seed", "step"), gradient[i]
    noise["predetermination"] = data.assign(ssim=ssim)
    assert verdicts(make_results(**noise))[SWITCH] == CANNOT_TELL


def test_a_result_without_a_control_has_no_excess():
    data = make_results()["predetermination"].data.drop_vars("null_ssim")
    (finding,) = (f for f in findings(make_results(predetermination=data)) if f.claim.text == SWITCH)
    assert (finding.control, finding.excess, finding.verdict) == (None, None, HOLDS)


def test_without_random_channels_nothing_is_claimed_of_chance():
    data = make_results()["ablation"].data
    with_control, without = (
        [finding.claim.text for finding in findings(make_results(ablation=part)) if "chance" in finding.claim.text]
        for part in (data, data.drop_vars("null_ssim"))
    )
    assert (len(with_control), without) == (1, [])


def test_the_page_names_every_claim_and_verdict():
    results = make_results()
    table = findings(results)
    page = to_markdown(table, results, {"ablation": ["ablation.png", "ablation-images.png"]})
    assert f"Of {len(table)} claims, {len(table)} hold, 0 do not hold, 0 are not beyond the control" in page
    assert all(f"| {finding.claim.text} | **{HOLDS}** |" in page for finding in table)
    assert "checkpoint `faces`" in page
    assert page.index("](ablation.png)") < page.index("](ablation-images.png)")
    assert "| downs.0.3 | block | 24 | 0.300 (" in page


def test_the_published_page_says_what_its_kept_results_say():
    docs = Path(__file__).parents[2] / "docs"
    page = (docs / "findings.md").read_text(encoding="utf-8").splitlines()
    results = {name: ExperimentResult.load(docs / "findings" / name) for name in NEEDED}
    for row in verdict_rows(findings(results)):
        assert row in page
    for name, shown in (
        ("localisation", ("PGV", "radius")),
        ("predetermination", ("predetermination index", "lock-in")),
    ):
        table = EXPERIMENTS[name].table(results[name])
        rows = markdown_rows(table[table[""].str.startswith(shown)])[2:]
        assert len(rows) > 2
        assert set(rows) <= set(page)
    assert {len(result.settings["seeds"]) for result in results.values()} == {30}


def test_missing_experiments_are_named():
    results = make_results()
    del results["ablation"]
    with pytest.raises(KeyError, match="got all but ablation"):
        findings(results)
    assert len(NEEDED) == 6
