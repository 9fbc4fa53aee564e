"""How each spec is tried with a pipeline of the zoo, and judged by the oracles."""

from dataclasses import replace
from functools import cached_property

import numpy as np
import torch

from diffusers_xai import (
    Activations,
    AttentionOutputs,
    AttentionWeights,
    ChannelAblation,
    DecodedImages,
    GradientAttention,
    GradientEnergy,
    GradientMaps,
    GradientVolume,
    LabelSwitch,
    LayerEdit,
    Patch,
    PromptSwitch,
    Samples,
    WordMaps,
    record,
)
from tests.zoo import oracles
from tests.zoo.entry import Entry
from tests.zoo.running import differentiated, ended_with, run, spied


# Of the largest value: in single precision EDM's ε is a difference of nearly equal numbers, 3e-4 were seen.
_GRADIENT = 1e-3


class Wrong(Exception):
    """What was recorded, or the result, is not what it has to be."""


class Case:
    """A pipeline of the zoo and what plain hooks see of its run."""

    def __init__(self, entry: Entry):
        self.entry = entry
        self.pipe = entry.make()
        self.steps = 0  # of the latest run
        self._gradients = {}

    @cached_property
    def seen(self):
        """The run without recording."""
        return spied(self.pipe, self.entry, after_step=self._differentiate)

    @cached_property
    def samples(self):
        """Number of images."""
        return oracles.samples_of(self.seen, self.entry)

    @cached_property
    def pixel(self):
        """A position of the sample."""
        return oracles.pixel_of(self.seen, self.entry)

    @cached_property
    def graph(self):
        """The last step with a graph."""
        return differentiated(self.pipe, self.entry, self.last)

    @property
    def last(self):
        """Index of the last step."""
        return len(self.seen.states) - 1

    @property
    def gradient_of_noise(self):
        """What autograd gives for the noise of the last step."""
        return self._gradients[self.last]

    def _differentiate(self, seen):
        """In the run itself: some pipelines put their attention processors back at its end."""
        step = len(seen.states) - 1
        if step > 0 and self.entry.predicts is not None:
            self._gradients[step] = oracles.gradient_of_noise(self.pipe, self.entry, seen, step)

    def record(self, *specs):
        """The profile of a run that must give the result of the run without recording, bit for bit."""
        self.steps = 0
        with record(self.pipe, list(specs)) as recording:
            result = run(self.pipe, self.entry)
        expect(np.array_equal(result, self.seen.result), "the result is another one with recording")
        expect(len(recording.profile) > 0, "nothing was recorded")
        return recording.profile

    def change(self, *edits):
        """The result of a run that is changed."""
        self.steps = 0
        with record(self.pipe, edits=list(edits)):
            return run(self.pipe, self.entry)

    def changed_by_hand(self, change):
        """The result of a run in which `change(image, step, call)` writes into what the layer puts out."""

        def edit(output, step, call):
            return oracles.edited(output, self.entry, self.samples, lambda image: change(image, step, call))

        return spied(self.pipe, self.entry, edit).result


def expect(is_true, what):
    if not is_true:
        raise Wrong(what)


def expect_close(got, expected, what, bound=1e-5):
    """Refuses values that are further from the expected ones than `bound` of their largest."""
    expected = np.asarray(expected)
    expect(np.shape(got) == expected.shape, f"{what}: expected {expected.shape}, got {np.shape(got)}")
    scale = np.nanmax(np.abs(expected))
    expect(scale > 0, f"{what}: nothing to compare")
    worst = np.max(np.abs(got - expected)) / scale
    expect(worst <= bound, f"{what}: off by {worst:.1e} of the largest")


def samples(case):
    profile = case.record(Samples(x0=case.entry.predicts is not None, measures=()))
    expect(np.allclose(profile["samples"].timestep, case.seen.timesteps), "timesteps")
    for values, state in zip(profile["samples"].values, case.seen.states, strict=True):
        expect(np.array_equal(values, oracles.state(state, case.entry)[: case.samples]), "samples")
    for step in range(case.last + 1):
        expected = oracles.clean(case.seen, case.entry, step)
        if expected is not None:
            expect_close(profile["x0"].sel(step=step).values, expected, "clean images")


