"""The top of the page: the result, its label, and the process as a film."""

from typing import Any

import numpy as np

from diffusers_xai.labels import label_bits
from diffusers_xai.plots.style import evenly_spaced_steps, record_at, time_label
from diffusers_xai.profile import DiffusionProfile
from diffusers_xai.profile.pictures import png_data_uri, to_rgb
from diffusers_xai.report.page import fill
from diffusers_xai.report.words import class_attributes, headline, label_words


_FILM_FRAMES = 120
_FILM_START = 0.7  # of the process: where both films and the result still differ
_TITLES = {
    "samples": ("x<sub>t</sub>: what the network receives", "The noisy state of the process at the chosen step"),
    "x0": ("x̂<sub>0</sub>: what it predicts", "The image that the network predicts at the chosen step"),
}


def hero(profile: DiffusionProfile, mask: np.ndarray | None) -> str:
    """Headline, facts, and for each sample the enlarged result beside a film of the process."""
    provenance = profile.provenance
    facts = []
    labels = dict.fromkeys(
        _label(profile, label) for label in provenance.get("class_labels") or [] if label is not None
    )
    if labels:
        facts.append(("Label", "; ".join(labels)))
    if any(seed is not None for seed in provenance.get("seeds") or []):
        facts.append(("Seed", ", ".join(str(seed) for seed in provenance["seeds"])))
    if provenance.get("num_inference_steps"):
        scheduler = provenance.get("scheduler", {}).get("class", "unknown scheduler")
        facts.append(("Steps", f"{provenance['num_inference_steps']} ({scheduler})"))
    pictures = []
    if "final_sample" in profile:
        result = profile["final_sample"]
        for sample in range(result.sizes["sample"]):
            caption = "Result" if result.sizes["sample"] == 1 else f"Result {sample}"
            alt = f"The generated image{_of_label(profile, sample)}, enlarged"
            uri = png_data_uri(to_rgb(result.isel(sample=sample).values))
            pictures.append({"uri": uri, "alt": alt, "caption": caption})
    if mask is not None:
        alt = "The generated image, dark outside of the region of interest"
        pictures.append({"uri": png_data_uri(_shaded(profile, mask)), "alt": alt, "caption": "Region of interest"})
    return fill(
        "hero.html",
        headline=headline(profile),
        facts=facts,
        complete=provenance.get("complete") is not False,
        pictures=pictures,
        **_films(profile),
    )


def _label(profile: DiffusionProfile, label: int) -> str:
    attributes = class_attributes(profile)
    words = label_words(label, attributes)
    return f"{label_bits(label, attributes)} = {words}" if attributes and label >= 0 else words


def _of_label(profile: DiffusionProfile, sample: int) -> str:
    labels = profile.provenance.get("class_labels") or []
    if sample >= len(labels) or labels[sample] is None:
        return ""
    return f" ({label_words(labels[sample], class_attributes(profile))})"


def _films(profile: DiffusionProfile) -> dict[str, Any]:
    """The first sample's x_t and x̂_0 as films, the label of every frame, and the frame that is shown first."""
    names = [name for name in ("samples", "x0") if name in profile]
    if not names:
        return {"films": [], "labels": [], "last": 0, "start": 0}
    steps = evenly_spaced_steps(profile[names[0]], _FILM_FRAMES)
    labels = [time_label(profile[names[0]], step) for step in steps]
    if "final_sample" in profile:
        labels.append("result")
    films = []
    for name in names:
        frames = [to_rgb(record_at(profile[name], step, 0)) for step in steps]
        if "final_sample" in profile:
            frames.append(to_rgb(profile["final_sample"].isel(sample=0).values))
        height, width = frames[0].shape[:2]
        caption, alt = _TITLES[name]
        uri = png_data_uri(np.concatenate(frames))
        films.append({"uri": uri, "alt": alt, "caption": caption, "aspect": f"{width}/{height}"})
    last = len(labels) - 1
    return {"films": films, "labels": labels, "last": last, "start": round(_FILM_START * last)}


def _shaded(profile: DiffusionProfile, mask: np.ndarray) -> np.ndarray:
    """The first result, dark outside of `mask`; the mask itself where there is no result of its size."""
    white = np.full((*mask.shape, 3), 255, np.uint8)
    image = to_rgb(profile["final_sample"].isel(sample=0).values) if "final_sample" in profile else white
    image = image if image.shape == white.shape else white
    return np.where(mask[:, :, None], image, image // 4)
