"""A run in plain words."""

from collections.abc import Mapping, Sequence
from typing import Any

from diffusers_xai.labels import attributes_of
from diffusers_xai.plots.style import layer_name
from diffusers_xai.profile import DiffusionProfile


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
    noun = "face" if profile.class_attributes else what_is_made(profile)
    return f"How the model formed this {noun}" if count == 1 else f"How the model formed these {count} {noun}s"


def what_is_made(profile: DiffusionProfile) -> str:
    """`"image"`, `"video"` or `"sound"`."""
    arrays = [profile[name] for name in ("final_image", "final_sample", "samples") if name in profile]
    if not any("frame" in array.dims for array in arrays):
        return "image"
    return "video" if any("height" in array.dims for array in arrays) else "sound"


def changes(profile: DiffusionProfile, edited: DiffusionProfile) -> str:
    """The edits of a run in words, layers by their names in `profile`."""
    return "; ".join(_in_words(edit, profile) for edit in edited.provenance.get("edits", [])) or "without a change"


def _in_words(edit: dict | list, profile: DiffusionProfile) -> str:
    if isinstance(edit, dict) and edit.get("type") == "ChannelAblation" and edit.get("replace") == "zero":
        layers = ", ".join(layer_name(profile, layer) for layer in edit["layers"])
        channels = ", ".join(map(str, edit["channels"]))
        verb = "set to zero" if edit.get("amount", 1) == 1 else f"weakened by {edit['amount']:.0%}"
        return f"channel{'s' * (len(edit['channels']) > 1)} {channels} of {layers} {verb}"
    if isinstance(edit, dict) and edit.get("type") == "LabelSwitch" and isinstance(edit.get("to"), int):
        at = edit.get("from_step")
        start = f"step {at}" if at is not None else f"t = {edit.get('from_timestep')}"
        return f"the label switched to {label_words(edit['to'], profile.class_attributes)} from {start} on"
    if isinstance(edit, dict) and edit.get("type") == "PromptSwitch":
        start = (
            f"step {edit['from_step']}" if edit.get("from_step") is not None else f"t = {edit.get('from_timestep')}"
        )
        return f"the prompt switched to “{edit['to']}” from {start} on"
    return str(edit)
