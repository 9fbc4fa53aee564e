"""Tables of any names, and of a single seed."""

import numpy as np
import xarray as xr
from scipy import stats

from diffusers_xai.experiments import EXPERIMENTS, ExperimentResult
from diffusers_xai.experiments.tables import crossing_columns, q_note


def test_checkpoints_may_have_any_name():
    """Such as those that begin like the columns of q-values, which are found beside theirs."""
    rng, names = np.random.default_rng(0), ["quick", "queen"]
    distance = rng.normal([[0.5], [0.3]], 0.1, (6, 2, 1))
    similarity, *controls = rng.uniform(0.3, 0.6, (3, 6, 2, 1))
    data = xr.Dataset(
        {
            "distance": (("seed", "checkpoint", "layer"), distance),
            "null_distance": (("seed", "layer"), controls[0][:, 0]),
            "final_ssim": (("seed", "checkpoint"), similarity[..., 0]),
            "null_final_ssim": ("seed", controls[1][:, 0, 0]),
        },
        {"checkpoint": names, "layer": ["a"]},
    )
    experiment = EXPERIMENTS["compare-checkpoints"]
    table = experiment.table(ExperimentResult("compare-checkpoints", data, {}))
    assert table["quick"][0].startswith(f"{distance[:, 0].mean():.3f} (")
    told = table[[f"q: {name}" for name in names]].to_numpy().ravel()
    pairs = [(distance, controls[0][:, 0]), (similarity, controls[1][:, 0])]
    p_values = [stats.ttest_rel(of[:, i], null).pvalue[0] for of, null in pairs for i in (0, 1)]
    expected = stats.false_discovery_control(p_values)
    assert [float(q.removeprefix("< ")) for q in told] == [max(round(q, 3), 0.001) for q in expected]
    assert "at most one in twenty" in q_note(table)
    assert q_note(table[names]) == ""


def test_where_a_single_curve_falls_has_no_interval():
    curve = xr.DataArray(
        [[1.0, 0.6, 0.2]], dims=("seed", "step"), coords={"timestep": ("step", [900.0, 500.0, 100.0])}
    )
    found = xr.DataArray([np.nan, 400.0, np.nan], dims="limit", coords={"limit": ["early", "estimate", "late"]})
    data = xr.Dataset({"doubt": curve, "null_doubt": curve, "half": found, "null_half": found})
    columns = crossing_columns(data, "doubt", "half", 0.5, "step")
    assert (columns["the model"], columns["control"], columns["excess"]) == ("t = 400", "t = 400", "+0")
