"""What the arguments ask for of a certain checkpoint: labels, regions of the image, edits."""

import re
import runpy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffusers_xai.cli.base import CommandError
from diffusers_xai.cli.options import MAX_CHANNEL, MAX_SIDE
from diffusers_xai.denoisers import Denoiser
from diffusers_xai.interventions import ChannelAblation, LabelSwitch
from diffusers_xai.labels import encode_label, label_bits, label_from_bits
from diffusers_xai.measures import mask_from_box, mask_from_png
from diffusers_xai.profile import DiffusionProfile


# What the labels of the models inside the package mean, and the two that are taken by default.
_FACES = ("Bangs", "Male", "Smiling", "Wearing_Lipstick")
_FACE_LABELS = (0b0011, 0b0100)
# Where c* is looked up for an ablation, as a part of the training's timesteps (thesis tables 5.1, 5.2: t = 200).
_MAX_CHANNEL_TIME = 0.2


def default_labels(config: Mapping[str, Any]) -> tuple[int, int]:
    """Two labels that the model has: 0011 and 0100 of the faces' attributes, else the first two."""
    if tuple(config.get("class_attributes") or ()) == _FACES:
        return _FACE_LABELS
    labels = (label for label in range(config["num_class_embeds"]) if label != config.get("null_class_label"))
    return next(labels), next(labels, 0)


def chosen_label(text: str | None, config: Mapping[str, Any]) -> int | None:
    """The label to sample, `None` for an unconditional model.

    Raises:
        CommandError: if `text` names no label of the model.
    """
    if config.get("num_class_embeds") is None:
        if text is not None:
            raise CommandError(f"--label: expected none, as this checkpoint takes no labels, got {text}")
        return None
    return default_labels(config)[0] if text is None else parse_label(text, config)


def parse_label(text: str, config: Mapping[str, Any], option: str = "--label") -> int:
    """The label that `text` names.

    Args:
        text (`str`): A digit 0 or 1 for each attribute (`"0011"`), an integer (`"3"`), or the attributes that hold,
            separated by commas (`"Smiling,Wearing_Lipstick"`).
        config (`Mapping[str, Any]`): The model's: `num_class_embeds`, `class_attributes`, `null_class_label`.
        option (`str`): Where `text` comes from, for the error.

    Raises:
        CommandError: if `text` names no label of the model, or could mean two.
    """
    count = config["num_class_embeds"]
    attributes = list(config.get("class_attributes") or ())
    label: int | dict[str, bool]
    if attributes and re.fullmatch("[01]+", text) and len(text) in {len(attributes), *range(2, 64)}:
        if len(text) != len(attributes):
            number = int(text)
            hint = f"; the integer {number} is written {label_bits(number, attributes)}" if number < count else ""
            raise CommandError(
                f"{option} {text}: expected {len(attributes)} digits 0 or 1, one for each of {', '.join(attributes)},"
                f" got {len(text)}{hint}"
            )
        label = label_from_bits(text)
    elif re.fullmatch("-?(0|[1-9][0-9]{0,17})", text):
        label = int(text)
    elif attributes and not text[:1].isdecimal():
        names = [name.strip() for name in text.split(",")]
        if len(set(names)) < len(names):
            raise CommandError(f"{option} {text}: expected each attribute once")
        label = dict.fromkeys(names, True)
    else:
        bits = f", {len(attributes)} digits 0 or 1, or names from {', '.join(attributes)}" if attributes else ""
        raise CommandError(f"{option} {text}: expected an integer in 0..{count - 1}{bits}")
    try:
        return encode_label(label, count, config.get("null_class_label"), attributes or None)
    except ValueError as error:
        raise CommandError(f"{option} {text}: {error}") from error


def sample_size(config: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width of the model's images; 0 if its configuration does not tell them.

    Raises:
        CommandError: if it tells what no image has.
    """
    size = config.get("sample_size")
    if size is None:
        return 0, 0
    sides = list(size) if isinstance(size, (list, tuple)) else [size, size]
    if len(sides) != 2 or not all(isinstance(side, int) and 1 <= side <= MAX_SIDE for side in sides):
        raise CommandError(
            f"the checkpoint's network: expected `sample_size` of 1 to {MAX_SIDE} pixels, got {str(size)[:60]}"
        )
    return sides[0], sides[1]


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
    except ValueError as error:
        raise CommandError(f"{option}: {error}") from error
    except Exception as error:  # Pillow's decoders raise nearly any type for a file that is broken or too large
        why = str(error).replace(str(mask), mask.name if mask else "")[:200]  # a path may be very long
        raise CommandError(f"--mask {str(mask)[:200]}: cannot be read as an image: {why}") from error


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


def resolve_switches(
    switches: Sequence[tuple[int, str]], label: int | None, config: Mapping[str, Any], calls: int
) -> list[LabelSwitch]:
    """`[(500, "0011")]` -> a switch to the label 3 at step 500 of `calls`, of a run that begins with `label`.

    Raises:
        CommandError: for a step outside of the run, or a label that the model does not have or that is there already.
    """
    edits = []
    before = label
    for step, text in sorted(switches, key=lambda switch: switch[0]):
        option = f"--switch {step}:{text}"
        if step >= calls:
            raise CommandError(f"{option}: expected a step in 0..{calls - 1}, got {step}")
        if label is None:
            raise CommandError(f"{option}: expected no switch, as this checkpoint takes no labels")
        to = parse_label(text, config, f"--switch {step}:")
        if to == before:
            same = label_bits(to, config.get("class_attributes") or ())
            raise CommandError(f"{option}: expected another label than {same}, which holds already")
        edits.append(LabelSwitch(from_step=step, to=to))
        before = to
    return edits


def named_function(text: str, option: str) -> Callable:
    """The function that `FILE:FUNCTION` names.

    Raises:
        CommandError: if there is no such file or function, or the file cannot be run.
    """
    file, _, name = text.rpartition(":")
    if not Path(file).is_file():
        raise CommandError(f"{option} {text}: expected FILE:FUNCTION, got no file {file or text}")
    try:
        found = runpy.run_path(file)
    except (Exception, SystemExit) as error:  # of the user's code, which may also end the process
        raise CommandError(f"{option} {text}: {file}: {type(error).__name__}: {error}") from error
    if not callable(found.get(name)):
        functions = [key for key, value in found.items() if callable(value) and not key.startswith("_")]
        raise CommandError(f"{option} {text}: expected a function, got {name!r}, available {', '.join(functions)}")
    return found[name]
