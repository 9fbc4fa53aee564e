"""What is called beside a run, to see which tokens are the sample's, costs the run nothing."""

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import SD3Transformer2DModel, hooks
from diffusers.hooks import HookRegistry
from diffusers.models.embeddings import PatchEmbed
from torch import nn

from diffusers_xai import Activations, AttentionWeights, record
from diffusers_xai.recording import origins
from diffusers_xai.taps.trace import trace
from tests.zoo.pipelines import ZOO
from tests.zoo.running import run


ENTRY = replace(ZOO["sd3"], steps=2)
LAYERS = ["pos_embed", "transformer_blocks.*", "transformer_blocks.*.ff", "transformer_blocks.*.ff_context"]


class Finite(SD3Transformer2DModel):
    """Refuses what is not finite."""

    def forward(self, hidden_states, *args, **kwargs):
        if not torch.isfinite(hidden_states).all():
            raise ValueError("expected finite latents")
        return super().forward(hidden_states, *args, **kwargs)


class Store:
    """What an attention processor may keep."""

    def __init__(self):
        self.seen = []


class Stateful(SD3Transformer2DModel):
    """Counts its calls and keeps what it has seen, on which its answer depends."""

    def forward(self, hidden_states, *args, **kwargs):
        self.calls = getattr(self, "calls", 0) + 1
        self.total.add_(hidden_states.mean())
        self.store.seen.append(hidden_states.std())
        self.by_name.setdefault("first", hidden_states)[0] *= 0.5
        noisy = hidden_states * (1 + 0.1 * self.total + self.store.seen[0] + self.calls) + self.by_name["first"]
        return super().forward(noisy, *args, **kwargs)


class Gated(PatchEmbed):
    """Can only be called behind a hook, as layers whose weights are spread over several devices."""

    is_open = False

    def forward(self, latent):
        if not self.is_open:
            raise RuntimeError("weights are elsewhere")
        self.is_open = False
        return super().forward(latent)


def made(kind=SD3Transformer2DModel):
    pipe = ENTRY.make()
    network = pipe.transformer
    if kind is Gated:
        network.pos_embed.__class__ = Gated
        network.pos_embed.register_forward_pre_hook(lambda module, args: setattr(module, "is_open", True))
        return pipe
    network.__class__ = kind
    if kind is Stateful:
        network.register_buffer("total", torch.zeros(()))
        network.store, network.by_name = Store(), {}
    return pipe


def recorded(kind, layers=LAYERS):
    pipe = made(kind)
    with record(pipe, [Activations(layers)]) as recording:
        result = run(pipe, ENTRY)
    assert np.array_equal(result, run(made(kind), ENTRY))
    return pipe.transformer, {name: (array.dims, array.values) for name, array in recording.profile.items()}


def test_a_network_that_refuses_nan_is_measured_with_two_samples():
    (_, plain), (_, finite) = (recorded(kind) for kind in (SD3Transformer2DModel, Finite))
    assert plain.keys() == finite.keys()
    assert {"height", "token"} <= {dim for dims, _ in plain.values() for dim in dims}
    for name, (dims, values) in plain.items():
        assert finite[name][0] == dims
        np.testing.assert_array_equal(finite[name][1], values)


def test_what_a_network_keeps_is_that_of_the_run_alone():
    network, _ = recorded(Stateful)
    alone = made(Stateful)
    run(alone, ENTRY)
    kept = alone.transformer
    assert network.calls == kept.calls == 2
    assert network.store.seen == kept.store.seen
    assert torch.equal(network.total, kept.total)
    assert torch.equal(network.by_name["first"], kept.by_name["first"])
    assert vars(network).keys() == vars(kept).keys()


