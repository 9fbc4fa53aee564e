"""Every family of the zoo against plain hooks, scores by hand and autograd."""

import functools

import numpy as np
import pytest
import torch

from diffusers_xai import (
    Activations,
    AttentionOutputs,
    AttentionWeights,
    ChannelAblation,
    GradientMaps,
    GradientVolume,
    Samples,
    WordMaps,
    record,
)
from tests.zoo.pipelines import ZOO
from tests.zoo.running import run, spied


each_family = pytest.mark.parametrize("name", ZOO)


@functools.cache
def pipeline(name):
    return ZOO[name].make()


def first(output, position):
    """The tensor of a layer's output that is the image's."""
    return output if isinstance(output, torch.Tensor) else list(output)[position]


def on_the_image(raw, entry, rows):
    """A layer's raw output as (row, channel, [frame,] height, width), worked out by hand from the entry's facts."""
    if entry.grid is None:
        return raw
    if raw.ndim == 4:  # frames are rows
        return raw.unflatten(0, (rows, -1)).transpose(1, 2)
    count = int(np.prod(entry.grid))
    starts = {"z-image": 0, "lumina2": raw.shape[1] - count}
    start = starts.get(name_of(entry), 0)
    return raw[:, start : start + count].transpose(1, 2).unflatten(2, entry.grid)


def name_of(entry):
    return next(name for name, other in ZOO.items() if other is entry)


def by_branch(parts, entry, samples):
    """Rows of one or several calls -> (sample, branch, …)."""
    rows = torch.cat(list(parts))
    return torch.stack(rows.split(samples), dim=1)[:, :, ...] if len(entry.branches) > 1 else rows


@each_family
def test_recording_changes_nothing_and_gives_what_hooks_give(name):
    entry, pipe = ZOO[name], pipeline(name)
    seen = spied(pipe, entry, entry.layer)
    specs = [Samples(measures=()) if name != "dance-diffusion" else Samples(x0=False), Activations(layers=entry.layer)]
    with record(pipe, specs) as recording:
        result = run(pipe, entry)
    assert np.array_equal(result, seen.result)
    assert "step" not in vars(pipe.scheduler)
    profile = recording.profile
    doubled = name == "dit"
    samples = seen.states[0].shape[0] // (2 if doubled else 1)
    assert profile["samples"].sizes["sample"] == samples
    np.testing.assert_allclose(profile["samples"].timestep, seen.timesteps)
    for step, state in enumerate(seen.states):
        got = profile["samples"].sel(step=step).values
        expected = state[:samples]
        if expected.ndim == 3 and got.ndim > 3 or name == "cogvideox":  # packed tokens
            expected = expected.transpose(1, 2)
        assert np.array_equal(got.reshape(expected.shape), expected.numpy())
    array = profile[f"activations/{entry.layer}"]
    if len(entry.branches) > 1:
        assert array.branch.values.tolist() == list(entry.branches)
    for step in array.step.values:
        rows = [call[1][0] if call[1] else next(iter(call[2].values())) for call in seen.calls[step]]
        raw = [first(output, entry.position) for output in seen.outputs[step]]
        images = [on_the_image(part, entry, len(row)) for part, row in zip(raw, rows, strict=True)]
        expected = by_branch(images, entry, samples)
        assert np.array_equal(array.sel(step=step).values, expected.numpy())


@pytest.mark.parametrize("name", [name for name in ZOO if ZOO[name].attention])
def test_attention_weights_are_the_scores_by_hand(name):
    entry, pipe = ZOO[name], pipeline(name)
    seen = spied(pipe, entry, attention=entry.attention)
    with record(pipe, [AttentionWeights(layers=entry.attention, steps=1)]) as recording:
        assert np.array_equal(run(pipe, entry), seen.result)
    array = recording.profile[f"attention_weights/{entry.attention}"]
    parts = []
    for query, key, mask, scale in seen.attentions[1]:
        scores = query.double() @ key.double().transpose(-1, -2) * (scale or query.shape[-1] ** -0.5)
        if mask is not None:
            bias = torch.zeros(mask.shape, dtype=torch.float64)
            scores = scores + (bias.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else mask)
        weights = scores.softmax(dim=-1)
        parts.append(
            weights[..., queries_of(entry, name, weights), :][..., keys_of(entry, name, weights)].mean(dim=-2)
        )
    samples = seen.states[0].shape[0] // (2 if name == "dit" else 1)
    expected = by_branch(parts, entry, samples)
    got = array.isel(step=0).values
    np.testing.assert_allclose(got.reshape(expected.shape), expected.numpy(), atol=1e-6)


