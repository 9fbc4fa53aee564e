"""Which attribute in which half: against runs with a label switch of their own."""

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

from diffusers_xai import LabelSwitch, Samples, XAIPipeline
from diffusers_xai.cli import main
from diffusers_xai.experiments import EXPERIMENTS, ExperimentResult, Sampling
from diffusers_xai.experiments.sampling import _LIMITS
from diffusers_xai.labels import labels_between
from tests.planted import OneBlockHearsTheLabel
from tests.tiny import convnext_unet


NAME, SEEDS, STEPS = "shapley", [4, 9], 5


def make(unet):
    return XAIPipeline(unet, DDPMScheduler(clip_sample=False))


def test_values_sum_to_the_gain_and_the_runs_are_those_of_switches():
    pipe = make(convnext_unet())
    labels = labels_between(0b0011, 0b0110, pipe.unet.config.class_attributes)

    def judge(images):
        return images.mean((2, 3)).sigmoid()[:, [0, 1, 2, 0]]

    result = EXPERIMENTS[NAME].run(pipe, Sampling(labels, SEEDS, STEPS), judge=judge, null="none")
    data = result.data
    assert data["of"].values.tolist() == ["image", "Male", "Wearing_Lipstick"]
    assert data["attribute"].values.tolist() == ["Male", "Wearing_Lipstick"]
    np.testing.assert_allclose(data["share"].sum(["attribute", "half"]), data["gain"], atol=1e-6)
    np.testing.assert_allclose(data["gain"].sel(of="image"), 1, atol=1e-12)
    # Male in the first half alone: 0111, then 0011 again.
    out = pipe(
        0b0111, num_inference_steps=STEPS, generator=torch.Generator().manual_seed(SEEDS[0]),
        edits=[LabelSwitch(from_step=2, to=0b0011)], record=[Samples(every=STEPS)],
    )  # fmt: skip
    final = out.profile["final_sample"].values[0]
    np.testing.assert_allclose(data["images"].sel(first=0b0111, second=0b0011), final, atol=1e-3)
    seen = judge(torch.from_numpy(final)[None].clamp(-1, 1))[0, 1]
    worth = data["worth"].sel(seed=SEEDS[0], of="Male", first=0b0111, second=0b0011)
    assert float(worth) == pytest.approx(float(seen), abs=1e-4)
    for figure in (result.plot(), result.plot_images()):
        assert figure.data
    assert len(EXPERIMENTS[NAME].table(result)) == 3 * (2 * 2 + 1 + 3)


def test_the_label_that_shifts_a_channel_takes_all_of_what_it_did():
    """Where a label's push is linear, its halves share the gain by what each of them pushes."""
    pipe = make(OneBlockHearsTheLabel(class_attributes=("Lit",)).double())

    def judge(images):
        return images[:, 1].mean((1, 2))[:, None] / 100

    pipe.scheduler.register_to_config(prediction_type="epsilon")
    data = EXPERIMENTS[NAME].run(pipe, Sampling([0, 1], SEEDS, STEPS), judge=judge, null="none").data
    worth = data["worth"].sel(of="Lit")
    alone = [worth.sel(first=1, second=0), worth.sel(first=0, second=1)]
    none, both = worth.sel(first=0, second=0), worth.sel(first=1, second=1)
    for half, mine, other in ((0, *alone), (1, *alone[::-1])):
        expected = ((mine - none) + (both - other)) / 2
        np.testing.assert_allclose(data["share"].sel(of="Lit", attribute="Lit").isel(half=half), expected, atol=1e-9)
    # The network's pixels differ by the seed's noise and the label's shift, and by nothing else.
    assert float(data["variance"].sel(of="image", source="both together", limit="estimate")) < 0.5


def test_arrays_are_held_of_the_first_seeds_alone(monkeypatch):
    pipe = make(OneBlockHearsTheLabel(class_attributes=("Lit",)).double())
    monkeypatch.setitem(_LIMITS, "held", 3)
    few, more = (EXPERIMENTS[NAME].run(pipe, Sampling([0, 1], range(n), 2), null="none").data for n in (3, 4))
    np.testing.assert_allclose(more["variance"].sel(of="image"), few["variance"].sel(of="image"))
    assert not [name for name, array in more.items() if {"seed", "height"} <= {*array.dims}]


def test_labels_that_are_not_all_between_two_are_refused():
    pipe = make(convnext_unet())
    with pytest.raises(ValueError, match="two labels and all between them"):
        EXPERIMENTS[NAME].run(pipe, Sampling([3, 12], SEEDS, STEPS), null="none")


