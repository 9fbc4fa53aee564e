"""Tiny pipelines of the real classes: random weights, a few channels, two images or one, two steps."""

import functools
from dataclasses import replace

import torch

from tests.zoo.entry import Entry
from tests.zoo.image_transformers import IMAGE_TRANSFORMERS
from tests.zoo.packed import PACKED
from tests.zoo.sound import SOUND
from tests.zoo.stable_diffusion import STABLE_DIFFUSION
from tests.zoo.unets import UNETS
from tests.zoo.video import VIDEO


def _awake(make):
    """The pipeline with the same random weights whenever it is made, also where weights begin as zeros.

    So every layer does something, whatever was drawn before.
    """

    @functools.wraps(make)
    def made():
        torch.manual_seed(1)
        pipe = make()
        generator = torch.Generator().manual_seed(0)
        for component in pipe.components.values():
            if isinstance(component, torch.nn.Module):
                for parameter in component.parameters():
                    if not parameter.any():
                        parameter.data.normal_(0, 0.1, generator=generator)
        return pipe

    return made


_ENTRIES = {**STABLE_DIFFUSION, **UNETS, **IMAGE_TRANSFORMERS, **PACKED, **VIDEO, **SOUND}
ZOO: dict[str, Entry] = {name: replace(entry, make=_awake(entry.make)) for name, entry in _ENTRIES.items()}
