"""How the profile was made, and how to make it again."""

import html
import json
import shlex
from collections.abc import Sequence

from diffusers_xai.checkpoints import demo_checkpoint
from diffusers_xai.profile import DiffusionProfile


def origin(profile: DiffusionProfile, command: Sequence[str] | None) -> str:
    """HTML of the last section: a table of the provenance, the code to repeat the run, the configurations."""
    provenance = profile.provenance
    rows = "".join(
        f'<tr><th scope="row">{name}</th><td>{html.escape(text)}</td></tr>'
        for name, text in _facts(provenance)
        if text
    )
    parts = [f"<section><h2>How it was made</h2><table>{rows}</table>"]
    code = [("In the shell", shlex.join(command) if command else None), ("In Python", python_code(provenance))]
    parts += [f"<h3>{title}</h3><pre><code>{html.escape(text)}</code></pre>" for title, text in code if text]
    for name in ("model", "scheduler"):
        config = provenance.get(name, {}).get("config")
        if config:
            text = html.escape(json.dumps(config, indent=2, default=str))
            parts.append(f"<details><summary>Configuration of the {name}</summary><pre>{text}</pre></details>")
    return "".join(parts) + "</section>"


def python_code(provenance: dict) -> str | None:
    """The Python program that repeats an `XAIPipeline` run, or `None` for a run of another pipeline."""
    pipeline = provenance.get("pipeline", {})
    if pipeline.get("class") != "XAIPipeline":
        return None
    record = [_call(spec) for spec in provenance.get("record", [])]
    edits = [_call(spec) for spec in provenance.get("edits", [])]
    checkpoint = pipeline.get("name_or_path")
    source = "demo_checkpoint()" if _is_demo(checkpoint) else repr(checkpoint)
    names = {call.partition("(")[0] for call in record + edits} | {"XAIPipeline"}
    names |= {"demo_checkpoint"} if _is_demo(checkpoint) else set()
    lines = ["import torch"]
    scheduler = provenance.get("scheduler", {}).get("class")
    if scheduler:
        lines.append(f"from diffusers import {scheduler}")
    lines += [
        "",
        f"from diffusers_xai import {', '.join(sorted(names))}",
        "from diffusers_xai.report import write_report",
        "",
        f"pipe = XAIPipeline.from_pretrained({source})",
    ]
    if scheduler:
        lines.append(f"pipe.scheduler = {scheduler}.from_config(pipe.scheduler.config)")
    lines.append("out = pipe(")
    labels = provenance.get("class_labels") or [None]
    if None in labels:
        lines.append(f"    batch_size={len(labels)},")
    else:
        lines.append(f"    class_labels={labels!r},")
    lines.append(f"    num_inference_steps={provenance.get('num_inference_steps')!r},")
    seeds = provenance.get("seeds") or []
    if any(seed is not None for seed in seeds):
        generators = ", ".join(f"torch.Generator().manual_seed({seed})" for seed in seeds)
        lines.append(f"    generator=[{generators}],")
    lines.append(f"    guidance_scale={provenance.get('guidance_scale', 1.0)!r},")
    if provenance.get("eta"):
        lines.append(f"    eta={provenance['eta']!r},")
    for name, calls in (("record", record), ("edits", edits)):
        if calls:
            lines += [f"    {name}=[", *(f"        {call}," for call in calls), "    ],"]
    lines += [")", 'out.profile.save_pretrained("profile")', 'write_report(out.profile, "profile/report.html")']
    return "\n".join(lines)


def _facts(provenance: dict) -> list[tuple[str, str]]:
    pipeline, model, scheduler = (provenance.get(name, {}) for name in ("pipeline", "model", "scheduler"))
    checkpoint, versions = pipeline.get("name_or_path"), provenance.get("versions", {})
    prediction = scheduler.get("config", {}).get("prediction_type")
    labels, seeds = (
        ", ".join(str(value) for value in provenance.get(name) or [] if value is not None)
        for name in ("class_labels", "seeds")
    )
    return [
        ("Checkpoint", "the package's own, demo_checkpoint()" if _is_demo(checkpoint) else str(checkpoint or "")),
        ("Pipeline", pipeline.get("class", "")),
        ("Model", model.get("class", "")),
        ("Scheduler", scheduler.get("class", "") + (f", {prediction} prediction" if prediction else "")),
        ("Steps", str(provenance.get("num_inference_steps") or "")),
        ("Label", labels),
        ("Guidance scale", str(provenance.get("guidance_scale", ""))),
        ("Seed", seeds),
        ("Edits", "; ".join(_call(spec) for spec in provenance.get("edits", []))),
        ("Recorded", "; ".join(_call(spec) for spec in provenance.get("record", []))),
        ("Created", str(provenance.get("created", ""))),
        ("Versions", ", ".join(f"{name} {version}" for name, version in versions.items() if version)),
    ]


def _is_demo(checkpoint: str | None) -> bool:
    return checkpoint == demo_checkpoint()


def _call(spec: dict) -> str:
    """`{"type": "Samples", "every": 10, "steps": None}` -> `"Samples(every=10)"`."""
    arguments = [f"{name}={value!r}" for name, value in spec.items() if name != "type" and value is not None]
    return f"{spec.get('type', '')}({', '.join(arguments)})"
