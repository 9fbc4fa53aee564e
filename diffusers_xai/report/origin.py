"""How the profile was made, and how to make it again."""

import json
import shlex
from collections.abc import Sequence

import numpy as np

from diffusers_xai.checkpoints import name_of_embedded
from diffusers_xai.measures import mask_from_runs, mask_to_runs
from diffusers_xai.profile import DiffusionProfile
from diffusers_xai.report.page import fill
from diffusers_xai.report.words import prompts


def origin(
    profile: DiffusionProfile,
    mask: np.ndarray | None,
    edited: DiffusionProfile | None,
    command: Sequence[str] | None,
) -> str:
    """HTML of the last section: a table of the provenance, the code to repeat the runs, the configurations."""
    provenance = profile.provenance
    python = python_code(provenance, mask, edited.provenance if edited is not None else None)
    configs = [(name, provenance.get(name, {}).get("config")) for name in ("model", "scheduler")]
    return fill(
        "origin.html",
        facts=_facts(provenance),
        code=[("In the shell", shlex.join(command) if command else None), ("In Python", python)],
        configurations=[(name, json.dumps(config, indent=2, default=str)) for name, config in configs if config],
    )


def python_code(provenance: dict, mask: np.ndarray | None = None, edited: dict | None = None) -> str | None:
    """The Python program that repeats the run of an `XAIPipeline` or with a prompt, and the `edited` one after it.

    `None` where the provenance only describes what was given: other pipelines, images, functions as edits.
    """
    runs = [("out", provenance), *([("edited", edited)] if edited is not None else [])]
    ours = provenance.get("pipeline", {}).get("class") == "XAIPipeline"
    if not ours and not all(_is_told(run) for _, run in runs):
        return None
    if any(isinstance(edit.get("replace"), dict) for _, run in runs for edit in _flat(run.get("edits", []))):
        return None
    masks = _Masks(mask)
    calls = [line for name, run in runs for line in (_pipeline_call if ours else _recorded_call)(name, run, masks)]
    specs = [spec for _, run in runs for spec in _flat(run.get("record", []) + run.get("edits", []))]
    checkpoint = provenance["pipeline"].get("name_or_path")
    embedded = _call_of_embedded(checkpoint)
    source = embedded or repr(checkpoint)
    kind = "XAIPipeline" if ours else "DiffusionPipeline"
    names = {spec.get("type", "") for spec in specs} | {kind if ours else "record"}
    names |= {"demo_checkpoint"} if embedded else set()
    lines = ["import torch"]
    scheduler = provenance.get("scheduler", {}).get("class")
    of_diffusers = [name for name in (scheduler, None if ours else kind) if name]
    if of_diffusers:
        lines.append(f"from diffusers import {', '.join(sorted(of_diffusers))}")
    lines += ["", f"from diffusers_xai import {', '.join(sorted(names))}"]
    lines += masks.imports()
    lines += ["from diffusers_xai.report import write_report", "", *masks.definitions()]
    dtype = provenance["pipeline"].get("dtype")
    precision = "" if ours or dtype is None else f", dtype={dtype}"
    lines.append(f"pipe = {kind}.from_pretrained({source}{precision})")
    if scheduler:
        lines.append(f"pipe.scheduler = {scheduler}.from_config(pipe.scheduler.config)")
    arguments = ["out.profile", '"profile/report.html"'] + ["mask=mask"] * (mask is not None)
    lines += [*calls, 'out.profile.save_pretrained("profile")']
    if edited is not None:
        arguments.append("edited=edited.profile")
        lines.append('edited.profile.save_pretrained("profile/edited")')
    lines.append(f"write_report({', '.join(arguments)})")
    return "\n".join(lines)


def _pipeline_call(name: str, provenance: dict, masks: "_Masks") -> list[str]:
    lines = [f"{name} = pipe("]
    labels = provenance.get("class_labels") or [None]
    if None in labels:
        lines.append(f"    batch_size={len(labels)},")
    else:
        lines.append(f"    class_labels={labels!r},")
    chosen = [name for name in ("timesteps", "sigmas") if provenance.get(f"custom_{name}")]
    lines += [f"    {name}={provenance[f'custom_{name}']!r}," for name in chosen]
    if not chosen:
        lines.append(f"    num_inference_steps={provenance.get('num_inference_steps')!r},")
    seeds = provenance.get("seeds") or []
    if any(seed is not None for seed in seeds):
        generators = ", ".join(f"torch.Generator().manual_seed({seed})" for seed in seeds)
        lines.append(f"    generator=[{generators}],")
    lines.append(f"    guidance_scale={provenance.get('guidance_scale', 1.0)!r},")
    if provenance.get("eta"):
        lines.append(f"    eta={provenance['eta']!r},")
    for argument in ("record", "edits"):
        if provenance.get(argument):
            lines += [f"    {argument}=[", *_entries(provenance[argument], masks, 8), "    ],"]
    return [*lines, ")"]


def _is_told(provenance: dict) -> bool:
    """Whether everything that a pipeline was given for its prompt can be written down."""
    given, told = provenance.get("given"), provenance.get("arguments", {})
    return given is not None and "prompt" in told and set(given) - {"generator"} <= set(told)


