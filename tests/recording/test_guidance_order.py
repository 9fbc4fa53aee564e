"""The order of the guidance branches is what the pipeline makes of it in its first step, whatever was told of it."""

from dataclasses import replace
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from diffusers.guiders import SkipLayerGuidance
from diffusers.hooks import LayerSkipConfig

from diffusers_xai import Activations, ChannelAblation, GradientMaps, Samples, record, register_layout
from diffusers_xai.denoisers import Layout, layouts
from tests.zoo import judges
from tests.zoo.judges import Case, Wrong
from tests.zoo.parts import embeddings
from tests.zoo.pipelines import ZOO
from tests.zoo.running import run


class Labelled(torch.nn.Module):
    """Takes a label for every row."""

    def __init__(self):
        super().__init__()
        self.body = torch.nn.Conv2d(3, 8, 3, padding=1)
        self.label = torch.nn.Embedding(2, 8)
        self.out = torch.nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x, t, labels):
        return self.out((self.body(x) + self.label(labels)[:, :, None, None]).tanh())


def pipeline(cond_first, steps, in_place=False):
    """A loop of one's own with classifier-free guidance, and the labels' part of what its layers gave, a step each."""
    torch.manual_seed(0)
    network, scheduler = Labelled(), DDIMScheduler(clip_sample=False)
    own = SimpleNamespace(network=network, scheduler=scheduler, do_classifier_free_guidance=True)
    cond, uncond, seen = torch.ones(2, dtype=torch.long), torch.zeros(2, dtype=torch.long), []
    network.out.register_forward_hook(lambda m, args, out: seen.append(out.detach().clone()))

    @torch.no_grad()
    def sample():
        scheduler.set_timesteps(steps)
        x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
        for t in scheduler.timesteps:
            labels = torch.cat([cond, uncond] if cond_first else [uncond, cond])
            halves = network(torch.cat([x, x]), t, labels).chunk(2)
            asked, free = halves if cond_first else reversed(halves)
            guided = free.lerp_(asked, 3.0) if in_place else free + 3.0 * (asked - free)
            x = scheduler.step(guided, t, x).prev_sample
        return x

    return own, sample, seen


@pytest.fixture
def told_uncond_first(monkeypatch):
    monkeypatch.setattr(layouts, "_LAYOUTS", dict(layouts._LAYOUTS))
    register_layout("Labelled", Layout(branches=("uncond", "cond")))


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("cond_first", [False, True])
@pytest.mark.parametrize(("told", "in_place"), [(False, False), (True, False), (True, True)])
def test_branches_have_their_names_from_the_first_step_on(request, told, in_place, cond_first, steps):
    if told:
        request.getfixturevalue("told_uncond_first")
    own, sample, seen = pipeline(cond_first, steps, in_place)
    with record(own, [Activations("out")]) as recording:
        sample()
    got = recording.profile["activations/out"]
    for step, rows in enumerate(seen):
        asked, free = rows.chunk(2) if cond_first else reversed(rows.chunk(2))
        assert np.array_equal(got.sel(step=step, branch="cond").values, asked.numpy())
        assert np.array_equal(got.sel(step=step, branch="uncond").values, free.numpy())


@pytest.mark.parametrize("calls", [1, 2])
@pytest.mark.parametrize(
    "combine",
    [
        lambda asked, free: (guided := free + 3 * (asked - free)) * asked.std() / guided.std(),
        lambda asked, free: (free + 3 * (asked - free)).clamp(-0.3, 0.3),
        lambda asked, free: asked.clone(),
    ],
)
def test_branches_whose_order_does_not_show_have_numbers(combine, calls):
    own, _, seen = pipeline(cond_first=True, steps=2)
    own.do_classifier_free_guidance = calls == 1  # nothing says that two calls guide
    network, scheduler, label = own.network, own.scheduler, torch.tensor([1, 0])
    scheduler.set_timesteps(2)
    x = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with record(own, [Activations("out")]) as recording, torch.no_grad():
        for t in scheduler.timesteps:
            xs = torch.cat([x] * 2).chunk(calls)
            outputs = [network(part, t, of_part) for part, of_part in zip(xs, label.chunk(calls), strict=True)]
            x = scheduler.step(combine(*torch.cat(outputs).chunk(2)), t, x).prev_sample
    got = recording.profile["activations/out"]
    assert got.branch.values.tolist() == ["branch_0", "branch_1"]
    assert np.array_equal(got.values, torch.cat(seen).unflatten(0, (2, 1, 2)).numpy())


def test_an_edit_of_one_branch_is_refused_where_the_order_is_not_known():
    own, sample, seen = pipeline(cond_first=True, steps=2)
    edit = ChannelAblation("body", 1, branch="cond")
    with pytest.raises(ValueError, match="register_layout"), record(own, edits=[edit]):
        sample()
    assert not seen


@pytest.mark.usefixtures("told_uncond_first")
def test_an_edit_of_one_branch_is_refused_where_the_order_is_not_what_was_told():
    edit = ChannelAblation("body", 1, branch="cond")
    own, sample, seen = pipeline(cond_first=True, steps=2)
    with pytest.raises(RuntimeError, match="combined them as"), record(own, edits=[edit]):
        sample()
    assert len(seen) == 1
    own, sample, _ = pipeline(cond_first=False, steps=2)
    plain = sample()
    with record(own, edits=[edit]):
        edited = sample()
    assert not torch.equal(edited, plain)


