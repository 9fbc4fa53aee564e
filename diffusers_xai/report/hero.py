"""The top of the page: the result, its label, and the process as a film."""

from typing import Any

import numpy as np

from diffusers_xai.labels import label_bits
from diffusers_xai.plots.style import (
    evenly_spaced_steps,
    has_positions,
    is_latent,
    predicted_images,
    record_at,
    result_image,
    time_label,
)
from diffusers_xai.profile import DiffusionProfile
from diffusers_xai.profile.pictures import png_data_uri, thumbnail, to_rgb
from diffusers_xai.report.page import fill
from diffusers_xai.report.words import headline, label_words, prompts


_FILM_FRAMES = 120
_FILM_SIZE = 384  # pixels of a frame's longer side
_LATENT = "three channels of the latent as colours"
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
    facts += [(title, text) for title, text in prompts(provenance) if text]
    if any(seed is not None for seed in provenance.get("seeds") or []):
        facts.append(("Seed", ", ".join(str(seed) for seed in provenance["seeds"])))
    if provenance.get("num_inference_steps"):
        scheduler = provenance.get("scheduler", {}).get("class", "unknown scheduler")
        facts.append(("Steps", f"{provenance['num_inference_steps']} ({scheduler})"))
    pictures = []
    samples = profile["final_sample"].sizes["sample"] if "final_sample" in profile else 0
    for sample in range(samples):
        result = result_image(profile, sample)
        if result is not None:
            caption = "Result" if samples == 1 else f"Result {sample}"
            alt = f"The generated image{_of_label(profile, sample)}, enlarged"
            pictures.append({"uri": png_data_uri(to_rgb(result)), "alt": alt, "caption": caption})
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
    attributes = profile.class_attributes
    words = label_words(label, attributes)
    return f"{label_bits(label, attributes)} = {words}" if attributes and label >= 0 else words


def _of_label(profile: DiffusionProfile, sample: int) -> str:
    labels = profile.provenance.get("class_labels") or []
    if sample >= len(labels) or labels[sample] is None:
        return ""
    return f" ({label_words(labels[sample], profile.class_attributes)})"


def _films(profile: DiffusionProfile) -> dict[str, Any]:
    """The first sample's x_t and x̂_0 as films, the label of every frame, and the frame that is shown first."""
    states = "samples" if "samples" in profile and has_positions(profile["samples"]) else None
    names = [name for name in (states, predicted_images(profile)) if name is not None]
    if not names:
        return {"films": [], "labels": [], "last": 0, "start": 0}
    # At the steps that both have: pictures may be decoded at fewer steps than states are kept.
    common = sorted(set.intersection(*(set(profile[name]["step"].values.tolist()) for name in names)))
    if not common:
        names, common = names[-1:], profile[names[-1]]["step"].values.tolist()
    steps = evenly_spaced_steps(profile[names[0]].sel(step=common), _FILM_FRAMES)
    labels = [time_label(profile[names[0]], step) for step in steps]
    result = result_image(profile, 0)
    if result is not None:
        labels.append("result")
    films = []
    for name in names:
        frames = [to_rgb(record_at(profile[name], step, 0)) for step in steps]
        if result is not None:
            is_last_latent = is_latent(profile[name]) and "final_sample" in profile
            frames.append(_latent_result(profile) if is_last_latent else to_rgb(result))
        frames = [thumbnail(frame, _FILM_SIZE) for frame in frames]
        height, width = frames[0].shape[:2]
        caption, alt = _TITLES["x0" if name == "images" else name]
        if is_latent(profile[name]):
            caption += f", {_LATENT}"
        uri = png_data_uri(np.concatenate(frames))
        films.append({"uri": uri, "alt": alt, "caption": caption, "aspect": f"{width}/{height}"})
    last = len(labels) - 1
    return {"films": films, "labels": labels, "last": last, "start": round(_FILM_START * last)}


def _latent_result(profile: DiffusionProfile) -> np.ndarray:
    """The last state, which is latent too."""
    return to_rgb(record_at(profile["final_sample"].expand_dims(step=[0]), 0, 0))


def _shaded(profile: DiffusionProfile, mask: np.ndarray) -> np.ndarray:
    """The first result, dark outside of `mask`; the mask itself where there is no result of its size."""
    white = np.full((*mask.shape, 3), 255, np.uint8)
    result = result_image(profile, 0)
    image = white if result is None else to_rgb(result)
    factors = [size // own for size, own in zip(image.shape, mask.shape, strict=False)]
    enlarged = mask.repeat(max(factors[0], 1), axis=0).repeat(max(factors[1], 1), axis=1)  # a mask of latents
    image, mask = (image, enlarged) if image.shape[:2] == enlarged.shape else (white, mask)
    return np.where(mask[:, :, None], image, image // 4)
