"""The figures of the page, each with the sentences that teach how to read it."""

import html

import numpy as np

from diffusers_xai import plots
from diffusers_xai.plots.over_frames import is_of_sound
from diffusers_xai.plots.style import has_positions, is_latent, layers_over_time, layers_with_maps, predicted_images
from diffusers_xai.profile import DiffusionProfile
from diffusers_xai.report.gradients import gradient_sections
from diffusers_xai.report.page import Section, render
from diffusers_xai.report.words import changes


_LAYER_NAMES = (
    " Layers are named as in the thesis: downs contract the image, mid_attn is the bottleneck, ups expand it again."
)
_LATENT = (
    " This model works on a compressed form of the image, the latent: three of its channels are shown as colours."
)


def sections(profile: DiffusionProfile, mask: np.ndarray | None, edited: DiffusionProfile | None) -> list[str]:
    """HTML of a section for everything that the profile holds, and that another run of it shows."""
    found = _of_process(profile, mask) + gradient_sections(profile, mask)
    return [render(section) for section in found + (_of_pair(profile, edited) if edited is not None else [])]


def _of_process(profile: DiffusionProfile, mask: np.ndarray | None) -> list[Section]:
    found = []
    if "samples" in profile and has_positions(profile["samples"]):
        found.append(
            Section(
                "From noise to image",
                "The process begins with pure noise and takes a little of it away at every step. Each picture is the"
                " state x<sub>t</sub> that the network receives at time t, which runs from T down to 0."
                f"{_LATENT if is_latent(profile['samples']) else ''}",
                "A row of images at equal distances in time, from noise on the left to the result on the right.",
                "Thesis fig. 5.3.",
                lambda: plots.process_strip(profile),
                wide=True,
            )
        )
    predicted = predicted_images(profile)
    if predicted is not None:
        found.append(
            Section(
                "What the network predicts along the way",
                "At every step the network's output implies a guess of the finished image, x̂<sub>0</sub>. The first"
                " guesses are blurred averages of all that is still possible; large shapes and colours are decided"
                " early, details late.",
                "A row of predicted images at the same times, from a blur on the left to the result on the right.",
                "x̂<sub>0</sub> is computed from x<sub>t</sub> and the network's output by the scheduler"
                f"{', and decoded by the autoencoder' if predicted == 'images' else ''}.",
                lambda: plots.process_strip(profile, predicted),
                wide=True,
            )
        )
    if "word_maps" in profile and is_of_sound(profile["word_maps"]):
        found.append(
            Section(
                "When the sound listens to each word",
                "While the network denoises, each moment of the sound divides its attention among the words of the"
                " prompt. A map is bright where the share that goes to its word is greatest: from left to right runs"
                " the sound, from top to bottom the process, from noise to the result. Each map has its own colour"
                " range.",
                "One map per word: the moments of the sound across, the times of the process down.",
                "Softmax weights from the sound's frames to text, the mean over heads and layers (Tang et al. 2023).",
                lambda: plots.word_maps(profile),
                wide=True,
            )
        )
    if "word_maps" in profile and has_positions(profile["word_maps"]):
        found.append(
            Section(
                "Where the image looks at each word",
                "While the network denoises, each place of the image divides its attention among the words of the"
                " prompt. A map is bright where the share that goes to its word is greatest; it lies over the image"
                " that is predicted then, the mean of all over the result. Each map has its own colour range, so that"
                " even noise shows places: where a word has no clear one, its maps are patchy and differ from step to"
                " step.",
                "A grid of maps over predicted images: one row per word, one column per time, and their mean.",
                "Softmax weights from image to text, the mean over heads and layers (Tang et al. 2023).",
                lambda: plots.word_maps(profile),
                wide=True,
            )
        )
    if "measures/ssim" in profile or _can_compare_samples(profile):
        found.append(
            Section(
                "How much the image changes",
                "SSIM compares each state with the next: 1 means that nothing visible changed, 0 that they have no"
                " structure in common. The curve is mostly that of the noise schedule: noising a finished image"
                " gives nearly the same one.",
                "A line of the structural similarity of neighbouring states over time.",
                "Thesis eq. 4.1.8, fig. 5.6.",
                lambda: plots.ssim_trajectory(profile),
            )
        )
    layers = layers_over_time(profile)
    if layers:
        stride = _stride(profile, layers[0])
        found.append(
            Section(
                "When the layers change",
                "LayerDist is the distance between a layer's activations at one recorded step and the next"
                f" ({stride}). A peak marks a time at which the layer begins to respond to something else. The axis"
                " is logarithmic: compare the shapes of the curves, not their heights, which depend on the size of the"
                " layer. A click on a name hides or shows its curve.",
                "One line per layer: the distance of its activations between recorded steps, over time.",
                f"Thesis eq. 4.1.10, fig. 5.7.{_LAYER_NAMES if profile.layer_aliases else ''}",
                lambda: plots.layer_distances(profile),
            )
        )
    if "attention_outputs" in profile and has_positions(profile["attention_outputs"]):
        found.append(
            Section(
                "Where attention works",
                "A<sub>t</sub> adds the outputs of all attention layers, enlarged to the size of the image, at the"
                " same times as above. Bright places are those that attention adds most to. Each map has its own"
                " colour range, so compare places within a map, not brightness between maps.",
                "A row of attention maps at the times of the first strip, and the result.",
                "Thesis section 4.3, fig. 4.4.",
                lambda: plots.attention_strip(profile),
                wide=True,
            )
        )
    if "attention_outputs" in profile and is_of_sound(profile["attention_outputs"]):
        found.append(
            Section(
                "When attention works",
                "A<sub>t</sub> adds the outputs of all attention layers, stretched to the length of the sound. From"
                " left to right runs the sound, from top to bottom the process. Bright places are those that attention"
                " adds most to.",
                "A map per sample: the moments of the sound across, the times of the process down.",
                "Thesis section 4.3, there of images.",
                lambda: plots.attention_strip(profile),
                wide=True,
            )
        )
    if layers_with_maps(profile):
        chosen = " It is chosen within the region shown at the top." if mask is not None else ""
        found.append(
            Section(
                "What single channels see",
                "Of the many channels of a layer, c* is the one with the greatest total activation at that step."
                f"{chosen} Its map shows where the layer responds, each map in its own colour range. From top to"
                " bottom the rows follow the network; coarse maps come from deep inside it.",
                "A grid of channel maps: one row per layer, one column per time.",
                "Thesis eq. 4.1.4, fig. 5.5.",
                lambda: plots.max_channel_maps(profile, mask=mask),
                wide=True,
            )
        )
    return found


def _stride(profile: DiffusionProfile, layer: str) -> str:
    steps = profile[f"activations/{layer}"]["step"].values
    distances = set(np.diff(steps).tolist())
    if len(distances) > 1:
        return "not equally spaced"
    distance = distances.pop()
    return "one step apart" if distance == 1 else f"{distance} steps apart"


def _of_pair(profile: DiffusionProfile, edited: DiffusionProfile) -> list[Section]:
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
    if all(_can_compare_samples(run) for run in (profile, edited)):
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


def _can_compare_samples(profile: DiffusionProfile) -> bool:
    """Whether there are two states of at least the size of SSIM's window."""
    if "samples" not in profile:
        return False
    sizes = profile["samples"].sizes
    is_image = has_positions(profile["samples"]) and "frame" not in sizes
    return is_image and sizes["step"] + ("final_sample" in profile) > 1 and min(sizes["height"], sizes["width"]) >= 7