def activations(case):
    entry = case.entry
    array = case.record(Activations(layers=entry.layer))[f"activations/{entry.layer}"]
    expect(len(array.step) > 0, "no step")
    if len(entry.branches) > 1:
        expect(tuple(array.branch.values) == entry.branches, f"branches {tuple(array.branch.values)}")
    for step in array.step.values:
        expected = oracles.of_layer(case.seen.outputs[step], case.seen.calls[step], entry, case.samples)
        expect(np.array_equal(array.sel(step=step), expected), "activations")


def attention_outputs(case):
    got = case.record(AttentionOutputs(steps=0))["attention_outputs"].isel(step=0)
    expect_close(got.values, oracles.attention_outputs(case.seen, case.entry, 0), "attention outputs")


def attention_weights(case):
    entry, step = case.entry, case.last
    profile = case.record(AttentionWeights(steps=step))
    expect(all(array.min() >= 0 and array.max() <= 1 for array in profile.values()), "weights")
    if entry.attention is not None:
        got = profile[f"attention_weights/{entry.attention}"].isel(step=0).values
        expected = oracles.attention_weights(case.seen, entry, step)
        expect_close(got.reshape(expected.shape), expected, "weights", 1e-6)


def word_maps(case):
    entry = case.entry
    profile = case.record(WordMaps(**entry.asked, steps=case.last))
    maps = profile["word_maps"].isel(step=0)
    expect(maps.token.values.tolist() == entry.asked["words"], "words")
    for word in entry.asked["words"]:
        expected = oracles.word_map(case.seen, entry, case.last, entry.words[word])
        expect_close(maps.sel(token=word).values, expected, f"map of {word}")


def volume_of_noise(case):
    spec = GradientVolume(pixels=[case.pixel], of="noise", steps=-1, channels="separate")
    got = case.record(spec)["gradient_volume"].isel(step=0, pixel=0)
    expect_close(got.values, case.gradient_of_noise, "gradient of the noise", _GRADIENT)


def volume_of_step(case):
    pixels = [case.pixel, (0,) * len(case.pixel)]
    spec = GradientVolume(pixels=pixels, steps=-1, channels="separate", chunk_size=2)
    got = case.record(spec)["gradient_volume"].isel(step=0)
    for i, pixel in enumerate(pixels):
        expected = oracles.gradient_of_step(case.graph, case.entry, case.samples, pixel)
        expect_close(got.isel(pixel=i).values, expected, "gradient of the step", _GRADIENT)


def gradient_energy(case):
    # Of a single pixel the energy is the gradient's absolute value, whatever the random signs are.
    profile = case.record(GradientEnergy(pixels=[case.pixel], of="noise", probes=2, steps=-1))
    expected = case.gradient_of_noise.sum(dim=2 if len(case.entry.branches) > 1 else 1).abs()
    expect_close(profile["gradient_energy"].isel(step=0).values, expected, "gradient energy", _GRADIENT)


def gradient_maps(case):
    got = case.record(GradientMaps(case.entry.layer, steps=-1))[f"gradient_maps/{case.entry.layer}"]
    expected = oracles.gradient_maps(case.graph, case.entry, case.seen, case.last)
    expect_close(got.isel(step=0).values, expected, "gradient maps", _GRADIENT)


def gradient_attention(case):
    spec = GradientAttention(case.entry.layer, of="step", steps=-1)
    got = case.record(spec)[f"gradient_attention/{case.entry.layer}"].isel(step=0)
    expected = oracles.gradient_attention(case.graph, case.entry, case.seen, case.last)
    expect_close(got.values, expected, "gradient attention", _GRADIENT)


