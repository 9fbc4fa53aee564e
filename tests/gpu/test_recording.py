"""What is recorded on a GPU: nothing else is sampled, and it is what the CPU records."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from diffusers_xai import (
    Activations,
    AttentionOutputs,
    AttentionWeights,
    ChannelAblation,
    DiffusionProfile,
    GradientEnergy,
    GradientMaps,
    GradientVolume,
    LabelSwitch,
    LayerEdit,
    Samples,
    WordMaps,
    XAIPipeline,
    record,
)
from diffusers_xai.recording.host_copies import HostCopies
from diffusers_xai.recording.replay import StepReplay
from tests.tiny import convnext_unet, make_pipeline, unet_2d


PIXELS = [(2, 3), (8, 8), (15, 0)]
MASK = np.zeros((16, 16), dtype=bool)
MASK[4:9, 6:12] = True
SPECS = [
    Samples(),
    Activations(layers=["down_blocks.*", "mid_block"]),
    AttentionOutputs(every=2),
    GradientVolume(pixels=PIXELS, steps=[1, 3]),
    GradientEnergy(mask=MASK, probes=8, steps=1),
    GradientMaps(layers="mid_block", mask=MASK, steps=[0, 3]),
]


def make(unet=None, scheduler=None):
    pipe = XAIPipeline(unet or convnext_unet(), scheduler or DDIMScheduler(clip_sample=False))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sample(pipe, **arguments):
    seeds = [torch.Generator().manual_seed(s) for s in range(2)]
    defaults = {"class_labels": [3, 12], "generator": seeds, "num_inference_steps": 4, "output_type": "np"}
    return pipe(**{**defaults, **arguments})


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_recording_everything_changes_no_bit_of_the_samples(device, guidance, dtype):
    if device.type == "cpu" and dtype == torch.float16:
        pytest.skip("half precision of convolutions is the GPU's")
    pipe = make().to(device, dtype)
    plain = sample(pipe, guidance_scale=guidance).images
    out = sample(pipe, guidance_scale=guidance, record=SPECS)
    assert np.array_equal(plain, out.images)
    for name, array in out.profile.items():
        assert np.isfinite(array.values.astype(float)).all(), name
    assert np.array_equal(plain, sample(pipe, guidance_scale=guidance).images)


@pytest.mark.parametrize("name", ["ddpm", "ddim", "stable_diffusion"])
def test_other_pipelines_are_recorded_without_a_change(device, name):
    pipe, run = make_pipeline(name)
    pipe.to(device)
    plain = run().images
    specs = [Samples(), Activations(layers="mid_block"), AttentionOutputs(), AttentionWeights(every=2)]
    with record(pipe, specs) as recording:
        recorded = run().images
    assert np.array_equal(plain, recorded)
    weights = [a for key, a in recording.profile.items() if key.startswith("attention_weights")]
    assert weights
    for array in weights:  # of all queries, on average
        np.testing.assert_allclose(
            array.sum([d for d in ("height", "width", "token") if d in array.dims]), 1, atol=2e-3
        )


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_arrays_are_those_of_the_cpu(device, exact_convolutions, guidance):
    pipe = make()
    expected = sample(pipe, guidance_scale=guidance, record=SPECS).profile
    got = sample(pipe.to(device), guidance_scale=guidance, record=SPECS).profile
    assert list(got) == list(expected)
    for name, array in expected.items():
        assert got[name].dims == array.dims
        scale = np.abs(array.values).max()
        np.testing.assert_allclose(got[name].values, array.values, rtol=0, atol=2e-4 * scale, err_msg=name)


@pytest.mark.parametrize("of", ["step", "noise"])
def test_a_chosen_chunk_gives_the_gradients_of_single_passes(device, exact_convolutions, of):
    pipe = make().to(device)
    spec = GradientVolume(pixels=PIXELS, of=of, steps=2, chunk_size=1)
    expected = sample(pipe, record=[spec]).profile["gradient_volume"].values
    spec = GradientVolume(pixels=PIXELS, of=of, steps=2, chunk_size="auto")
    got = sample(pipe, record=[spec]).profile["gradient_volume"].values
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_bfloat16_gradients_are_near_those_of_float32(device):
    spec = GradientVolume(pixels=PIXELS, steps=1)
    arrays = [
        sample(make().to(device, dtype), record=[spec]).profile["gradient_volume"].values.astype(float).ravel()
        for dtype in (torch.float32, torch.bfloat16)
    ]
    assert np.corrcoef(*arrays)[0, 1] > 0.99
    assert not np.array_equal(*arrays)


def test_edits_of_one_image_are_those_of_a_run_of_its_own(device, exact_convolutions):
    pipe = make(scheduler=DDPMScheduler()).to(device)
    edits = [
        [],
        [ChannelAblation("mid_block", [0, 5])],
        [LabelSwitch(to=9, from_step=2)],
        [ChannelAblation("conv_in", 1)],
    ]
    together = pipe(
        3, generator=torch.Generator().manual_seed(7), num_inference_steps=4, output_type="np", edits=edits
    ).images
    assert len(together) == len(edits)
    for image, own in zip(together, edits, strict=True):
        alone = pipe(
            3, generator=torch.Generator().manual_seed(7), num_inference_steps=4, output_type="np", edits=own
        ).images
        np.testing.assert_allclose(image, alone[0], atol=2e-5)
    assert all(not np.allclose(together[0], image, atol=1e-4) for image in together[1:])


def test_edits_are_those_of_the_cpu(device, exact_convolutions):
    pipe = make()
    edits = [
        ChannelAblation(layers="down_blocks.*", channels=[1, 2], replace="mean", mask=MASK),
        LabelSwitch(to=0, from_step=1),
    ]
    expected = sample(pipe, edits=edits).images
    np.testing.assert_allclose(sample(pipe.to(device), edits=edits).images, expected, atol=5e-4)


def test_words_and_layers_of_a_prompt_pipeline_are_those_of_the_cpu(device, exact_convolutions):
    pipe, run = make_pipeline("stable_diffusion")
    arguments = {"prompt": "a red fox", "guidance_scale": 3.0}
    edit = LayerEdit("mid_block", lambda output: 1.5 * output)

    def recorded():
        with record(pipe, [WordMaps(["fox"])], edits=[edit]) as recording:
            images = run(**arguments).images
        return images, recording.profile["word_maps"].values

    expected = recorded()
    pipe.to(device)
    for got, of_cpu in zip(recorded(), expected, strict=True):
        np.testing.assert_allclose(got, of_cpu, rtol=0, atol=1e-3)
    plain = run(**arguments).images
    with record(pipe, [WordMaps(["fox"])]):
        assert np.array_equal(run(**arguments).images, plain)
    assert not np.allclose(plain, expected[0], atol=1e-3)


def test_running_out_of_memory_halves_the_chunk(device, monkeypatch, exact_convolutions):
    pipe = make(unet_2d()).to(device)

    def volume(chunk_size):
        generator = torch.Generator().manual_seed(0)
        spec = GradientVolume(steps=1, chunk_size=chunk_size)
        return pipe(num_inference_steps=2, generator=generator, record=[spec]).profile["gradient_volume"].values

    expected = volume(4)
    chunks, graph = [], StepReplay.graph

    def watched(replay, copies=1, **arguments):
        chunks.append(copies)
        if device.type == "cpu" and copies > 64:
            raise torch.OutOfMemoryError("as a GPU would say")
        return graph(replay, copies=copies, **arguments)

    monkeypatch.setattr(StepReplay, "graph", watched)
    if device.type == "cuda":
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(device).total_memory
        limit = torch.cuda.memory_reserved(device) + 96 * 2**20
        torch.cuda.set_per_process_memory_fraction(limit / total, device)
    try:
        got = volume(256)
    finally:
        if device.type == "cuda":
            torch.cuda.set_per_process_memory_fraction(1.0, device)
    assert chunks[0] == 256
    assert chunks[-1] < 256
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("is_own", [False, True])
def test_a_copy_holds_what_there_was_whatever_happens_afterwards(device, is_own):
    copies = HostCopies()
    expected, got = [], []
    for number in range(8):
        values = torch.full((4, 1024, 1024), float(number), device=device)
        got.append(copies.copy(values, torch.float32, is_own=is_own))
        expected.append(float(number))
        if not is_own:
            values.fill_(-1)
        del values  # and its memory is taken again at once
        torch.full((4, 1024, 1024), -2.0, device=device)
    arrived = copies.arrived()
    if device.type == "cuda":
        assert all(copy.is_pinned() for copy in got)
        arrived()
    for copy, value in zip(got, expected, strict=True):
        assert copy.device.type == "cpu"
        assert (copy == value).all()


def test_what_is_streamed_to_disk_is_what_is_kept_in_memory(device, tmp_path):
    pipe = make().to(device)
    kept = sample(pipe, record=SPECS)
    streamed = sample(pipe, record=SPECS, profile_dir=tmp_path / "profile")
    assert np.array_equal(kept.images, streamed.images)
    on_disk = DiffusionProfile.from_pretrained(tmp_path / "profile")
    assert set(on_disk) == set(kept.profile)
    for name, array in kept.profile.items():
        if "gradient" in name or name == "label_sensitivity":  # backward passes of a GPU add up in any order
            scale = np.abs(array.values).max()
            np.testing.assert_allclose(on_disk[name].values, array.values, rtol=0, atol=1e-4 * scale, err_msg=name)
        else:
            assert np.array_equal(on_disk[name].values, array.values), name
