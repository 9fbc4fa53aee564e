"""The sections that compare the run with one that was changed."""

import html

from diffusers_xai import plots
from diffusers_xai.plots.style import layer_name, predicted_images
from diffusers_xai.profile import DiffusionProfile
from diffusers_xai.report.section import Section, can_compare_samples
from diffusers_xai.report.words import class_attributes, label_words


def pair_sections(profile: DiffusionProfile, edited: DiffusionProfile) -> list[Section]:
    """The images of both runs, and how alike they are over time."""
    found = [
        Section(
            "What the change does",
            f"The same noise, sampled again: {html.escape(changes(profile, edited))}. The last row shows where the two"
            " runs differ, dark where they agree, all maps in one range. SSIM is 1 for equal images.",
            "Images of the intact run, of the changed run, and their difference, at equal distances in time.",
            "The images are the predicted x̂<sub>0</sub>, then the results. Thesis alg. 6, fig. 5.10 to 5.17.",
            lambda: plots.run_pair(profile, edited, name=predicted_images(profile) or "x0"),
            wide=True,
        )
    ]
    if all(can_compare_samples(run) for run in (profile, edited)):
        found.append(
            Section(
                "When the two runs part",
                "SSIM between the states x<sub>t</sub> of both runs at equal times. It stays at 1 as long as the noise"
                " that they share hides all differences, and falls where these become visible.",
                "A line of the structural similarity between the two runs over time.",
                "Thesis eq. 4.1.8, fig. 5.14.",
                lambda: plots.run_similarity(profile, edited),
            )
        )
    return found


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
        return f"the label switched to {label_words(edit['to'], class_attributes(profile))} from {start} on"
    if isinstance(edit, dict) and edit.get("type") == "PromptSwitch":
        start = (
            f"step {edit['from_step']}" if edit.get("from_step") is not None else f"t = {edit.get('from_timestep')}"
        )
        return f"the prompt switched to “{edit['to']}” from {start} on"
    return str(edit)