def decoded_images(case):
    profile = case.record(DecodedImages(steps=-1))
    entry = replace(case.entry, output="np")
    if "mask_image" in entry.call:  # inpainting blends the last state with the picture outside of the hole
        entry = with_call(entry, mask_image=torch.ones_like(entry.call["mask_image"]))
    clean = case.seen.clean[case.last]
    got, state = (
        (profile["final_image"], case.seen.results[case.last]) if clean is None else (profile["images"], clean)
    )
    expect_pictures(got, ended_with(case.pipe, entry, state, case.last))


def has_pictures(case):
    """Whether the samples are colours, or there is an autoencoder that makes some of them."""
    is_decoded = any(getattr(case.pipe, name, None) is not None for name in ("vae", "movq", "vqvae"))
    state = oracles.state(case.seen.states[0], case.entry)
    return state.ndim > 3 and (is_decoded or state.shape[1] == 3)


def expect_pictures(got, made):
    names = ("sample", "frame", "height", "width", "channel")
    got = got.squeeze("step") if "step" in got.dims else got
    got = got.transpose(*[name for name in names if name in got.dims]).values / 255
    if made.shape[-1] == 1:  # a depth, the mean of colours before they are clipped
        is_clipped = ((got == 0) | (got == 1)).any(axis=-1, keepdims=True)
        expect(not is_clipped.all(), "pictures that are clipped everywhere")
        got = np.where(is_clipped, made, got.mean(axis=-1, keepdims=True))
    # Bytes are rounded, and one picture at a time is computed in another order than several.
    expect(got.shape == made.shape, f"pictures: expected {made.shape}, got {got.shape}")
    expect(made.std() > 0.003, "pictures that show nothing")
    expect(np.abs(got - made).max() <= 1.01 / 510, "pictures")


def channel_ablation(case):
    def without_channel_1(image, step, call):
        image[:, 1] = 0

    got = case.change(ChannelAblation(case.entry.layer, channels=1))
    expect(not np.array_equal(got, case.seen.result), "unchanged")
    expect_close(got, case.changed_by_hand(without_channel_1), "the result")


def layer_edit(case):
    def turned(output):
        changed = output.clone()
        changed[:, 1] *= -1
        return changed

    def turn(image, step, call):
        image[:, 1] *= -1

    got = case.change(LayerEdit(case.entry.layer, turned))
    expect(not np.array_equal(got, case.seen.result), "unchanged")
    expect_close(got, case.changed_by_hand(turn), "the result")


def patch(case):
    entry = case.entry
    with record(case.pipe, [Activations(layers=entry.layer)]) as recording:
        run(case.pipe, entry, seed=1)
    donor = spied(case.pipe, entry, seed=1)

    def overwrite(image, step, call):
        rows = oracles.rows_of(donor.calls[step][call])
        image.copy_(oracles.placed(oracles.image_of(donor.outputs[step][call], entry), entry, rows))

    steps = recording.profile[f"activations/{entry.layer}"].step.values.tolist()
    got = case.change(Patch(entry.layer, recording.profile, steps=steps))
    expect(not np.array_equal(got, case.seen.result), "unchanged")
    expect_close(got, case.changed_by_hand(overwrite), "the result")


def label_switch(case):
    labels = case.entry.call["class_labels"]
    got = case.change(LabelSwitch(to=5, from_step=0))
    expect(not np.array_equal(got, case.seen.result), "unchanged")
    other = with_call(case.entry, class_labels=[5] * len(labels))
    expect(np.array_equal(got, run(case.pipe, other)), "not the other label's run")


def prompt_switch(case):
    prompt = case.entry.call["prompt"]
    other = "b dog" if isinstance(prompt, str) else ["b dog"] * len(prompt)
    got = case.change(PromptSwitch(to=other, from_step=0))
    expect(not np.array_equal(got, case.seen.result), "unchanged")
    expect(np.array_equal(got, run(case.pipe, with_call(case.entry, prompt=other))), "not the other prompt's run")


def with_call(entry, **arguments):
    return replace(entry, call={**entry.call, **arguments})
