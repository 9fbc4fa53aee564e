"""Recording in a modular pipeline: Flux's own blocks around a tiny transformer."""

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel, SequentialPipelineBlocks
from diffusers.modular_pipelines.flux.before_denoise import (
    FluxPrepareLatentsStep,
    FluxRoPEInputsStep,
    FluxSetTimestepsStep,
)
from diffusers.modular_pipelines.flux.denoise import FluxDenoiseStep
from diffusers.modular_pipelines.flux.inputs import FluxTextInputStep

from diffusers_xai import Activations, RecordProfile, Samples


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