def queries_of(entry, name, weights):
    """By hand: where the image's queries stand."""
    total, count = weights.shape[-2], int(np.prod(entry.grid)) if entry.grid else weights.shape[-2]
    if total == count:
        return slice(0, total)
    image_first = name in ("sd3", "sd3.5", "z-image", "hunyuan-video", "mochi")
    return slice(0, count) if image_first else slice(total - count, total)


def keys_of(entry, name, weights):
    """By hand: where the text's keys stand; all of them in cross- and self-attention."""
    queries, keys = weights.shape[-2:]
    count = int(np.prod(entry.grid)) if entry.grid else None
    if name == "stable-cascade, prior":
        return slice(queries, keys)
    if name in ("kandinsky-2.2", "deepfloyd-if"):
        return slice(0, keys - queries)
    if queries == keys and count is not None and keys > count:
        if name in ("sd3", "hunyuan-video", "mochi"):
            return slice(count, keys)
        if name == "z-image":
            return slice(32, 32 + 7)  # behind the image and its padding; its own padding is left out
        return slice(8 if name == "auraflow" else 0, keys - count)
    return slice(0, keys)


@each_family
def test_an_ablation_equals_an_edit_by_hand(name):
    entry, pipe = ZOO[name], pipeline(name)

    def edit(output):
        tensor = first(output, entry.position)
        changed = tensor.clone()
        if tensor.ndim >= 4 or entry.grid is None:
            changed[:, 1] = 0
        else:
            count = int(np.prod(entry.grid))
            start = tensor.shape[1] - count if name == "lumina2" else 0
            changed[:, start : start + count, 1] = 0
        if isinstance(output, torch.Tensor):
            return changed
        parts = list(output)
        parts[entry.position] = changed
        # A down block's last skip is its hidden state.
        parts = [
            tuple(changed if part is tensor else part for part in item) if isinstance(item, tuple) else item
            for item in parts
        ]
        return type(output)(parts)

    expected = spied(pipe, entry, entry.layer, edit=edit).result
    with record(pipe, edits=[ChannelAblation(entry.layer, channels=1)]):
        got = run(pipe, entry)
    np.testing.assert_allclose(got, expected, atol=1e-5)
    assert not np.array_equal(got, run(pipe, entry))


# By hand, from the pipelines' sources: what the network predicts, and with which sign it goes into the scheduler.
PREDICTIONS = {
    "stable-diffusion": ("epsilon", 1),
    "stable-diffusion, inpainting": ("epsilon", 1),
    "stable-diffusion, upscaler": ("v", 1),
    "dit": ("epsilon", 1),
    "pixart-alpha": ("epsilon", 1),
    "sd3": ("flow", 1),
    "flux, true guidance": ("flow", 1),
    "qwen-image": ("flow", 1),
    "lumina2": ("flow", -1),
    "z-image": ("flow", -1),
    "cogvideox": ("epsilon", 1),
    "wan": ("flow", 1),
    "ltx-video": ("flow", 1),
}


def noise(kind, sign, x, prediction, alpha_bar, sigma):
    """ε by its definition."""
    if kind == "epsilon":
        return prediction
    if kind == "v":
        return alpha_bar**0.5 * prediction + (1 - alpha_bar) ** 0.5 * x
    return x + (1 - sigma) * sign * prediction


@pytest.mark.parametrize("name", PREDICTIONS)
def test_gradients_of_the_noise_are_those_of_autograd(name):
    entry, pipe, (kind, sign) = ZOO[name], pipeline(name), PREDICTIONS[name]
    pixel = (1,) * len(positions(name))
    seen = spied(pipe, entry)
    with record(pipe, [GradientVolume(pixels=[pixel], of="noise", steps=1, channels="separate")]) as recording:
        assert np.array_equal(run(pipe, entry), seen.result)
    volume = recording.profile["gradient_volume"].isel(step=0, pixel=0)
    state, scheduler = seen.states[1], pipe.scheduler
    alpha_bar = float(scheduler.alphas_cumprod[int(seen.timesteps[1])]) if kind != "flow" else None
    sigma = float(scheduler.sigmas[1]) if kind == "flow" else None
    channels, parts = state.shape[1], []
    for module, args, kwargs, _ in seen.calls[1]:
        given = args[0] if args else next(iter(kwargs.values()))
        sample = torch.stack(list(given)).squeeze(2) if isinstance(given, list) else given
        leaf = (sample[:, :channels] if state.ndim == 4 else sample).clone().requires_grad_()
        full = torch.cat([leaf, sample[:, channels:]], dim=1) if leaf.shape != sample.shape else leaf
        full = list(full.unsqueeze(2)) if isinstance(given, list) else full
        key = None if args else next(iter(kwargs))
        output = module(full, *args[1:], **kwargs) if args else module(**{**kwargs, key: full})
        output = output[0] if isinstance(output, tuple) else output.sample
        output = torch.stack(output).squeeze(2) if isinstance(output, list) else output
        output = output[:, :channels] if state.ndim == 4 else output
        target = noise(kind, sign, leaf, output, alpha_bar, sigma)
        if target.ndim == 3:
            target = target.transpose(1, 2).unflatten(2, entry.grid)
        elif name == "cogvideox":
            target = target.transpose(1, 2)
        (gradient,) = torch.autograd.grad(target[(slice(None), slice(None), *pixel)].sum(), leaf)
        if gradient.ndim == 3:
            gradient = gradient.transpose(1, 2).unflatten(2, entry.grid)
        parts.append(gradient.transpose(1, 2) if name == "cogvideox" else gradient)
    samples = state.shape[0] // (2 if name == "dit" else 1)
    expected = by_branch(parts, entry, samples).numpy()
    scale = np.abs(expected).max()
    np.testing.assert_allclose(volume.values / scale, expected / scale, atol=1e-5)


