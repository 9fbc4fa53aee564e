"""A run in plain words."""

from collections.abc import Mapping, Sequence
from typing import Any

from diffusers_xai.labels import attributes_of
from diffusers_xai.profile import DiffusionProfile


def class_attributes(profile: DiffusionProfile) -> tuple[str, ...]:
    """Names of the label's bits, most significant first; empty where a label is not made of attributes."""
    return tuple(profile.provenance.get("model", {}).get("config", {}).get("class_attributes") or ())


def label_words(label: int, attributes: Sequence[str]) -> str:
    """`0b0011` -> `"Smiling, Wearing_Lipstick, not Bangs, not Male"`; `"class 3"` without attributes."""
    if not attributes:
        return f"class {label}"
    if not 0 <= label < 2 ** len(attributes):
        return "no label"
    present = attributes_of(label, attributes)
    return ", ".join(present + [f"not {name}" for name in attributes if name not in present])


def prompts(provenance: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The prompt and the negative prompt under their titles; empty texts where there are none."""
    titles = {"Prompt": "prompt", "Negative prompt": "negative_prompt"}
    values = ((title, provenance.get(name) or "") for title, name in titles.items())
    return [(title, value if isinstance(value, str) else "; ".join(map(str, value))) for title, value in values]


def headline(profile: DiffusionProfile) -> str:
    """The title of the page."""
    count = profile["final_sample"].sizes["sample"] if "final_sample" in profile else 1
    frames = any("frame" in profile[name].dims for name in ("final_image", "final_sample") if name in profile)
    noun = "face" if class_attributes(profile) else "video" if frames else "image"
    return f"How the model formed this {noun}" if count == 1 else f"How the model formed these {count} {noun}s"
