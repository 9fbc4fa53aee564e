"""What a fresh page shows: a result in the package, which `python -m diffusers_xai.app.example` makes anew."""

import json
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from diffusers_xai import DiffusionProfile
from diffusers_xai.app.captions import caption
from diffusers_xai.app.models import EMBEDDED, Model, load_models
from diffusers_xai.app.runs import run_stream, sample
from diffusers_xai.app.session import Result
from diffusers_xai.app.settings import Limits, Settings
from diffusers_xai.measures import mask_to_runs
from diffusers_xai.profile.archive import read_archive, write_archive


FILE = Path(__file__).with_name("example.zip")


def example(model: Model, limits: Limits) -> Result:
    """The embedded model's run with the settings that a fresh page has."""
    with tempfile.TemporaryDirectory() as folder:
        stored = read_archive(FILE, Path(folder) / "example")
        arrays = {name: array.load().astype(np.float32) for name, array in stored.items()}
    settings = _settings(model, limits)
    profile = DiffusionProfile(arrays, stored.provenance)
    return Result(profile, settings, model.blocks, caption(settings, model), is_shared=True)


def make_example(model: Model, limits: Limits) -> DiffusionProfile:
    """Samples it; small: in half precision, and of the label's influence only what its figure shows."""
    *_, profile = run_stream(sample, model, _settings(model, limits), limits)
    arrays = dict(profile)
    arrays["label_sensitivity"] = arrays["label_sensitivity"].sum(["height", "width"], keep_attrs=True)
    return DiffusionProfile({name: array.astype(np.float16) for name, array in arrays.items()}, profile.provenance)


def _settings(model: Model, limits: Limits) -> Settings:
    mask = json.dumps(mask_to_runs(model.default_mask(limits.max_mask_pixels)))
    return replace(model.default(limits), mask=mask)


if __name__ == "__main__":
    write_archive(make_example(load_models()[EMBEDDED], Limits()), FILE)
