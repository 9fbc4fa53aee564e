"""When a label is decided: the experiment, against what its parts give alone."""

import numpy as np
import pytest
from diffusers import DDIMScheduler, DDPMScheduler
from scipy.special import xlogy

from diffusers_xai import XAIPipeline
from diffusers_xai.experiments import EXPERIMENTS, Sampling
from diffusers_xai.labels import labels_between
from diffusers_xai.pipelines.label_evidence import ancestral, label_evidence
from tests.tiny import convnext_unet


NAME = "critical-window"


@pytest.fixture(scope="module")
def pipe():
    return XAIPipeline(convnext_unet(), DDIMScheduler())


def test_the_labels_take_turns_and_the_sweep_stands_beside(pipe):
    labels, seeds = labels_between(0b0011, 0b0110, pipe.unet.config.class_attributes), [4, 9, 2, 7, 5]
    assert labels == [0b0011, 0b0010, 0b0111, 0b0110]
    # Another network as the control: the same is measured of it.
    null = XAIPipeline(convnext_unet(class_encoding="scaled"), DDPMScheduler())
    result = EXPERIMENTS[NAME].run(pipe, Sampling(labels, seeds, 10, batch_size=3), null=null, switches=2)
    data = result.data
    for which, prefix in ((pipe, ""), (null, "null_")):
        run = ancestral(which)
        told = label_evidence(run, labels, [0, 1, 2, 3, 0], seeds, num_inference_steps=10)
        mine = data[f"{prefix}log_posterior"].transpose("step", "seed", "label")
        np.testing.assert_allclose(mine, told, rtol=1e-3, atol=1e-3)
    assert data["timestep"].values.tolist() == [900, 800, 700, 600, 500, 400, 300, 200, 100, 0]
    assert data["of"].values.tolist() == ["the whole label", "Male", "Wearing_Lipstick"]
    # The doubt about an attribute by hand: two labels have it, and two do not.
    p = np.exp(data["log_posterior"].values)[..., 2:].sum(-1)
    bits = -(xlogy(p, p) + xlogy(1 - p, 1 - p)) / np.log(2)
    np.testing.assert_allclose(data["doubt"].isel(of=1), bits, atol=1e-5)
    run = ancestral(pipe)
    pair = Sampling([0b0011, 0b0110], seeds, 10, batch_size=12)
    swept = EXPERIMENTS["predetermination"].run(run, pair, switches=2, null="none").data
    np.testing.assert_allclose(data["switch_ssim"], swept["ssim"], atol=1e-3)
    gone = EXPERIMENTS["noise-and-back"].run(run, pair, null="none").data
    np.testing.assert_allclose(data["back"], gone["returned"], atol=1e-3)
    np.testing.assert_array_equal(data["back_timestep"], gone["timestep"])
    drawn = [trace.name or "" for trace in result.plot().data]
    for start in ("switch 0011 → 0110", "back, 0011", "back, 0110"):
        assert any(name.startswith(start) for name in drawn), start
    assert result.settings["scheduler"] == "DDPMScheduler"
    for figure in (result.plot(), result.plot_images()):
        assert figure.data
    table = EXPERIMENTS[NAME].table(result)
    assert len(table) == 3 * 3
    assert list(table.columns) == ["", "doubt left", "the model", "control", "excess", "q"]


def test_a_network_that_hears_no_label_has_no_window(pipe):
    deaf = XAIPipeline(convnext_unet(), DDPMScheduler())
    deaf.unet.conv_in.weight.data[:, 3:] = 0
    result = EXPERIMENTS[NAME].run(deaf, Sampling([0, 1], range(4), 10), null="none", switches=0)
    np.testing.assert_allclose(result.data["doubt"], 1, atol=1e-6)
    assert result.data[["opens", "half", "closes"]].to_dataarray().isnull().all()
    assert (EXPERIMENTS[NAME].table(result)["the model"] == "never").all()
    assert result.plot().data


def test_what_does_not_fit_is_refused(pipe):
    for labels, steps, message in (([3], 5, "at least two labels, got"), ([3, 5], 1, "at least two steps, got 1")):
        with pytest.raises(ValueError, match=message):
            EXPERIMENTS[NAME].run(pipe, Sampling(labels, [1], steps), null="none")
