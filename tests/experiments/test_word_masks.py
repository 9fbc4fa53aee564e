"""Words' maps beside masks, on pictures whose masks are known."""

import numpy as np
import pytest
import torch
import xarray as xr

from diffusers_xai import Samples, WordMaps, record
from diffusers_xai.experiments import EXPERIMENTS, Sampling
from diffusers_xai.experiments.word_masks import agreement, seeing
from tests.tiny import stable_diffusion


EXPERIMENT = EXPERIMENTS["words"]
PROMPT, STEPS = "a red fox, on grass", 2


@pytest.fixture(scope="module")
def pipe():
    return stable_diffusion()


def iou(values, mask):
    """By sets of places."""
    places = sorted(range(values.size), key=lambda place: (-values.ravel()[place], place))[: mask.sum()]
    top, wanted = set(places), set(np.flatnonzero(mask.ravel()).tolist())
    return len(top & wanted) / len(top | wanted)


def test_a_map_that_is_the_mask_agrees_and_controls_are_what_they_say():
    source = np.random.default_rng(0)
    masks = source.random((3, 2, 8, 8)) < 0.3
    masks[1, 1] = False  # a word that stands for nothing here
    dims = ("seed", "word", "height", "width")
    random = source.random(masks.shape)
    data = xr.Dataset(
        {
            "seen_map": xr.DataArray(np.stack([masks, random], 2), dims=("seed", "word", "step", "height", "width")),
            "null_seen_map": xr.DataArray(
                np.stack([random, random], 2), dims=("seed", "word", "step", "height", "width")
            ),
            "seen_changed": (dims, masks * 2.0),
            "mask": (("seed", "word", "mask_height", "mask_width"), masks),
        }
    )
    found = agreement(data)
    rows, columns = np.mgrid[:8, :8]
    middle = -((rows - 3.5) ** 2) - (columns - 3.5) ** 2
    for seed, word in np.ndindex(3, 2):
        part, mask = found.isel(seed=seed, word=word), masks[seed, word]
        if not mask.any():
            assert part["iou"].sel(by=["map", "change", "chance"]).isnull().all()
            continue
        expected = {
            "map": iou((masks[seed, word] + random[seed, word]).astype(np.float32), mask),
            "change": 1,
            "middle": iou(middle, mask),
            "random weights": iou(random[seed, word].astype(np.float32), mask),
            "chance": mask.mean() / (2 - mask.mean()),
        }
        for by, value in expected.items():
            assert float(part["iou"].sel(by=by)) == pytest.approx(value), by
        assert part["iou_by_step"].values[0] == 1
        other = masks[seed - 1, word]
        if other.any():
            map_mean = (masks[seed, word] + random[seed, word]).astype(np.float32)
            assert float(part["iou"].sel(by="another's mask")) == pytest.approx(iou(map_mean, other))


def test_the_pipeline_sees_the_picture_with_as_much_noise_as_its_state_would_have(pipe):
    picture = torch.rand((3, 16, 16), generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        latents = pipe.vae.encode(picture[None]).latent_dist.mode() * pipe.vae.config.scaling_factor
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(7))
    with record(pipe, [Samples(measures=())]) as recording:
        pipe(PROMPT, num_inference_steps=STEPS, output_type="latent", **seeing(pipe, picture, 7))
    states = recording.profile["samples"]
    for step in range(1, STEPS):
        alpha = pipe.scheduler.alphas_cumprod[int(states["timestep"][step])]
        expected = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        np.testing.assert_allclose(states.isel(step=step), expected.numpy(), atol=1e-5)