@functools.cache
def positions(name):
    entry, pipe = ZOO[name], pipeline(name)
    with record(pipe, [Samples(x0=False, measures=(), steps=0)]) as recording:
        run(pipe, entry)
    return recording.profile["samples"].shape[3:]


STEPS = [name for name in ZOO if name not in ("dance-diffusion", "sd3.5", "pixart-sigma", "dit, unguided")]


@pytest.mark.parametrize("name", STEPS)
def test_gradients_of_the_step_exist_in_every_family_and_leave_the_result_as_it_is(name):
    entry, pipe = ZOO[name], pipeline(name)
    spec = GradientVolume(pixels=[(1,) * len(positions(name))], steps=-1, channels="separate")
    with record(pipe, [spec, GradientMaps(layers=entry.layer, of="noise", steps=-1)]) as recording:
        result = run(pipe, entry)
    assert np.array_equal(result, run(pipe, entry))
    for array in ("gradient_volume", f"gradient_maps/{entry.layer}"):
        values = recording.profile[array].values
        assert np.isfinite(values).all()
        assert np.abs(values).max() > 0


@pytest.mark.parametrize("name", [name for name in ZOO if ZOO[name].words])
def test_word_maps_are_means_over_heads_and_layers(name):
    entry, pipe = ZOO[name], pipeline(name)
    spec = AttentionWeights(relation="image_to_text", queries="all", steps=1)
    with record(pipe, [WordMaps(list(entry.words), steps=1), spec]) as recording:
        run(pipe, entry)
    profile = recording.profile
    maps = profile["word_maps"].isel(step=0)
    assert maps.token.values.tolist() == list(entry.words)
    total = 0
    layers = [array for key, array in profile.items() if key.startswith("attention_weights_image_to_text/")]
    for array in layers:
        array = array.isel(step=0).sel(branch="cond") if "branch" in array.dims else array.isel(step=0)
        strings = array.coords["token"].values if "token" in array.coords else array.coords["text"].values[0]
        places = [[i for i, s in enumerate(strings) if s.strip("▁").removesuffix("</w>")] for _ in entry.words]
        found = []
        for word, every in zip(entry.words, places, strict=True):
            plain = [str(s).strip("▁").removesuffix("</w>") for s in strings]
            start = next(i for i in every if "".join(plain[i : i + len(word)]) == word or plain[i] == word)
            width = 1 if plain[start] == word else len(word)
            found.append(array.values[..., start : start + width].mean(axis=(1, -1)))
        stacked = torch.from_numpy(np.stack(found, axis=1))
        total = total + torch.nn.functional.interpolate(
            stacked, size=maps.shape[1:-1], mode="bilinear", align_corners=False
        )
    expected = (total / len(layers)).movedim(1, -1).numpy()
    np.testing.assert_allclose(maps.values[0], expected[0], atol=1e-5)


def test_attention_outputs_of_a_joint_transformer_are_those_of_the_image():
    entry, pipe = ZOO["sd3"], pipeline("sd3")
    outputs = []
    handles = [
        block.attn.register_forward_hook(lambda m, a, out: outputs.append(out[0]))
        for block in pipe.transformer.transformer_blocks
    ]
    with record(pipe, [AttentionOutputs(steps=0)]) as recording:
        run(pipe, entry)
    for handle in handles:
        handle.remove()
    total = 0
    for out in outputs[:2]:
        grid = out.transpose(1, 2).unflatten(2, (4, 4)).sum(dim=1, keepdim=True)
        total = total + torch.nn.functional.interpolate(grid, (8, 8), mode="bilinear", align_corners=False)[:, 0]
    got = recording.profile["attention_outputs"].isel(step=0, sample=0).values
    np.testing.assert_allclose(got, total.numpy(), rtol=1e-4, atol=1e-5)
