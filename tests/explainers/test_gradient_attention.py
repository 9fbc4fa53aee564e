"""Gradient attention against automatic differentiation by hand."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from diffusers_xai import GradientAttention, GradientVolume, XAIPipeline, record
from diffusers_xai.plots import gradient_attention
from diffusers_xai.report import write_report
from tests.tiny import convnext_unet, make_pipeline


LAYERS = {"down_blocks.0.resnets.1": (8, 16), "mid_block.attentions.0": (16, 8)}
MASK = np.zeros((16, 16), dtype=bool)
MASK[2:5, 8:12] = True


def judge(images):
    """Not linear, so that its gradient depends on x̂_0."""
    weights = torch.linspace(-1, 1, 16, dtype=images.dtype)
    return torch.tanh(images[:, 0] * weights).sum((1, 2)) + images[:, 1].square().mean((1, 2))


@pytest.fixture(scope="module")
def pipe():
    return XAIPipeline(convnext_unet().double(), DDIMScheduler(clip_sample=False))


def run(pipe, *specs, guidance_scale=1.0):
    noise = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    output = pipe(
        [5, 5], num_inference_steps=4, sample=noise, guidance_scale=guidance_scale, record=specs, output_type="pt"
    )
    return noise, output.profile


def by_hand(pipe, x, label, score):
    """ReLU Σ α_k A_k of every layer at the first step, one image at a time."""
    t = int(pipe.scheduler.timesteps[0])
    outputs, handles = {}, []
    for layer in LAYERS:
        module = pipe.unet.get_submodule(layer)
        handles.append(module.register_forward_hook(lambda m, i, out, layer=layer: outputs.setdefault(layer, out)))
    noise = pipe.unet(x[None].requires_grad_(), t, class_labels=torch.tensor([label])).sample
    for handle in handles:
        handle.remove()
    alpha = pipe.scheduler.alphas_cumprod[t]
    z = score((x - (1 - alpha).sqrt() * noise) / alpha.sqrt()).sum()
    gradients = torch.autograd.grad(z, [outputs[layer] for layer in LAYERS])
    return [
        (gradient.mean((2, 3), keepdim=True) * outputs[layer]).sum(1).clamp(min=0)[0].detach()
        for layer, gradient in zip(LAYERS, gradients, strict=True)
    ]


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
@pytest.mark.parametrize("by_judge", [True, False])
def test_it_equals_differentiation_by_hand(pipe, by_judge, guidance_scale):
    what = {"judge": judge} if by_judge else {"mask": MASK}
    score = judge if by_judge else lambda images: images[:, :, torch.from_numpy(MASK)].sum((1, 2))
    spec = GradientAttention(list(LAYERS), steps=[0, 2], **what)
    x, profile = run(pipe, spec, guidance_scale=guidance_scale)
    for k, layer in enumerate(LAYERS):
        array = profile[f"gradient_attention/{layer}"]
        guided = ("branch",) if guidance_scale != 1 else ()
        assert array.dims == ("step", "sample", *guided, "height", "width")
        for i in range(2):
            for label, branch in ((5, "cond"), (pipe.unet.config["null_class_label"], "uncond")):
                if not guided and branch == "uncond":
                    continue
                found = array.sel(step=0, sample=i, **({"branch": branch} if guided else {}))
                expected = by_hand(pipe, x[i], label, score)[k]
                assert expected.max() > 0
                np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6 * float(expected.max()))


def test_the_plan_knows_its_size_and_cost(pipe):
    spec = GradientAttention(list(LAYERS), judge=judge, steps=[0, 2])
    plan = pipe.plan([spec], num_inference_steps=4, batch_size=2)
    _, profile = run(pipe, spec)
    arrays = [profile[f"gradient_attention/{layer}"].values for layer in LAYERS]
    assert plan.nbytes == sum(array.nbytes for array in arrays)
    assert plan.backward_passes == 2  # one for both layers, at each step


def test_gradients_of_the_clean_image_are_those_of_the_noise(pipe):
    """x̂_0 = (x_t − √(1 − ᾱ) ε) / √ᾱ, in every gradient of the package."""
    volumes = [
        run(pipe, GradientVolume(pixels=[(3, 4)], of=of, steps=[0], dtype="float64"))[1] for of in ("x0", "noise")
    ]
    clean, noise = (profile["gradient_volume"] for profile in volumes)
    alpha = 1 / (1 + float(clean["sigma"][0]) ** 2)
    expected = -((1 - alpha) ** 0.5) * noise.values
    expected[..., 3, 4] += 3  # the colours are summed
    np.testing.assert_allclose(clean.values, expected / alpha**0.5, rtol=1e-6, atol=1e-9)


def test_it_is_drawn_and_told(pipe, tmp_path):
    _, profile = run(pipe, GradientAttention(list(LAYERS), judge=judge, every=1))
    figure = gradient_attention(profile, timesteps=[750])
    for trace, layer in zip(figure.data, LAYERS, strict=True):
        np.testing.assert_allclose(trace.z, profile[f"gradient_attention/{layer}"].values[0, 0], rtol=1e-6)
    write_report(profile, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "By which places the layers raise it" in page
    assert "a judge's score" in page
    assert profile.provenance["record"][0]["judge"] == "judge"
    with pytest.raises(ValueError, match="record `GradientAttention"):
        gradient_attention(run(pipe, GradientVolume(pixels=[(3, 4)], steps=[0]))[1])


def test_it_works_on_a_latent_pipeline_with_text():
    pipe, sample = make_pipeline("stable_diffusion")
    layers = ["mid_block.resnets.0", "mid_block.attentions.0.transformer_blocks.0.attn2"]
    with record(pipe, [GradientAttention(layers, judge=lambda x: x[:, 0].mean((1, 2)), steps=[1])]) as recording:
        sample(num_inference_steps=3)
    for layer in layers:
        array = recording.profile[f"gradient_attention/{layer}"]
        assert array.dims == ("step", "sample", "branch", "height", "width")
        assert float(array.max()) > 0
        assert float(array.min()) >= 0


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: GradientAttention("mid_block", judge=3), TypeError, "as a function of images, got int"),
        (lambda: GradientAttention("mid_block", judge=judge, mask=MASK), ValueError, "got both"),
        (lambda: GradientAttention("mid_block", judge=lambda x: x), ValueError, r"shape \(2,\), got \(2, 3, 16, 16\)"),
        (lambda: GradientAttention("mid_block", judge=lambda x: 1.0), ValueError, "got float"),
        (lambda: GradientAttention("time_mlp"), ValueError, "channels and places, got dims"),
    ],
)
def test_what_does_not_fit_is_refused(pipe, make, error, message):
    with pytest.raises(error, match=message):
        run(pipe, make())
