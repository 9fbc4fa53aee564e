"""From when the first label decides, and between every two labels."""

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

from diffusers_xai import LabelSwitch, XAIPipeline
from diffusers_xai.experiments import EXPERIMENTS, ExperimentResult, Sampling
from diffusers_xai.experiments.nulls import gaussian_null
from tests.experiments.runs import SEEDS, measured, run, ssim, states
from tests.tiny import convnext_unet


def test_predetermination(pipe):
    null = gaussian_null(pipe, [3, 12], num_samples=24)
    settings = {"labels": [3, 12], "seeds": SEEDS, "steps": 8, "switches": 4}
    result = run("predetermination", pipe, **settings, batch_size=12, null=null)
    data = result.data
    assert data["step"].values.tolist() == [0, 2, 4, 6]
    assert data["share"].values.tolist() == [0, 0.25, 0.5, 0.75]
    assert result.settings["null"] == "gaussian"
    for which, name in ((pipe, "ssim"), (null, "null_ssim")):
        for seed in SEEDS:
            whole = states(which, 3, seed, 8)[-1]
            switched = [states(which, 3, seed, 8, edits=[LabelSwitch(from_step=at, to=12)])[-1] for at in (0, 2, 4, 6)]
            expected = [ssim(whole, image) for image in switched]
            np.testing.assert_allclose(data[name].sel(seed=seed), expected, atol=1e-3)
    np.testing.assert_allclose(data["images"][0], states(pipe, 3, SEEDS[0], 8)[-1], atol=1e-3)
    np.testing.assert_allclose(
        data["images"][2], states(pipe, 3, SEEDS[0], 8, edits=[LabelSwitch(from_step=2, to=12)])[-1], atol=1e-3
    )
    table = EXPERIMENTS["predetermination"].table(result)
    assert table["the model"][1].startswith(f"{float(data['ssim'][:, 1].mean()):.3f} (")
    assert table["control"][4].startswith(f"{float(data['null_index'].mean()):.3f} (")
    assert table["excess"][4].startswith(f"{float((data['index'] - data['null_index']).mean()):.3f} (")


def test_when_each_attribute_locks_in(pipe):
    """A judge that sees brightness in the first attribute, and the second in every image."""
    steps, places = 8, (0, 2, 4, 6)

    def judge(images):
        bright = images.mean((1, 2, 3)) > middle
        return torch.stack([bright, torch.ones_like(bright), ~bright, bright], dim=1).float()

    settings = {"labels": [3, 12], "seeds": SEEDS, "steps": steps, "switches": 4}
    brightness = {}
    for seed in SEEDS:
        runs = [[], *([LabelSwitch(from_step=at, to=12)] for at in places)]
        brightness[seed] = [float(states(pipe, 3, seed, steps, edits=e)[-1].clamp(-1, 1).mean()) for e in runs]
    # So that the first switch of the first seed changes what the judge sees.
    middle = (brightness[SEEDS[0]][0] + brightness[SEEDS[0]][1]) / 2
    result = run("predetermination", pipe, **settings, judge=judge, null=pipe)
    data = result.data
    for name in ("judged", "lock_in"):  # of the same model the same
        np.testing.assert_allclose(data[name], data[f"null_{name}"], atol=1e-6)
    locked = EXPERIMENTS["predetermination"].table(result).set_index("").loc["lock-in of Bangs"]
    assert locked["the model"] == locked["control"]
    count = int(data["lock_in"].sel(attribute="Bangs").notnull().sum())
    assert locked["the model"].endswith(f", {count} seed{'s' * (count > 1)}")  # the first at least
    first = result.data.isel(seed=[0])
    alone = EXPERIMENTS["predetermination"].table(ExperimentResult("predetermination", first, result.settings))
    lock_in = float(first["lock_in"].sel(attribute="Bangs").item())
    assert alone.set_index("").loc["lock-in of Bangs", "the model"] == f"{lock_in:.3f}, 1 seed"
    assert data["lock_in"].sel(attribute="Male").isnull().all()
    for seed in SEEDS:
        seen = np.array(brightness[seed]) > middle
        mine = float(data["lock_in"].sel(seed=seed, attribute="Bangs"))
        if seen[1] == seen[0]:
            assert np.isnan(mine)
        else:
            last = max(k for k in range(4) if seen[1 + k] != seen[0])
            assert mine == pytest.approx((last + 0.5) / 4)
    assert np.isfinite(data["lock_in"].sel(seed=SEEDS[0], attribute="Bangs"))
    unnamed = XAIPipeline(convnext_unet(class_attributes=None), DDPMScheduler())
    with pytest.raises(ValueError, match="whose attributes have names"):
        measured("predetermination", unnamed, labels=[3, 12], steps=8, switches=4, judge=judge)


def test_label_pairs(pipe):
    result = run("label-pairs", pipe, labels=[3, 5, 12], seeds=SEEDS, steps=8, switches=4, batch_size=12)
    assert np.isnan(result.data["index"].sel(first=3, second=3)).all()
    alone = measured("predetermination", pipe, labels=[12, 5], seeds=SEEDS, steps=8, switches=4, batch_size=12)
    np.testing.assert_array_equal(result.data["index"].sel(first=12, second=5), alone.data["index"])
    np.testing.assert_array_equal(result.data["switched_ssim"].sel(first=12, second=5), alone.data["ssim"][:, 0])


@pytest.mark.parametrize(
    ("judge", "message"),
    [
        (lambda images: torch.zeros(4), r"Smiling, Wearing_Lipstick\): a tensor \(2, 4\), got shape \(4,\)"),
        (lambda images: torch.zeros(len(images) + 1, 4), r"a tensor \(2, 4\), got shape \(3, 4\)"),
        (lambda images: None, r"a tensor \(2, 4\), got NoneType"),
    ],
)
def test_a_judge_that_does_not_fit_is_refused_before_any_work(pipe, judge, message, monkeypatch):
    monkeypatch.setattr(Sampling, "over_seeds", lambda *args, **options: pytest.fail("the work began"))
    for name in ("predetermination", "shapley", "label-directions"):
        with pytest.raises(ValueError, match=message):
            EXPERIMENTS[name].run(pipe, Sampling([0, 1], range(2), 4), judge=judge)
