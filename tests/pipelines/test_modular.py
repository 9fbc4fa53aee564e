"""Recording in a modular pipeline: Flux's own blocks around a tiny transformer, own blocks around a closed form."""

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxTransformer2DModel,
    ModelMixin,
    SequentialPipelineBlocks,
)
from diffusers.modular_pipelines import ComponentSpec, InputParam, ModularPipelineBlocks, OutputParam
from diffusers.modular_pipelines.flux.before_denoise import (
    FluxPrepareLatentsStep,
    FluxRoPEInputsStep,
    FluxSetTimestepsStep,
)
from diffusers.modular_pipelines.flux.denoise import FluxDenoiseStep
from diffusers.modular_pipelines.flux.inputs import FluxTextInputStep

from diffusers_xai import (
    Activations,
    AttentionOutputs,
    ChannelAblation,
    GradientVolume,
    RecordProfile,
    Samples,
    XAIPipeline,
    demo_checkpoint,
)
from tests.models.closed_forms import DENOISERS, SHAPE, noisy


@pytest.fixture(scope="module")
def transformer():
    torch.manual_seed(0)
    return FluxTransformer2DModel(
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=8,
        pooled_projection_dim=8,
        axes_dims_rope=(4, 4, 8),
    ).eval()


def pipeline(transformer, around=None):
    """A pipeline of Flux's blocks from the prompt's embedding on; `around` is recorded, the last block or all."""
    steps = {
        "input": FluxTextInputStep(),
        "latents": FluxPrepareLatentsStep(),
        "timesteps": FluxSetTimestepsStep(),
        "rope": FluxRoPEInputsStep(),
        "denoise": RecordProfile(FluxDenoiseStep()) if around == "denoise" else FluxDenoiseStep(),
    }
    blocks = SequentialPipelineBlocks.from_blocks_dict(steps)
    pipe = (RecordProfile(blocks) if around == "all" else blocks).init_pipeline()
    pipe.update_components(transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler())
    return pipe


def arguments(**more):
    generator = torch.Generator().manual_seed(3)
    embeds, pooled = torch.randn(1, 5, 8, generator=generator), torch.randn(1, 8, generator=generator)
    size = {"height": 128, "width": 128, "num_inference_steps": 3}
    return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled, "generator": generator, **size, **more}


def grids(tokens):
    """What the transformer sees, (step, sample, token, channel) -> (step, sample, channel, 8, 8), row by row."""
    return torch.stack(tokens).transpose(-1, -2).unflatten(-1, (8, 8)).numpy()


@pytest.mark.parametrize("around", ["denoise", "all"])
def test_what_is_recorded_is_what_the_blocks_compute(transformer, around):
    plain = pipeline(transformer)(**arguments()).get("latents")
    pipe, states, outputs = pipeline(transformer, around), [], []
    hooks = [
        transformer.register_forward_pre_hook(
            lambda m, a, k: states.append(k["hidden_states"].clone()), with_kwargs=True
        ),
        transformer.x_embedder.register_forward_hook(lambda m, a, output: outputs.append(output.clone())),
    ]
    state = pipe(**arguments(record=[Samples(), Activations(layers="x_embedder")]))
    for hook in hooks:
        hook.remove()
    assert torch.equal(state.get("latents"), plain)
    profile = state.get("profile")
    assert profile["samples"].sizes["step"] == 3
    np.testing.assert_array_equal(profile["samples"].values, grids(states))
    np.testing.assert_array_equal(profile["activations/x_embedder"].values, grids(outputs))
    np.testing.assert_array_equal(profile["final_sample"].values, grids([plain])[0])
    assert not transformer._forward_hooks
    assert not transformer._forward_pre_hooks


def test_without_a_request_nothing_is_recorded(transformer):
    pipe = pipeline(transformer, "denoise")
    state = pipe(**arguments())
    assert state.get("profile") is None
    assert torch.equal(state.get("latents"), pipeline(transformer)(**arguments()).get("latents"))
    with pytest.raises(ValueError, match="Expected `record` beside"):
        pipe(**arguments(max_bytes=1000))


def test_the_pipeline_says_what_it_takes_and_gives(transformer):
    blocks = pipeline(transformer, "denoise").blocks
    plain = pipeline(transformer).blocks
    assert set(blocks.input_names) == {*plain.input_names, "record", "edits", "profile_dir", "max_bytes"}
    assert set(blocks.intermediate_output_names) == {*plain.intermediate_output_names, "profile"}
    assert blocks.component_names == plain.component_names
    assert "FluxDenoiseStep" in blocks.sub_blocks["denoise"].description


def test_a_profile_goes_to_its_folder(transformer, tmp_path):
    state = pipeline(transformer, "denoise")(**arguments(record=[Samples()], profile_dir=tmp_path / "run"))
    assert (tmp_path / "run" / "profile.json").is_file()
    assert state.get("profile")["samples"].sizes["step"] == 3


