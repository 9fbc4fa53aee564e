from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.models.attention_processor import AttnProcessor, SlicedAttnProcessor

from diffusers_xai import AttentionWeights, XAIPipeline, record
from tests.tiny import convnext_unet, make_pipeline
from tests.zoo.pipelines import ZOO
from tests.zoo.running import run, spied


def projections(module, store):
    """Records what a layer's projections put out, to build its weights by hand."""
    names = ["to_qkv"] if hasattr(module, "to_qkv") and not hasattr(module, "to_q") else ["to_q", "to_k"]
    for name in names:
        getattr(module, name).register_forward_hook(lambda m, a, out, name=name: store.update({name: out.detach()}))


def weights_by_hand(module, store):
    """(batch, head, query, key), written with einsum from the projections."""
    if "to_qkv" in store:
        qkv = store["to_qkv"]
        q, k, _ = qkv.reshape(qkv.shape[0], 3, module.heads, module.head_dim, -1).unbind(1)
        scores = torch.einsum("bhdi,bhdj->bhij", q, k) * module.head_dim**-0.5
    else:
        q, k = (store[n].unflatten(-1, (module.heads, -1)) for n in ("to_q", "to_k"))
        scores = torch.einsum("bihd,bjhd->bhij", q, k) * q.shape[-1] ** -0.5
    exponentials = torch.exp(scores - scores.amax(-1, keepdim=True))
    return exponentials / exponentials.sum(-1, keepdim=True)


CASES = {
    "xai": "mid_block.attentions.0.attn",
    "ddpm": "down_blocks.1.attentions.0",
    "self": "down_blocks.1.attentions.0.transformer_blocks.0.attn1",
    "cross": "down_blocks.1.attentions.0.transformer_blocks.0.attn2",
}


def make(case):
    pipe, sample = make_pipeline({"self": "stable_diffusion", "cross": "stable_diffusion"}.get(case, case))
    if case == "xai":
        pipe.register_modules(unet=convnext_unet(mid_attention_type="softmax"))
    return pipe, sample


