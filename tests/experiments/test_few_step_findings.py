"""The thesis's claims in few steps, against the experiments and runs that they are read from, by hand."""

import numpy as np
import pytest
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler

from diffusers_xai import XAIPipeline
from diffusers_xai.experiments import EXPERIMENTS, Sampling
from diffusers_xai.experiments.few_step_findings import findings_by_way
from diffusers_xai.experiments.findings import UNASKED
from tests.audit.models import mixture
from tests.experiments.runs import SEEDS, ssim, states
from tests.tiny import convnext_unet


RISE = "SSIM of neighbouring states rises over the first 750 steps."
FALL = "Their similarity falls again in the last 100 steps."
SWITCH = "After half of the process a label switch changes little."
CONTRACTING = "It hurts more in the contracting path."
EARLY = "Gradients spread from the eyes to the face between t = 950 and 600 (gradient of x̂_0)."
LATE = EARLY.replace("eyes to the face between t = 950 and 600", "face to the image between t = 600 and 100")


EYE = np.zeros((16, 16), dtype=bool)
EYE[5, 6:8] = True


def trailing(solver):
    return solver.from_config(DDPMScheduler().config, timestep_spacing="trailing", clip_sample=False)


def test_each_claim_is_read_from_the_way_that_it_names():
    pipe = XAIPipeline(convnext_unet(block_out_channels=(8, 8)), DDPMScheduler())
    student = XAIPipeline(convnext_unet(block_out_channels=(8, 8)), trailing(DDIMScheduler))
    null = mixture()
    options = {"counts": [4], "others": [student], "mask": EYE}
    result = EXPERIMENTS["few-step-findings"].run(pipe, Sampling([0, 1], SEEDS, 5), null=null, **options)
    ways = ["DDIM, 5 steps", "DDIM, 4 steps", "DPM-Solver++, 4 steps", "LCM, 4 steps", "student, 4 steps"]
    assert result.data["way"].values.tolist() == ways
    by_hand = {
        ways[1]: XAIPipeline(pipe.unet, trailing(DDIMScheduler)),
        ways[2]: XAIPipeline(pipe.unet, trailing(DPMSolverMultistepScheduler)),
        ways[4]: student,
    }
    for way, which in by_hand.items():
        effects = result.data["effect"].sel(way=way)
        runs = [states(which, 0, seed, 4) for seed in SEEDS]
        for k, run in enumerate(runs):
            similar = [ssim(a, b) for a, b in zip(run[:3], run[1:4], strict=True)]
            slope = np.polyfit([999, 749, 499], similar, 1)[0]
            assert float(effects.sel(claim=RISE)[k]) == pytest.approx(-100 * slope, abs=1e-4)
        own = {"null": "none"}
        switched = EXPERIMENTS["predetermination"].run(which, Sampling([0, 1], SEEDS, 4), switches=2, **own)
        np.testing.assert_allclose(effects.sel(claim=SWITCH), switched.data["ssim"][:, 1], atol=1e-3)
    gradients = EXPERIMENTS["localisation"].run(student, Sampling([0], SEEDS, 4), mask=EYE, null="none").data["radius"]
    spread = gradients.sel(step=gradients["timestep"] == 499).values - gradients.sel(step=gradients["timestep"] == 999)
    np.testing.assert_allclose(result.data["effect"].sel(way=ways[4], claim=EARLY), spread[:, 0], atol=1e-3)

    # Its control goes the same way.
    gone = EXPERIMENTS["predetermination"].run(
        XAIPipeline(null.unet, trailing(DDIMScheduler)), Sampling([0, 1], SEEDS, 4), switches=2, null="none"
    )
    control = result.data["null_effect"].sel(way=ways[1], claim=SWITCH)
    np.testing.assert_allclose(control, gone.data["ssim"][:, 1], atol=1e-3)

    by_way = findings_by_way(result)
    unasked = {way: {f.claim.text for f in table if f.verdict == UNASKED} for way, table in by_way.items()}
    assert [len(unasked[way]) for way in ways[1:]] == [7] * 4
    assert {FALL, LATE} < unasked[ways[1]]
    assert not {RISE, EARLY, SWITCH, CONTRACTING} & unasked[ways[1]]
    table = EXPERIMENTS["few-step-findings"].table(result).set_index(["claim", "way"])
    why = table.loc[(LATE, ways[1]), "effect (95 % interval)"]
    assert why == "no state within half a step of t = 100: the nearest is at t = 249"
    assert table.loc[(CONTRACTING, ways[1]), "control"].endswith("(random channels)")
    assert len(result.plot().data[0].z) == len(by_way[ways[0]]) == 23


def test_a_network_of_another_kind_is_refused():
    pipe = mixture()
    with pytest.raises(ValueError, match="Expected a network with"):
        EXPERIMENTS["few-step-findings"].run(pipe, Sampling([0, 1], SEEDS, 5), null="none")