def _recorded_call(name: str, provenance: dict, masks: "_Masks") -> list[str]:
    lines = ["what = [", *_entries(provenance["record"], masks, 4), "]"]
    edits = _entries(provenance.get("edits") or [], masks, 4)
    if edits:
        lines += ["edits = [", *edits, "]"]
    lines.append(f"with record(pipe, what{', edits=edits' if edits else ''}) as {name}:")
    lines.append("    pipe(")
    seeds = [f"torch.Generator().manual_seed({seed})" for seed in provenance.get("seeds") or []]
    if seeds:
        lines.append(f"        generator={seeds[0] if len(seeds) == 1 else '[' + ', '.join(seeds) + ']'},")
    told = provenance["arguments"]
    lines += [f"        {name}={told[name]!r}," for name in provenance["given"] if name in told]
    return [*lines, "    )"]


def _entries(specs: list, masks: "_Masks", indent: int) -> list[str]:
    return [f"{' ' * indent}{_entry(spec, masks)}," for spec in specs]


def _entry(entry: dict | list, masks: "_Masks") -> str:
    """A spec, or the specs of one image, as code."""
    if isinstance(entry, list):
        return f"[{', '.join(_entry(spec, masks) for spec in entry)}]"
    return _call({**entry, "mask": masks.name_of(entry["mask"])} if entry.get("mask") else entry)


def _flat(entries: list) -> list[dict]:
    return [spec for entry in entries for spec in (entry if isinstance(entry, list) else [entry])]


class _Masks:
    """The masks of a program: each one is defined once, and `mask` is the report's."""

    def __init__(self, mask: np.ndarray | None):
        self._masks = [] if mask is None else [mask]

    def name_of(self, data: dict) -> "_Name":
        mask = mask_from_runs(data)
        known = [i for i, other in enumerate(self._masks) if np.array_equal(mask, other)]
        if not known:
            self._masks.append(mask)
        index = known[0] if known else len(self._masks) - 1
        return _Name(f"mask_{index + 1}" if index else "mask")

    def imports(self) -> list[str]:
        names = {definition.partition("(")[0] for definition in map(_definition, self._masks)}
        return [f"from diffusers_xai.measures import {', '.join(sorted(names))}"] if names else []

    def definitions(self) -> list[str]:
        return [f"mask{f'_{i + 1}' if i else ''} = {_definition(mask)}" for i, mask in enumerate(self._masks)]


class _Name(str):
    """A variable, which stands in code as it is."""

    def __repr__(self) -> str:
        return str(self)


def _definition(mask: np.ndarray) -> str:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, bottom, left, right = (int(i) for i in (rows[0], rows[-1] + 1, columns[0], columns[-1] + 1))
    if mask[top:bottom, left:right].all():
        return f"mask_from_box({(left, top, right, bottom)}, {mask.shape})"
    return f"mask_from_runs({mask_to_runs(mask)})"


def _facts(provenance: dict) -> list[tuple[str, str]]:
    pipeline, model, scheduler = (provenance.get(name, {}) for name in ("pipeline", "model", "scheduler"))
    checkpoint, versions = pipeline.get("name_or_path"), provenance.get("versions", {})
    prediction = scheduler.get("config", {}).get("prediction_type")
    labels, seeds = (
        ", ".join(str(value) for value in provenance.get(name) or [] if value is not None)
        for name in ("class_labels", "seeds")
    )
    embedded = _call_of_embedded(checkpoint)
    return [
        ("Checkpoint", f"the package's own, {embedded}" if embedded else str(checkpoint or "")),
        ("Pipeline", pipeline.get("class", "")),
        ("Model", model.get("class", "")),
        ("Scheduler", scheduler.get("class", "") + (f", {prediction} prediction" if prediction else "")),
        ("Steps", str(provenance.get("num_inference_steps") or "")),
        *prompts(provenance),
        ("Label", labels),
        ("Guidance scale", str(provenance.get("guidance_scale", ""))),
        ("Seed", seeds),
        ("Edits", "; ".join(map(_summary, provenance.get("edits", [])))),
        ("Recorded", "; ".join(map(_summary, provenance.get("record", [])))),
        ("Created", str(provenance.get("created", ""))),
        ("Versions", ", ".join(f"{name} {version}" for name, version in versions.items() if version)),
    ]


def _call_of_embedded(checkpoint: str | None) -> str | None:
    """The call that gives the path of an embedded checkpoint; `None` for any other path."""
    name = name_of_embedded(checkpoint)
    return None if name is None else f'demo_checkpoint("{name}")'


def _call(spec: dict) -> str:
    """`{"type": "Samples", "every": 10, "steps": None}` -> `"Samples(every=10)"`."""
    arguments = [f"{name}={value!r}" for name, value in spec.items() if name != "type" and value is not None]
    return f"{spec.get('type', '')}({', '.join(arguments)})"


def _summary(entry: dict | list) -> str:
    """A spec, or the specs of one image, for the table: a mask by its size."""
    if isinstance(entry, list):
        return f"[{', '.join(map(_summary, entry))}]"
    if entry.get("mask"):
        count = int(mask_from_runs(entry["mask"]).sum())
        return _call({**entry, "mask": _Name(f"{count} pixel{'s' * (count > 1)}")})
    return _call(entry)