@pytest.mark.parametrize("pixels", [None, [(0, 0), (5, 6)]], ids=["mean", "pixels"])
@pytest.mark.parametrize("case", CASES)
def test_weights_equal_those_built_from_the_projections(case, pixels):
    pipe, sample = make(case)
    path = CASES[case]
    module = dict(pipe.unet.named_modules())[path]
    store = {}
    projections(module, store)
    plain = sample(num_inference_steps=1).images
    with record(pipe, [AttentionWeights(layers=path, pixels=pixels)]) as run:
        images = sample(num_inference_steps=1).images
    assert np.array_equal(plain, images)

    expected = weights_by_hand(module, store)  # (batch, head, query, key)
    size = pipe.unet.config.sample_size
    side = int(expected.shape[2] ** 0.5)
    if pixels is None:
        expected = expected.mean(2)
    else:
        stride = size // side
        expected = expected[:, :, [r // stride * side + c // stride for r, c in pixels]]
    if case != "cross":
        expected = expected.unflatten(-1, (side, side))
    array = run.profile[f"attention_weights/{path}"]
    recorded = array.isel(step=0).values
    if "branch" in array.dims:
        recorded = np.moveaxis(recorded, 1, 0).reshape(-1, *recorded.shape[2:])
    np.testing.assert_allclose(recorded, expected.numpy(), rtol=1e-4, atol=1e-6)
    key_dims = ("token",) if case == "cross" else ("height", "width")
    assert array.dims[-len(key_dims) :] == key_dims
    np.testing.assert_allclose(array.sum(key_dims), 1, rtol=1e-5)


def test_all_softmax_layers_are_recorded_by_default():
    pipe, sample = make("self")
    with record(pipe, [AttentionWeights(every=2)]) as run:
        sample()
    layers = {name.removeprefix("attention_weights/") for name in run.profile}
    assert layers == {path for path, m in pipe.unet.named_modules() if type(m).__name__ == "Attention"}


@pytest.mark.parametrize("heads", [1, (1, 0)])
def test_single_heads_come_in_the_order_in_which_they_are_wanted(heads):
    pipe, sample = make("cross")
    path = CASES["cross"]
    profiles = []
    for chosen in (None, heads):
        with record(pipe, [AttentionWeights(layers=path, heads=chosen)]) as run:
            sample(num_inference_steps=1)
        profiles.append(run.profile[f"attention_weights/{path}"])
    every, array = profiles
    wanted = np.atleast_1d(heads)
    assert array["head"].values.tolist() == wanted.tolist()
    for head in wanted:
        assert np.array_equal(array.sel(head=head).values, every.isel(head=head).values)
    with (
        pytest.raises(ValueError, match="expected `heads` in 0.."),
        record(pipe, [AttentionWeights(layers=path, heads=9)]),
    ):
        sample(num_inference_steps=1)


@pytest.mark.parametrize(("name", "values"), [("heads", []), ("heads", [-1]), ("pixels", []), ("pixels", ())])
def test_no_heads_and_no_pixels_are_refused(name, values):
    with pytest.raises(ValueError, match=f"Expected `{name}` as one or several"):
        AttentionWeights(**{name: values})


def test_a_processor_that_is_exchanged_during_the_run_is_seen():
    profiles = []
    for exchanged in (None, AttnProcessor(), SlicedAttnProcessor(1)):
        pipe, sample = make("cross")

        def exchange(pipe, step, t, tensors, exchanged=exchanged):
            if exchanged is not None and step == 0:
                pipe.unet.set_attn_processor(exchanged)
            return tensors

        with record(pipe, [AttentionWeights(queries="all")]) as run:
            sample(num_inference_steps=3, callback_on_step_end=exchange)
        profiles.append(run.profile)
    plain, *others = profiles
    assert len(plain) > 4
    for other in others:
        assert list(other) == list(plain)
        for name, values in plain.items():
            np.testing.assert_allclose(other[name].values, values.values, rtol=0, atol=1e-5)


def test_linear_attention_has_no_weights():
    pipe = XAIPipeline(convnext_unet(), DDPMScheduler())
    with pytest.raises(ValueError, match="a network with softmax attention"):
        record(pipe, [AttentionWeights()]).__enter__()
    with pytest.raises(ValueError, match=r"available: none; got down_blocks.0.attentions.0.attn"):
        record(pipe, [AttentionWeights(layers="downs.0.2.fn")]).__enter__()


def test_pixels_outside_the_sample_are_refused():
    pipe, sample = make("ddpm")
    pipe.unet.conv_in.register_forward_hook(lambda *args: pytest.fail("the denoiser ran"))
    with (
        pytest.raises(ValueError, match=r"within \(16, 16\), got \[\(16, 2\)\]"),
        record(pipe, [AttentionWeights(pixels=[(16, 2)])]),
    ):
        sample()


def test_a_video_of_one_frame_is_read_as_others_are():
    entry = ZOO["wan"]
    entry = replace(entry, call={**entry.call, "num_frames": 1}, grid=(1, *entry.grid[1:]))
    pipe = entry.make()
    with record(
        pipe, [AttentionWeights(layers=entry.attention, relation="image_to_text", queries="all")]
    ) as recording:
        run(pipe, entry)
    weights = recording.profile[f"attention_weights_image_to_text/{entry.attention}"].isel(step=0, sample=0)
    assert [weights.sizes[dim] for dim in ("frame", "height", "width")] == [1, *entry.grid[1:]]
    (query, key, mask, scale), *_ = spied(pipe, entry).attentions[0][entry.attention]  # of the branch with the prompt
    scores = (query.float() * (scale or query.shape[-1] ** -0.5)) @ key.float().mT
    expected = scores.softmax(dim=-1)[0].unflatten(1, entry.grid)
    got = weights.sel(branch="cond").transpose("head", "frame", "height", "width", "token")
    np.testing.assert_allclose(got.values, expected.detach().numpy(), atol=1e-6)


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_every_selected_step_has_its_own_weights_in_every_row(guidance, images):
    pipe, sample = make("cross")
    path, by_step = CASES["cross"], []
    module, store = dict(pipe.unet.named_modules())[path], {}
    projections(module, store)
    module.register_forward_hook(lambda *call: by_step.append(weights_by_hand(module, store)))
    weights = AttentionWeights(layers=path, queries="all", steps=[0, 1, 3])
    with record(pipe, [weights]) as run:
        sample(prompt=["a red fox", "a cat"][:images], guidance_scale=guidance)
    array = run.profile[f"attention_weights/{path}"]
    branches = 1 if guidance == 1 else 2
    expected = torch.stack([by_step[i] for i in (0, 1, 3)]).unflatten(1, (branches, images)).transpose(1, 2)
    got = array.values if branches > 1 else array.values[:, :, None]
    np.testing.assert_allclose(got.reshape(expected.shape), expected, rtol=0, atol=2e-7)


def test_a_layer_that_runs_twice_has_the_weights_of_both_runs():
    pipe, sample = make("cross")
    path, runs = CASES["cross"], []
    module, store = dict(pipe.unet.named_modules())[path], {}
    pipe.unet.up_blocks[0].attentions[0].transformer_blocks[0].attn2 = module
    projections(module, store)
    module.register_forward_hook(lambda *call: runs.append(weights_by_hand(module, store)))
    with record(pipe, [AttentionWeights(layers=path, queries="all")]) as run:
        sample(prompt="a red fox", guidance_scale=1.0, num_inference_steps=3)
    for i, name in enumerate((path, f"{path}@2")):
        expected = torch.stack(runs[i::2])
        got = run.profile[f"attention_weights/{name}"].values.reshape(expected.shape)
        np.testing.assert_allclose(got, expected, rtol=0, atol=2e-7)
