"""A run in plain words."""

from collections.abc import Sequence

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


def headline(profile: DiffusionProfile) -> str:
    """The title of the page."""
    count = profile["final_sample"].sizes["sample"] if "final_sample" in profile else 1
    noun = "face" if class_attributes(profile) else "image"
    return f"How the model formed this {noun}" if count == 1 else f"How the model formed these {count} {noun}s"
