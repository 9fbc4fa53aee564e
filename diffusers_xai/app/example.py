"""What a fresh page shows: a result in the package, which `python -m diffusers_xai.app.example` regenerates."""

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

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
    mask = json.dumps(mask_to_runs(model.default_mask()))
    return replace(model.default(limits, **defaults), mask=mask)


def run(model: Model, settings: Settings, limits: Limits) -> DiffusionProfile:
    """Samples."""
    *_, profile = run_stream(sample, model, settings, limits)
    return profile


# Their values are rounded to multiples, fine beside what is seen of them: such numbers make small zip files.
# Layers vary by about 1; of the distances between their steps the rounding changes 4 % at most, and of c* nothing.
_MULTIPLES = {"activations/mid": 1 / 16, "activations/": 1 / 8, "samples": 1 / 64, "x0": 1 / 128}


def _small(profile: DiffusionProfile) -> DiffusionProfile:
    def rounded(name: str, array: xr.DataArray) -> xr.DataArray:
        multiple = next((value for start, value in _MULTIPLES.items() if name.startswith(start)), None)
        return (array if multiple is None else (array / multiple).round() * multiple).astype(np.float16)

    return DiffusionProfile({name: rounded(name, array) for name, array in profile.items()}, profile.provenance)


if __name__ == "__main__":
    demo = load_models()[DEMO]
    write_archive(_small(run(demo, fresh(demo, Limits()), Limits())), FILE)