class DenoiseStep(ModularPipelineBlocks):
    """A loop over the steps of a network with labels, as blocks of one's own are written."""

    model_name = "labelled"
    expected_components = [ComponentSpec("unet", ModelMixin), ComponentSpec("scheduler", DDIMScheduler)]
    inputs = [InputParam(name) for name in ("latents", "class_labels", "num_inference_steps")]
    intermediate_outputs = [OutputParam("latents")]

    @torch.no_grad()
    def __call__(self, components, state):
        block = self.get_block_state(state)
        components.scheduler.set_timesteps(block.num_inference_steps)
        for t in components.scheduler.timesteps:
            output = components.unet(block.latents, t, class_labels=block.class_labels).sample
            block.latents = components.scheduler.step(output, t, block.latents).prev_sample
        self.set_block_state(state, block)
        return components, state


def own_blocks(unet, scheduler):
    pipe = SequentialPipelineBlocks.from_blocks_dict({"denoise": RecordProfile(DenoiseStep())}).init_pipeline()
    pipe.update_components(unet=unet, scheduler=scheduler)
    return pipe


def ddim_by_hand(x, model, labels, steps):
    """The states that a denoiser is given, in the steps of Song et al., and the last sample."""
    scheduler = DDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(steps)
    alphas, states = scheduler.alphas_cumprod.double(), []
    for t in scheduler.timesteps.tolist():
        states.append(x)
        before = t - scheduler.config.num_train_timesteps // steps
        now, then = alphas[t], alphas[before] if before >= 0 else torch.ones_like(alphas[0])
        x0 = model.predict_x0(x, t, labels)
        x = then.sqrt() * x0 + (1 - then).sqrt() * (x - now.sqrt() * x0) / (1 - now).sqrt()
    return states, x


@pytest.mark.parametrize("name", ["gaussian", "mixture", "labelled images"])
def test_closed_forms_run_in_blocks_and_what_is_recorded_is_exact(name):
    model, mask = DENOISERS[name], np.eye(*SHAPE[1:], dtype=bool)
    labels = None if name == "gaussian" else torch.tensor([2, 0])
    noise = noisy()
    specs = [Samples(measures=()), GradientVolume(mask=mask, of="x0", steps=[1], dtype="float64")]
    given = {"latents": noise, "class_labels": labels, "num_inference_steps": 4}
    state = own_blocks(model, DDIMScheduler(clip_sample=False))(record=specs, **given)
    profile = state.get("profile")
    states, final = ddim_by_hand(noise, model, labels, 4)
    tolerance = {"rtol": 2e-4, "atol": 2e-5}  # the scheduler's coefficients are single
    np.testing.assert_allclose(profile["samples"].values, torch.stack(states), **tolerance)
    np.testing.assert_allclose(state.get("latents"), final, **tolerance)
    for step, t in enumerate(profile["samples"]["timestep"].values):
        x = torch.from_numpy(profile["samples"].values[step])
        np.testing.assert_allclose(profile["x0"].values[step], model.predict_x0(x, float(t), labels), **tolerance)
    x = torch.from_numpy(profile["samples"].values[1])
    jacobian = model.jacobian(x, float(profile["samples"]["timestep"][1]), labels)
    of_places = jacobian.unflatten(2, SHAPE).unflatten(1, SHAPE).sum(4).sum(1)[:, mask]  # colours summed
    np.testing.assert_allclose(profile["gradient_volume"].values[0], of_places, **tolerance)


def test_what_a_closed_form_cannot_be_asked_is_refused_by_name_in_blocks():
    given = {"latents": noisy(), "num_inference_steps": 4}
    other = own_blocks(DENOISERS["gaussian"], DDIMScheduler(beta_end=0.03))
    with pytest.raises(ValueError, match="the noise schedule that the denoiser was made for, got DDIMScheduler"):
        other(record=[Samples()], **given)
    pipe = own_blocks(DENOISERS["gaussian"], DDIMScheduler(clip_sample=False))
    with pytest.raises((ValueError, KeyError), match="GaussianDenoiser"):
        pipe(record=[AttentionOutputs()], **given)


def test_the_network_of_the_package_in_blocks_is_that_of_its_pipeline():
    """The same noise and label give the same run, an edit included."""
    pipe = XAIPipeline.from_pretrained(demo_checkpoint("drawn-32"))
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    noise = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(4))
    specs, edits = [Samples(), Activations(layers="downs.1.2.fn")], [ChannelAblation("mid_block1", channels=[0, 1])]
    expected = pipe(
        class_labels=[3],
        num_inference_steps=3,
        generator=torch.Generator().manual_seed(4),
        record=specs,
        edits=edits,
    ).profile
    blocks = own_blocks(pipe.unet, pipe.scheduler)
    given = {"latents": noise, "class_labels": torch.tensor([3]), "num_inference_steps": 3}
    profile = blocks(record=specs, edits=edits, **given).get("profile")
    assert set(profile) == set(expected)
    for name in ("samples", "x0", "activations/downs.1.2.fn", "final_sample"):
        np.testing.assert_array_equal(profile[name].values, expected[name].values)
    plain = blocks(record=specs, **given).get("profile")
    assert not np.array_equal(plain["final_sample"].values, expected["final_sample"].values)
