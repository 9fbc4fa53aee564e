"""Tables of any names, and of a single seed."""

import numpy as np
import xarray as xr
from scipy import stats

from diffusers_xai.experiments import EXPERIMENTS, ExperimentResult
from diffusers_xai.experiments.tables import crossing_columns, q_note


def test_checkpoints_may_have_any_name():
    """Such as those of the columns beside theirs."""
    rng, names = np.random.default_rng(0), ["q", "control"]
    distance = rng.normal([[0.5], [0.3]], 0.1, (6, 2, 1))
    similarity, *controls = rng.uniform(0.3, 0.6, (3, 6, 2, 1))
    data = xr.Dataset(
        {
            "distance": (("seed", "checkpoint", "layer"), distance),
            "null_distance": (("seed", "layer"), controls[0][:, 0]),
            "final_ssim": (("seed", "checkpoint"), similarity[..., 0]),
            "null_final_ssim": ("seed", controls[1][:, 0, 0]),
        },
        {"checkpoint": names, "layer": ["nan"]},
    )
    experiment = EXPERIMENTS["compare-checkpoints"]
    table = experiment.table(ExperimentResult("compare-checkpoints", data, {}))
    assert table[""].tolist() == ["nan", "SSIM of the images"]
    shown = [table[f"checkpoint: {name}"] for name in names]
    assert [column[0].split()[0] for column in shown] == [f"{mean:.3f}" for mean in distance.mean(0)[:, 0]]
    assert [column[1].split()[0] for column in shown] == [f"{mean:.3f}" for mean in similarity.mean(0)[:, 0]]
    assert table["control"][0].startswith(f"{controls[0][:, 0].mean():.3f} (")
    told = table[[f"q: {name}" for name in names]].to_numpy().ravel()
    pairs = [(distance, controls[0][:, 0]), (similarity, controls[1][:, 0])]
    p_values = [stats.ttest_rel(of[:, i], null).pvalue[0] for of, null in pairs for i in (0, 1)]
    expected = stats.false_discovery_control(p_values)
    assert [float(q.removeprefix("< ")) for q in told] == [max(round(q, 3), 0.001) for q in expected]
    assert "at most one in twenty" in q_note(table)
    assert q_note(table[[f"checkpoint: {name}" for name in names]]) == ""


def test_what_a_judge_tells_may_have_any_name():
    rng, names = np.random.default_rng(1), ["pixels", "q", "layer"]
    effect, null = rng.uniform(0, 1, (2, 6, 1, 1, 3))
    dims = ("seed", "layer", "band", "of")
    coords = {"layer": ["a"], "of": names, "judged": ("of", [False] * 3), "timestep": ("band", [999.0])}
    coords |= {"start": ("band", [0]), "stop": ("band", [4])}
    data = xr.Dataset({"effect": (dims, effect), "null_effect": (dims, null)}, coords)
    table = EXPERIMENTS["patching"].table(ExperimentResult("patching", data, {}))
    assert table["layer"].tolist() == ["a"]
    told = ["image", "q", "layer"]
    means = [float(table[f"the model: {name}"][0].split()[0]) for name in told]
    np.testing.assert_allclose(means, effect.mean(0).ravel(), atol=5e-4)
    expected = stats.false_discovery_control(stats.ttest_rel(effect, null).pvalue.ravel())
    np.testing.assert_allclose([float(table[f"q: {name}"][0]) for name in told], expected, atol=5e-4)


def test_where_a_single_curve_falls_has_no_interval():
    curve = xr.DataArray(
        [[1.0, 0.6, 0.2]], dims=("seed", "step"), coords={"timestep": ("step", [900.0, 500.0, 100.0])}
    )
    found = xr.DataArray([np.nan, 400.0, np.nan], dims="limit", coords={"limit": ["early", "estimate", "late"]})
    data = xr.Dataset({"doubt": curve, "null_doubt": curve, "half": found, "null_half": found})
    columns = crossing_columns(data, "doubt", "half", 0.5, "step")
    assert (columns["the model"], columns["control"], columns["excess"]) == ("t = 400", "t = 400", "+0")