def test_a_picture_of_the_functions_own_is_seen_and_its_mask_compared(pipe):
    def known(picture, prompt, seed):
        source = np.random.default_rng(seed)
        mask = np.zeros(picture.shape[1:], dtype=bool)
        top, left = source.integers(0, 10, 2)
        mask[top : top + 6, left : left + 6] = True
        return torch.where(torch.from_numpy(mask), 1.0, -1.0).expand(3, -1, -1), {"fox": mask}

    sampling = Sampling(seeds=[4, 9], steps=STEPS, guidance_scale=3.0)
    result = EXPERIMENT.run(pipe, sampling, prompt=PROMPT, words=["fox", "red"], concepts=known)
    data = result.data
    assert data["iou"].sel(word="red").isnull().all()  # it has no mask
    assert data["iou"].sel(word="fox").notnull().all()
    # Of the first seed, by plain runs that see the picture.
    picture, masks = known(torch.zeros(3, 16, 16), PROMPT, 4)
    profiles = []
    for prompt in (PROMPT, "a red, on grass"):
        specs = [Samples(measures=()), *([WordMaps("fox")] if prompt == PROMPT else [])]
        with record(pipe, specs) as recording:
            noise = torch.Generator().manual_seed(4)  # of the first step, which sees no picture
            pipe(prompt, num_inference_steps=STEPS, guidance_scale=3.0, generator=noise, **seeing(pipe, picture, 4))
        profiles.append(recording.profile)
    changed = abs(profiles[1]["x0"] - profiles[0]["x0"]).mean(["step", "channel", "sample"])
    np.testing.assert_allclose(data["seen_changed"].sel(word="fox"), changed, atol=1e-5)
    large = torch.nn.functional.interpolate(
        torch.from_numpy(profiles[0]["word_maps"].values[:, 0, ..., 0])[None], size=(16, 16), mode="bilinear"
    )[0]
    expected = [iou(values.numpy(), masks["fox"]) for values in (large.mean(0), *large)]
    part = data.sel(seed=4, word="fox")
    assert float(part["iou"].sel(by="map")) == pytest.approx(expected[0], abs=0.03)  # ties of rounding
    others = iou(large.mean(0).numpy(), known(picture, PROMPT, 9)[1]["fox"])
    assert float(part["iou"].sel(by="another's mask")) == pytest.approx(others, abs=0.03)
    np.testing.assert_allclose(part["iou_by_step"], expected[1:], atol=0.03)
    assert (data["mask"].sel(word="fox").values == masks["fox"]).all()
    table = EXPERIMENT.table(result).set_index(["word", "", "against"]).loc["fox", "IoU of its map with the mask"]
    given = result.data["iou"].sel(word="fox")
    excess = float((given.sel(by="map") - given.sel(by="another's mask")).mean())
    assert table.loc["another's mask", "excess"].startswith(f"{excess:.3f} (")
    # What stays of every seed are numbers.
    assert not [
        name for name, array in data.items() if "seed" in array.dims and {"height", "mask_height"} & {*array.dims}
    ]
    assert result.plot().data
    assert result.plot_images().data


def test_masks_of_the_seeds_own_pictures(pipe):
    def bright(picture, prompt, seed):
        assert picture.shape == (3, 16, 16)
        return {"fox": (picture.mean(0) > picture.mean()).numpy()}

    sampling = Sampling(seeds=[4], steps=2, guidance_scale=1.0)
    data = EXPERIMENT.run(pipe, sampling, prompt=PROMPT, words=["fox"], concepts=bright, null="none").data
    image = data["image"].values.astype(np.float32) / 127.5 - 1
    assert (data["mask"].isel(word=0).values == (image.mean(2) > image.mean())).all()
    np.testing.assert_array_equal(data["seen_map"], data["map"])
    np.testing.assert_array_equal(data["seen_changed"], data["changed"])
    assert "random weights" not in data["by"]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({"cat": np.ones((16, 16), bool)}, "masks of some of fox"),
        ({"fox": np.ones((8, 8), bool)}, r"bool masks of shape \(16, 16\)"),
        ({"fox": np.ones((16, 16))}, r"bool masks of shape \(16, 16\)"),
        ((torch.zeros(3, 8, 8), {"fox": np.ones((16, 16), bool)}), r"a picture of shape \(3, 16, 16\)"),
    ],
)
def test_what_does_not_fit_is_refused(pipe, answer, message):
    with pytest.raises(ValueError, match=message):
        EXPERIMENT.run(
            pipe, Sampling(seeds=[4], steps=1, guidance_scale=1.0), prompt=PROMPT, words=["fox"], null="none",
            concepts=lambda picture, prompt, seed: answer,
        )  # fmt: skip
