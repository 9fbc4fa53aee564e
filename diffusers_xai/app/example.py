"""What a fresh page shows: a result in the package, which `python -m diffusers_xai.app.example` regenerates."""

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from diffusers_xai import DiffusionProfile
from diffusers_xai.app.captions import caption
from diffusers_xai.app.models import DEMO, Model, load_models
from diffusers_xai.app.runs import run_stream, sample
from diffusers_xai.app.session import Result
from diffusers_xai.app.settings import Limits, Settings
from diffusers_xai.measures import mask_to_runs
from diffusers_xai.profile.archive import read_archive, write_archive


FILE = Path(__file__).with_name("example.zip")


def example(model: Model, limits: Limits) -> Result:
    """The run of the model that is offered first, with the settings that a fresh page has."""
    with tempfile.TemporaryDirectory() as folder:
        stored = read_archive(FILE, Path(folder) / "example")
        arrays = {name: array.load().astype(np.float32) for name, array in stored.items()}
    return shared(DiffusionProfile(arrays, stored.provenance), model, fresh(model, limits))


def shared(profile: DiffusionProfile, model: Model, settings: Settings) -> Result:
    """A profile as what every fresh page shows."""
    return Result(profile, settings, model.blocks, caption(settings, model), is_shared=True)


def fresh(model: Model, limits: Limits, **defaults: Any) -> Settings:
    """The settings of a fresh page; `defaults` are fields of `Settings`."""
    mask = json.dumps(mask_to_runs(model.default_mask(limits.max_mask_pixels)))
    return replace(model.default(limits, **defaults), mask=mask)


def run(model: Model, settings: Settings, limits: Limits) -> DiffusionProfile:
    """Samples."""
    *_, profile = run_stream(sample, model, settings, limits)
    return profile


def _halved(profile: DiffusionProfile) -> DiffusionProfile:
    arrays = {name: array.astype(np.float16) for name, array in profile.items()}
    return DiffusionProfile(arrays, profile.provenance)


if __name__ == "__main__":
    demo = load_models()[DEMO]
    write_archive(_halved(run(demo, fresh(demo, Limits()), Limits())), FILE)
