"""How a profile was made, as JSON."""

import datetime
import functools
import importlib.metadata
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch

from diffusers_xai.passed import Pipeline
from diffusers_xai.recording.clock import Run
from diffusers_xai.recording.steps import StepSpec


_LIBRARIES = ("diffusers-xai", "diffusers", "torch", "numpy", "safetensors", "xarray")
# Arguments that say how to run and what to return, not what is made.
_NOT_TOLD = ("record", "edits", "profile_dir", "max_bytes", "return_dict", "output_type", "callback_on_step_end")


def describe_run(
    run: Run, specs: Sequence[StepSpec], edits: Sequence[Any], layers: Collection[str], more: Mapping[str, Any]
) -> dict[str, Any]:
    """The provenance of a profile.

    Args:
        run (`Run`): The run.
        specs (sequence of `RecordSpec`): What is recorded.
        edits (sequence of `EditSpec`, or one sequence of them per image): What is changed.
        layers (collection of `str`): The recorded layers.
        more (mapping): What the pipeline tells itself; it has the last word.
    """
    config = getattr(run.pipeline, "config", {})
    name = config.get("_name_or_path") if isinstance(config, Mapping) else None
    return _jsonable(
        {
            "versions": {name: _version(name) for name in _LIBRARIES},
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "complete": run.is_complete,
            "pipeline": {"class": type(run.pipeline).__name__, "name_or_path": name, **_precision(run.pipeline)},
            "model": {"class": run.denoiser.name, "config": dict(run.denoiser.config)},
            "scheduler": {"class": type(run.scheduler).__name__, "config": dict(run.scheduler.config)},
            "record": [spec.to_dict() for spec in specs],
            "edits": [
                [edit.to_dict() for edit in row] if isinstance(row, Sequence) else row.to_dict() for row in edits
            ],
            "layer_aliases": {alias: path for alias, path in run.denoiser.aliases.items() if path in layers},
            "timesteps": run.timesteps,
            "num_inference_steps": len(run.timesteps),
            **_call(run),
            **more,
        }
    )


def _call(run: Run) -> dict[str, Any]:
    """What the pipeline was called with: `arguments` that can be written as JSON, and the seeds."""
    arguments = {**run.call.arguments, **(run.call.given or {})}  # some pipelines overwrite theirs
    if not arguments:
        return {}
    told = {
        name: value
        for name, value in arguments.items()
        if name not in _NOT_TOLD and value is not None and _is_plain(value)
    }
    generator = arguments.get("generator")
    generators = generator if isinstance(generator, list) else [generator] if generator is not None else []
    seeds = [item.initial_seed() for item in generators if isinstance(item, torch.Generator)]
    given = [name for name in run.call.given or () if name not in _NOT_TOLD]
    return {
        "arguments": told,
        **({} if run.call.given is None else {"given": given}),
        **{name: told[name] for name in ("prompt", "negative_prompt", "guidance_scale") if name in told},
        **({"seeds": seeds} if seeds else {}),
    }


def _precision(pipeline: Pipeline) -> dict[str, str]:
    dtype = getattr(pipeline, "dtype", None)
    return {"dtype": str(dtype)} if isinstance(dtype, torch.dtype) else {}


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_is_plain(item) for item in value)
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    return isinstance(value, (str, bool, int, float)) or value is None


@functools.cache
def _version(library: str) -> str | None:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None


def _jsonable(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))
