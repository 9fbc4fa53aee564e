"""The sections on gradients: what the region of interest depends on."""

import numpy as np

from diffusers_xai import plots
from diffusers_xai.plots.label_sensitivity import channel_names
from diffusers_xai.plots.style import has_positions, layers_with_maps
from diffusers_xai.profile import DiffusionProfile
from diffusers_xai.report.page import Section


_OUTPUTS = {
    "noise": "the noise that the network predicts",
    "step": "the mean of the next state",
    "x0": "the predicted image x̂<sub>0</sub>",
}


def gradient_sections(profile: DiffusionProfile, mask: np.ndarray | None) -> list[Section]:
    """A section for each kind of gradient that the profile holds."""
    region = "outlined region" if mask is not None or "gradient_energy" not in profile else "whole image"
    found = []
    of_pixels = [name for name in ("gradient_energy", "gradient_volume") if _lies_on_image(profile, name)]
    if of_pixels:
        estimate = _spec(profile, "GradientEnergy")
        probes = f", estimated from {estimate['probes']} random projections" if estimate else ""
        found.append(
            Section(
                f"Which pixels the {region} depends on",
                f"A pixel of the lower maps is bright where a change of the input x<sub>t</sub> would change"
                f" {_output(profile)} in the {region}. While there is much noise, each pixel's noise is read off that"
                " pixel alone; the less noise there is, the more the network looks around it. Colours are logarithmic"
                " and the same in all maps.",
                "Predicted images above maps of the gradient's energy, at equal distances in time.",
                f"The energy of an input pixel is √Σ<sub>k</sub> g<sub>k</sub>² over the output pixels k{probes}."
                " Thesis eq. 4.1.2, fig. 5.8.",
                lambda: plots.gradient_energy(profile, mask=mask),
                wide=True,
            )
        )
    if "gradient_volume" in of_pixels:
        found.append(
            Section(
                "The same, pixel by pixel",
                "The gradient volume tells how every output pixel of the region depends on every input pixel. Each"
                " point is one such pair whose value is above the volume's mean. Points on thin lines mean that every"
                " pixel depends on itself alone; a cloud means that it depends on much of the image. Drag a scene to"
                " turn it.",
                "Scenes of points in space: input column, input row and output pixel, one per time.",
                "Thesis eq. 4.1.2, alg. 4, fig. 5.8.",
                lambda: plots.gradient_volume(profile),
                wide=True,
            )
        )
    if "label_sensitivity" in profile and profile["label_sensitivity"].sizes["channel"] > 1:
        names = channel_names(profile, profile["label_sensitivity"].sizes["channel"])
        found.append(
            Section(
                "Which attribute would change these pixels",
                f"How strongly {_output(profile)} in the region responds to each of the label's {len(names)}"
                " attributes, as a share of them all. The sum below each group is the strength of that response: it"
                " tells when the label matters at all. These are slopes at the label that was sampled, not effects of"
                " a whole change.",
                "Groups of bars, one bar per attribute of the label and one group per time.",
                "Root mean square over the region's pixels of ∂/∂y, the gradient by the label.",
                lambda: plots.label_sensitivity(profile),
            )
        )
    if layers_with_maps(profile, "gradient_maps"):
        found.append(
            Section(
                "Through which places the layers act on it",
                f"g<sub>l,t</sub> is the gradient of {_output(profile)}, summed over the {region}, by a layer's"
                " output; drawn is the channel c* with the greatest total. Where it is orange, more of that channel"
                " would raise the sum, where it is blue, lower it, and white places do not matter. Each map has its"
                " own range.",
                "A grid of gradient maps: one row per layer, one column per time.",
                "Thesis section 4.3, fig. 5.9.",
                lambda: plots.gradient_maps(profile),
                wide=True,
            )
        )
    if layers_with_maps(profile, "gradient_attention"):
        spec = _spec(profile, "GradientAttention") or {}
        score = "a judge's score" if spec.get("judge") else f"the sum over the {region}"
        found.append(
            Section(
                "By which places the layers raise it",
                f"Each channel of a layer is weighted by how much it raises {score} of"
                f" {_OUTPUTS.get(spec.get('of', ''), 'the output')}, on average over its places, and the channels are"
                " added up. Bright places raise the score; what lowers it is not shown. Each map has its own range.",
                "A grid of maps: one row per layer, one column per time.",
                "Liu et al. 2020, gradient attention: ReLU Σ<sub>k</sub> α<sub>k</sub> A<sub>k</sub>.",
                lambda: plots.gradient_attention(profile),
                wide=True,
            )
        )
    return found


def _lies_on_image(profile: DiffusionProfile, name: str) -> bool:
    return name in profile and has_positions(profile[name])


def _spec(profile: DiffusionProfile, kind: str, **values: object) -> dict | None:
    """The request of that class in the profile, with these values where given."""
    for spec in profile.provenance.get("record", []):
        if spec.get("type") == kind and all(spec.get(name) == value for name, value in values.items()):
            return spec
    return None


def _output(profile: DiffusionProfile) -> str:
    spec = _spec(profile, "GradientVolume") or _spec(profile, "GradientMaps") or {}
    return _OUTPUTS.get(spec.get("of", ""), "the output")
