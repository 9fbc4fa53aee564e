"""What the arguments ask for: labels, regions of the image, edits."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffusers_xai.cli.base import CommandError
from diffusers_xai.denoisers import Denoiser
from diffusers_xai.denoisers.labels import encode_label
from diffusers_xai.interventions import ChannelAblation, LabelSwitch
from diffusers_xai.measures import mask_from_box, mask_from_png
from diffusers_xai.profile import DiffusionProfile


DEFAULT_LABEL = "0011"
MAX_CHANNEL = "max"
# Where c* is looked up for an ablation, as a part of the training's timesteps (thesis tables 5.1, 5.2: t = 200).
_MAX_CHANNEL_TIME = 0.2


def class_labels(text: str | None, config: Mapping[str, Any]) -> list[int] | None:
    """The labels to sample, `None` for an unconditional model."""
    if config.get("num_class_embeds") is not None:
        return [parse_label(text or DEFAULT_LABEL, config)]
    if text is not None:
        raise CommandError(f"--label {text}: this checkpoint takes no labels")
    return None


def parse_label(text: str, config: Mapping[str, Any], option: str = "--label") -> int:
    """The label that `text` names.

    Args:
        text (`str`): As many digits 0 and 1 as the label has bits (`"0011"`), an integer (`"3"`), or the attributes
            that hold, separated by commas (`"Smiling,Wearing_Lipstick"`).
        config (`Mapping[str, Any]`): The model's: `num_class_embeds`, `class_attributes`, `null_class_label`.
        option (`str`): Where `text` comes from, for the error.

    Raises:
        CommandError: if `text` names no label of the model.
    """
    count = config["num_class_embeds"]
    bits = (count - 1).bit_length()
    label: int | dict[str, bool]
    if len(text) == bits and set(text) <= {"0", "1"}:
        label = int(text, 2)
    elif text.removeprefix("-").isdecimal():
        label = int(text)
    else:
        label = {name.strip(): True for name in text.split(",")}
    try:
        return encode_label(label, count, config.get("null_class_label"), config.get("class_attributes"))
    except ValueError as error:
        raise CommandError(f"{option} {text}: {error}") from error


def region(
    mask: Path | None, box: Sequence[int] | None = None, size: tuple[int, int] | None = None
) -> np.ndarray | None:
    """The region of interest as a boolean array (height, width), `None` for the whole image.

    Raises:
        CommandError: if it is empty, cannot be read, or does not fit images of `size`.
    """
    option = f"--mask {mask}" if mask else f"--box {' '.join(map(str, box or ()))}"
    try:
        if mask is not None:
            return mask_from_png(mask, size)
        return None if box is None or size is None else mask_from_box(box, size)
    except OSError as error:
        raise CommandError(f"{option}: cannot be read as an image: {error}") from error
    except ValueError as error:
        raise CommandError(f"{option}: {error}") from error


def parse_ablation(text: str) -> tuple[str, tuple[int | str, ...]]:
    """`"downs.1.3:55,max"` -> `("downs.1.3", (55, "max"))`.

    Raises:
        argparse.ArgumentTypeError: for a text of another form.
    """
    layer, _, channels = text.rpartition(":")
    names = channels.split(",")
    if not layer or not all(name == MAX_CHANNEL or name.isdecimal() for name in names):
        raise argparse.ArgumentTypeError(
            f"expected LAYER:CHANNEL[,CHANNEL…] with channels as indices from 0 on or {MAX_CHANNEL}, got {text}"
        )
    return layer, tuple(name if name == MAX_CHANNEL else int(name) for name in names)


def layers_of_max_channels(ablations: Sequence[tuple[str, Sequence[int | str]]], denoiser: Denoiser) -> list[str]:
    """Module paths of the layers whose c* has to be known; each ablation names layers that exist.

    Raises:
        CommandError: if one does not.
    """
    paths = []
    for layer, channels in ablations:
        try:
            found = denoiser.resolve_layers([layer])
        except KeyError as error:
            raise CommandError(f"--ablate {layer}: {error.args[0]}") from error
        paths += list(found) if MAX_CHANNEL in channels else []
    return paths


def resolve_ablations(
    ablations: Sequence[tuple[str, Sequence[int | str]]],
    denoiser: Denoiser,
    intact: DiffusionProfile,
    mask: np.ndarray | None,
    train_timesteps: int,
) -> list[ChannelAblation]:
    """The edits, with c* looked up in the intact run: at t = 200 of 1000, within the mask."""
    edits = []
    for layer, channels in ablations:
        for path in denoiser.resolve_layers([layer]):
            indices = [
                intact.max_channel(path, timestep=_MAX_CHANNEL_TIME * train_timesteps, mask=mask)
                if channel == MAX_CHANNEL
                else int(channel)
                for channel in channels
            ]
            edits.append(ChannelAblation(path, channels=sorted(set(indices))))
    return edits


def parse_switches(texts: Sequence[str], config: Mapping[str, Any], calls: int) -> list[LabelSwitch]:
    """`["500:0011"]` -> a switch to the label 3 at step 500 of `calls`.

    Raises:
        CommandError: for a text of another form, a step outside of the run, or a label that the model does not have.
    """
    switches = []
    for text in texts:
        step, colon, label = text.partition(":")
        if not colon or not step.isdecimal():
            raise CommandError(f"--switch {text}: expected STEP:LABEL, such as 500:0011")
        if int(step) >= calls:
            raise CommandError(f"--switch {text}: expected a step in 0..{calls - 1}")
        if config.get("num_class_embeds") is None:
            raise CommandError(f"--switch {text}: this checkpoint takes no labels")
        switches.append(LabelSwitch(from_step=int(step), to=parse_label(label, config, f"--switch {step}:")))
    return switches