def test_what_cannot_be_known_of_a_network_is_left_out_by_name(caplog):
    with caplog.at_level(logging.WARNING, "diffusers_xai"):
        _, gated = recorded(Gated)
    assert "SD3Transformer2DModel cannot be called beside the run (RuntimeError: weights are elsewhere)" in caplog.text
    _, plain = recorded(SD3Transformer2DModel)
    assert plain.keys() - gated.keys() == {"activations/transformer_blocks.0"}  # text and image
    assert not {"height", "width"} & {dim for dims, _ in gated.values() for dim in dims}
    with pytest.raises(ValueError, match=r"transformer_blocks\.0: expected .* cannot \(RuntimeError: weights"):
        recorded(Gated, "transformer_blocks.0")


def raising(error):
    def stand_in(*args):
        raise error

    return stand_in


def test_attention_of_as_many_words_as_places_has_no_places_where_that_is_not_known(monkeypatch):
    entry = replace(ZOO["lumina2"], steps=1)
    profiles = []
    for known in (True, False):
        if not known:
            monkeypatch.setattr(origins, "trace", raising(RuntimeError("weights are elsewhere")))
        pipe = entry.make()
        with record(pipe, [AttentionWeights()]) as recording:
            run(pipe, entry)
        profiles.append(dict(recording.profile))
    plain, unknown = profiles
    text, image = (f"attention_weights/{name}_refiner.0.attn" for name in ("context", "noise"))
    assert text not in plain
    assert plain[image].dims[-2:] == ("height", "width")
    assert unknown[text].sizes["token"] == unknown[image].sizes["token"] == 16
    assert {array.dims for array in unknown.values()} == {("step", "sample", "branch", "head", "token")}
    np.testing.assert_array_equal(unknown[image], plain[image].values.reshape(unknown[image].shape))
    name = text.removeprefix("attention_weights/")
    for spec in (
        AttentionWeights(layers=name, relation="image_to_image"),
        AttentionWeights(layers=name, pixels=[(0, 0)]),
    ):
        pipe = entry.make()
        with pytest.raises(ValueError, match="as far as is known"), record(pipe, [spec]):
            run(pipe, entry)


def test_a_run_does_not_go_on_otherwise_because_the_device_is_full(monkeypatch):
    calls = []

    class Full(nn.Module):
        def forward(self, sample):
            calls.append(sample)
            raise torch.OutOfMemoryError("full")

    with pytest.raises(torch.OutOfMemoryError, match="full"):
        trace(Full(), {}, lambda values: ((values,), {}), torch.zeros(1, 2, 3), list)
    assert len(calls) == 1
    monkeypatch.setattr(origins, "trace", raising(torch.OutOfMemoryError("full")))
    with pytest.raises(torch.OutOfMemoryError, match="full"):
        recorded(SD3Transformer2DModel)


@pytest.mark.parametrize(
    "apply",
    [
        lambda network: network.enable_cache(hooks.FirstBlockCacheConfig()),
        lambda network: hooks.apply_first_block_cache(network, hooks.FirstBlockCacheConfig()),
        lambda network: hooks.apply_pyramid_attention_broadcast(
            network, hooks.PyramidAttentionBroadcastConfig(2, current_timestep_callback=lambda: 500)
        ),
        lambda network: hooks.apply_faster_cache(network, hooks.FasterCacheConfig()),
        lambda network: hooks.apply_taylorseer_cache(network, hooks.TaylorSeerCacheConfig()),
    ],
)
def test_caches_are_refused_however_they_were_put_on(apply):
    pipe = ZOO["flux"].make()
    apply(pipe.transformer)
    with pytest.raises(RuntimeError, match=r"A cache is enabled on the denoiser \(\w+\)"), record(pipe):
        pass


def test_hooks_of_diffusers_that_are_no_caches_are_recorded():
    pipe = made()
    HookRegistry.check_if_exists_or_initialize(pipe.transformer).register_hook(hooks.ModelHook(), "own")
    with record(pipe, [Activations("pos_embed")]) as recording:
        result = run(pipe, ENTRY)
    assert np.array_equal(result, run(made(), ENTRY))
    assert recording.profile
