"""Every spec at once over a whole run: the image stays the same bit for bit, and nothing stays attached."""

import numpy as np
import pytest
from torch import nn

from diffusers_xai import (
    Activations,
    AttentionOutputs,
    AttentionWeights,
    DecodedImages,
    GradientEnergy,
    GradientMaps,
    GradientVolume,
    Samples,
    WordMaps,
    record,
)
from tests.zoo import autoencoders
from tests.zoo.pipelines import ZOO
from tests.zoo.running import run


STEPS = 20


def state_of(pipe):
    """Everything that a tap could leave: hooks, processors, attributes of instances, gradients."""
    found = {}
    for name, module in pipe.components.items():
        if not isinstance(module, nn.Module):
            continue
        for path, part in module.named_modules(prefix=name):
            hooks = [value for key, value in vars(part).items() if key.endswith(("_hooks", "_hooks_with_kwargs"))]
            found[path] = (sum(map(len, hooks)), sorted(vars(part)), id(getattr(part, "processor", None)))
        found[f"{name} gradients"] = [(p.requires_grad, p.grad is None) for p in module.parameters()]
    return {**found, "scheduler": sorted(vars(pipe.scheduler)), "pipeline": sorted(set(vars(pipe)) - _OWN)}


# What a call of the pipeline leaves on it by itself.
_OWN = {"_progress_bar_config"}


@pytest.mark.parametrize("name", ["stable-diffusion-xl", "sd3", "flux", "wan"])
def test_every_spec_at_once_changes_nothing(name):
    entry = ZOO[name]
    pipe = entry.make()
    if getattr(pipe, "vae", None) is None:
        pipe.register_modules(vae=autoencoders.wan())
        pipe.vae.clear_cache()  # whose attributes every decoding makes
    entry = type(entry)(**{**vars(entry), "steps": STEPS})
    plain = run(pipe, entry)
    before = state_of(pipe)

    mask = np.zeros(sample_size(pipe, entry), dtype=bool)
    mask[1, 1:3] = True
    few = {"every": 7}
    specs = [
        Samples(measures=()),
        DecodedImages(**few),
        Activations(layers=entry.layer),
        AttentionOutputs(),
        AttentionWeights(layers=entry.attention),
        WordMaps(**entry.asked),
        GradientVolume(mask=mask, of="noise", steps=[0, 10]),
        GradientEnergy(mask=mask, of="noise", probes=2, **few),
        GradientMaps(layers=entry.layer, mask=mask, of="noise", **few),
    ]
    with record(pipe, specs) as recording:
        recorded = run(pipe, entry)
    assert np.array_equal(plain, recorded)
    assert state_of(pipe) == before
    groups = {name.partition("/")[0] for name in recording.profile}
    assert {
        "samples", "x0", "final_sample", "images", "final_image", "activations", "attention_outputs",
        "attention_weights", "word_maps", "gradient_volume", "gradient_energy", "gradient_maps",
    } <= groups  # fmt: skip
    assert recording.profile["samples"].sizes["step"] == STEPS
    assert all(np.isfinite(array.values).all() for array in recording.profile.values())


def sample_size(pipe, entry):
    with record(pipe, [Samples(measures=(), x0=False, steps=[0])]) as recording:
        run(pipe, type(entry)(**{**vars(entry), "steps": 1}))
    sizes = recording.profile["samples"].sizes
    return sizes["height"], sizes["width"]