def colours(images):
    return {"red": images[:, 0].mean((1, 2)), "green": images[:, 1].double().mean((1, 2)), "none": [2.0] * len(images)}


def test_the_variance_of_any_measure_is_that_of_the_analysis_by_hand():
    pipe = make(OneBlockHearsTheLabel().double())
    seeds = range(5)
    result = EXPERIMENTS[NAME].run(pipe, Sampling([0, 1], seeds, STEPS), measure=colours, null="none")
    data = result.data
    assert data["of"].values.tolist() == ["image", "red", "green", "none"]
    values = np.empty((5, 2))  # of plain runs
    for row, column in np.ndindex(5, 2):
        final = pipe(
            column, num_inference_steps=STEPS, generator=torch.Generator().manual_seed(row), output_type="np"
        ).images[0]
        values[row, column] = (final[..., 1] * 2 - 1).mean()
    # Two-way, by sums of squares: of seeds, of labels, and of what is left.
    mean = values.mean()
    seed = 2 * sum((values[i].mean() - mean) ** 2 for i in range(5)) / 4
    label = 5 * sum((values[:, j].mean() - mean) ** 2 for j in range(2)) / 1
    left = values - values.mean(1, keepdims=True) - values.mean(0) + mean
    rest = (left**2).sum() / 4
    parts = np.array([max((seed - rest) / 2, 0), max((label - rest) / 5, 0), rest])
    estimate = data["variance"].sel(limit="estimate")
    np.testing.assert_allclose(estimate.sel(of="green"), parts / parts.sum(), atol=1e-5)
    assert parts[1] > 0.05 * parts.sum()
    # The label is not heard in red: all of it is the seed's. What never varies has no shares.
    np.testing.assert_allclose(estimate.sel(of="red"), [1, 0, 0], atol=1e-9)
    assert estimate.sel(of="none").isnull().all()
    np.testing.assert_allclose(data["share"].sel(of="red"), 0, atol=1e-9)
    np.testing.assert_allclose(
        data["share"].sel(of="green").sum(["attribute", "half"]), values[:, 1] - values[:, 0], atol=1e-5
    )
    assert len(result.plot().data) == 4 * (2 + 1)
    table = EXPERIMENTS[NAME].table(result)
    assert table["of"].drop_duplicates().tolist() == ["image", "red", "green", "none"]
    assert "nan%" not in table.to_string()


@pytest.mark.parametrize(
    ("told", "got"),
    [
        (lambda images: images.mean((1, 2, 3)), "Tensor"),
        (lambda images: {}, "{}"),
        (lambda images: {"red": images.mean((2, 3))}, r"shape \(2, 3\) of 'red'"),
        (lambda images: {"red": ["a", "b"]}, "list of 'red'"),
        (lambda images: {"red": images.mean((1, 2, 3)) / 0}, "inf of 'red'|-inf of 'red'"),
        (lambda images: {"image": images.mean((1, 2, 3))}, "'image', which reads like 'image'"),
        (lambda images: {"Red": images.mean((1, 2, 3)), "red": images.mean((1, 2, 3))}, "'red', which reads like"),
    ],
)
def test_what_measures_something_else_is_refused_before_anything_is_sampled(told, got, monkeypatch):
    pipe = make(OneBlockHearsTheLabel())
    monkeypatch.setattr(pipe, "predict", None)
    with pytest.raises(ValueError, match=f"got ({got})"):
        EXPERIMENTS[NAME].run(pipe, Sampling([0, 1], SEEDS, STEPS), measure=told)


def test_the_command_takes_a_measure(tmp_path, capsys):
    unet = convnext_unet(num_class_embeds=2, class_attributes=("Smiling",))
    XAIPipeline(unet, DDPMScheduler()).save_pretrained(tmp_path / "pipe")
    code = tmp_path / "own.py"
    code.write_text(
        "def light(images):\n    return {'light': images.mean((1, 2, 3))}\ndef bad(images):\n    return 1\n"
    )
    command = ["--checkpoint", str(tmp_path / "pipe"), "--out", str(tmp_path / "out"), "--seeds", "3", "--steps", "2"]
    command += ["--null", "none", "--measure"]
    assert main(["experiment", NAME, *command, f"{code}:bad"]) == 2
    assert "expected `measure` to return a dict" in capsys.readouterr().err.lower()
    assert main(["experiment", NAME, *command, f"{code}:light"]) == 0
    assert "light" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert ExperimentResult.load(tmp_path / "out" / NAME).data["of"].values.tolist() == ["image", "light"]
    capsys.readouterr()
    assert main(["experiment", "ablation", *command, f"{code}:light"]) == 2
    assert "--measure: expected none, as ablation takes none" in capsys.readouterr().err