@pytest.mark.parametrize(
    ("name", "other", "calls"),
    [
        ("stable-diffusion, perturbed attention", "perturbed", 1),
        ("stable-diffusion, self-attention guidance", "degraded", 2),
    ],
)
def test_what_guides_beside_the_prompt_is_no_unconditional_branch(name, other, calls):
    entry = replace(ZOO[name], call={**ZOO[name].call, "guidance_scale": 1.0})
    pipe, seen = entry.make(), []
    pipe.unet.conv_out.register_forward_hook(lambda m, args, out: seen.append(out.clone()))
    with record(pipe, [Activations("conv_out")]) as recording:
        run(pipe, entry)
    got = recording.profile["activations/conv_out"]
    assert list(got.branch.values) == ["cond", other]
    assert len(seen) == calls * entry.steps
    rows = torch.cat(seen).unflatten(0, (entry.steps, 1, 2)).numpy()
    assert np.array_equal(got.values, rows)


@pytest.mark.parametrize("family", ["pixart-sigma", "sd3"])
def test_perturbed_attention_alone_has_branches_of_its_own(family):
    entry = ZOO[f"{family}, perturbed attention"]
    entry = replace(entry, call={**entry.call, "guidance_scale": 1.0}, branches=("cond", "perturbed"))
    case = Case(entry)
    for judged in (judges.activations, judges.channel_ablation, judges.gradient_maps):  # by hooks and autograd
        judged(case)
    with pytest.raises(Wrong):
        judges.activations(Case(replace(entry, branches=("uncond", "cond"))))


def test_gradients_know_what_is_made_of_a_prediction_in_place():
    own, _, _ = pipeline(cond_first=True, steps=1)
    own.do_classifier_free_guidance = False
    network, scheduler, label = own.network, own.scheduler, torch.ones(1, dtype=torch.long)
    scheduler.set_timesteps(1)
    x, t = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)), scheduler.timesteps[0]
    what = GradientMaps(layers="body", mask=np.ones((8, 8), dtype=bool), of="step")
    with record(own, [what]) as recording, torch.no_grad():
        scheduler.step(network(x, t, label).mul_(0.5), t, x)
    body = network.body(x).detach().requires_grad_()
    halved = 0.5 * network.out((body + network.label(label)[:, :, None, None]).tanh())
    (expected,) = torch.autograd.grad(scheduler.step(halved, t, x).prev_sample.sum(), body)
    got = recording.profile["gradient_maps/body"].values
    assert np.allclose(got.reshape(expected.shape), expected.numpy(), rtol=1e-5, atol=1e-7)


def test_views_of_an_image_are_refused_before_the_first_step():
    entry = ZOO["stable-diffusion"]
    parts = {name: part for name, part in entry.make().components.items() if name != "image_encoder"}
    pipe = diffusers.StableDiffusionPanoramaPipeline(**parts, requires_safety_checker=False)
    call = {"prompt": "a red fox", "num_inference_steps": 2, "output_type": "latent", "height": 512}
    with pytest.raises(RuntimeError, match="got 2 views of it"), record(pipe, [Samples(x0=False)]) as recording:
        pipe(**call, width=576)
    assert recording.run.step == 0


def test_a_guider_that_adds_branches_later_is_refused_in_the_first_step():
    torch.manual_seed(0)
    network = diffusers.HunyuanImageTransformer2DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=2, num_single_layers=1,
        num_refiner_layers=1, patch_size=(1, 1), text_embed_dim=32, text_embed_2_dim=32, rope_axes_dim=(8, 8),
    )  # fmt: skip
    skipped = LayerSkipConfig(indices=[0], fqn="transformer_blocks", skip_attention=True, skip_ff=True)
    guider = SkipLayerGuidance(
        guidance_scale=1.0, skip_layer_guidance_start=0.0, skip_layer_guidance_stop=1.0, skip_layer_config=skipped
    )
    parts = dict.fromkeys(("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    pipe = diffusers.HunyuanImagePipeline(
        **parts, transformer=network.eval(), scheduler=scheduler, guider=guider, ocr_guider=guider
    )
    names = ("prompt_embeds", "negative_prompt_embeds", "prompt_embeds_2", "negative_prompt_embeds_2")
    call = {name: embeddings(1, 6, 32, seed=i) for i, name in enumerate(names)}
    call |= {name.replace("embeds", "embeds_mask"): torch.ones(1, 6, dtype=torch.long) for name in names}
    call |= {"height": 256, "width": 256, "num_inference_steps": 2, "output_type": "latent"}
    expected = "as many guidance branches at the first step as later, got fewer of SkipLayerGuidance"
    with pytest.raises(RuntimeError, match=expected), record(pipe, [Activations("proj_out")]) as recording:
        pipe(**call, distilled_guidance_scale=None)
    assert recording.run.step == 0
    with record(pipe, [Samples(x0=False, measures=())]) as recording:
        pipe(**call, distilled_guidance_scale=None)
    assert recording.profile["samples"].sizes["step"] == 2
