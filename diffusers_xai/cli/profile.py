"""`diffusers-xai profile`: samples one image and writes its diffusion profile with a report."""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from diffusers_xai.cli.base import PROGRAM, CommandError, say
from diffusers_xai.cli.output import check_disk, check_out, new_folder
from diffusers_xai.cli.pipelines import EYES, add_pipeline_options, load_pipeline, num_threads, positive
from diffusers_xai.cli.requests import (
    DEFAULT_LABEL,
    class_labels,
    layers_of_max_channels,
    parse_ablation,
    parse_switches,
    region,
    resolve_ablations,
)
from diffusers_xai.denoisers import Denoiser, get_denoiser
from diffusers_xai.explainers import (
    Activations,
    AttentionOutputs,
    GradientEnergy,
    GradientMaps,
    GradientVolume,
    Samples,
)
from diffusers_xai.interventions import ChannelAblation
from diffusers_xai.pipelines import XAIPipeline
from diffusers_xai.plots.style import layers_with_maps
from diffusers_xai.profile import DiffusionProfile
from diffusers_xai.recording import EditSpec, RecordSpec
from diffusers_xai.report import write_report


# Attention layers and block outputs, by their article-style names.
_LAYERS = ("downs.*.2.fn", "downs.*.3", "mid_attn.fn", "mid_block2", "ups.*.2.fn", "ups.*.3")
# The scheduler's step is the identity but for a little: the predicted noise shows more of the network.
_GRADIENTS_OF = "noise"
_PROBES = 16
_VOLUME_TIMES = (0.95, 0.6, 0.1)  # parts of the training's timesteps; thesis fig. 5.8
# About how many steps to record, and how many bytes at most.
_RECORDED_STEPS, _PROFILE_BYTES = 100, 48e6
_GRADIENT_STEPS, _GRADIENT_BYTES = 10, 8e6
_VOLUME_BYTES = 16e6
_EDITED = "edited"


def add_command(commands: Any) -> None:
    """Adds the subcommand to the parser's `commands`."""
    parser = commands.add_parser(
        "profile",
        help="sample one image and write its diffusion profile with a report",
        description="Samples one image, records how it was formed, and writes the profile with report.html inside.",
    )
    parser.set_defaults(run=run)
    add = parser.add_argument
    add(
        "--label",
        help="what to generate: bits of the attributes (0011), names of those that hold (Smiling,Wearing_Lipstick), or"
        " an integer (3). As many digits 0 and 1 as there are attributes are always bits. Default: 0011",
    )
    add("--seed", type=int, default=321, metavar="INT", help="seed of the noise. Default: 321")
    add("--out", type=Path, default=Path("profile"), metavar="DIR", help="folder to write. Default: profile")
    add("--overwrite", action="store_true", help="replace the profile that is at --out, once the new one is complete")
    add("--steps", type=positive, default=1000, metavar="N", help="number of denoising steps. Default: 1000")
    add("--guidance-scale", type=float, default=1.0, metavar="W", help="classifier-free guidance. Default: 1.0, none")
    add(
        "--layers",
        nargs="+",
        metavar="GLOB",
        help="layers to record, as module paths or article-style names (downs.*.2.fn). Default: all attention layers"
        " and, where they have such names, the outputs of the blocks",
    )
    add(
        "--every",
        type=positive,
        metavar="N",
        help="record every N-th step. Default: so that about 100 steps are kept and the profile stays near 60 MB",
    )
    area = parser.add_mutually_exclusive_group()
    area.add_argument(
        "--mask",
        type=Path,
        metavar="IMAGE",
        help="region of interest: the bright part of this image, which is of the samples' size. Gradients are those of"
        " its pixels, max channels are chosen within it",
    )
    area.add_argument(
        "--box",
        type=int,
        nargs=4,
        metavar=("LEFT", "TOP", "RIGHT", "BOTTOM"),
        help="region of interest: a rectangle in pixels, right and bottom excluded. Default: the eyes"
        f" ({' '.join(map(str, EYES))}) with the model inside the package, else the whole image",
    )
    add("--no-gradients", action="store_true", help="leave out gradients, and the default region with them")
    add(
        "--ablate",
        type=parse_ablation,
        action="append",
        default=[],
        metavar="LAYER:CHANNEL[,CHANNEL…]",
        help="sample again with these channels of the layer's output set to zero, and compare; max is the layer's max"
        " channel in the region at t = 200. Repeatable",
    )
    add(
        "--switch",
        action="append",
        default=[],
        metavar="STEP:LABEL",
        help="sample again with another label from this step on, counted from 0, and compare. Repeatable, and together"
        " with --ablate",
    )
    add_pipeline_options(parser)


def run(args: argparse.Namespace) -> None:
    """Samples, records and writes.

    Raises:
        CommandError, ValueError, KeyError, TypeError, RuntimeError, OSError: for a request that cannot be met.
    """
    check_out(args.out, args.overwrite)
    if args.checkpoint is None and not (args.mask or args.box or args.no_gradients):
        args.box = EYES
    if args.mask:
        region(args.mask)  # before a checkpoint is downloaded
    say(f"Loading {args.checkpoint or 'the model inside the package'}")
    pipe = load_pipeline(args)
    denoiser, config, size = get_denoiser(pipe), pipe.unet.config, _sample_size(pipe)
    labels = class_labels(args.label, config)
    mask = region(args.mask, args.box, size)
    pipe.scheduler.set_timesteps(args.steps)
    calls = len(pipe.scheduler.timesteps)  # some schedulers call the network twice in a step
    train_timesteps = pipe.scheduler.config.get("num_train_timesteps", 1000)
    layers = args.layers or _default_layers(denoiser)
    needed = layers_of_max_channels(args.ablate, denoiser)
    layers = [*layers, *sorted(set(needed) - set(denoiser.resolve_layers(layers) if layers else {}))]
    switches = parse_switches(args.switch, config, calls)

    def sample(steps: int, record: list[RecordSpec], edits: Sequence[EditSpec] = ()) -> DiffusionProfile:
        with num_threads(args):
            output: Any = pipe(
                class_labels=labels,
                num_inference_steps=steps,
                generator=[torch.Generator().manual_seed(args.seed)],
                guidance_scale=args.guidance_scale,
                record=record,
                edits=edits,
            )
        return output.profile

    def ablations(intact: DiffusionProfile) -> list[ChannelAblation]:
        return resolve_ablations(args.ablate, denoiser, intact, mask, train_timesteps)

    def planned_bytes(record: list[RecordSpec]) -> int:
        with num_threads(args):
            return pipe.plan(record, num_inference_steps=args.steps, guidance_scale=args.guidance_scale).nbytes

    record = _specs(denoiser, layers, every=1)
    all_bytes = planned_bytes(record)  # at every step
    every = args.every or _stride(calls, _RECORDED_STEPS, all_bytes, _PROFILE_BYTES)
    gradients: list[RecordSpec] = []
    if not args.no_gradients:
        gradients = _gradient_specs(mask, layers, _stride(calls, _GRADIENT_STEPS, all_bytes, _GRADIENT_BYTES))
    volume = GradientVolume(mask=mask, of=_GRADIENTS_OF, timesteps=[time * train_timesteps for time in _VOLUME_TIMES])
    has_volume = bool(gradients) and mask is not None and planned_bytes([volume]) <= _VOLUME_BYTES
    if gradients and mask is not None and not has_volume:
        say("The region is too large for its gradient volume: only the energy is estimated")

    # One step shows what is wrong with the request before the long run.
    pipe.set_progress_bar_config(disable=True)
    rehearsal = sample(1, [*record, *gradients])
    _check_mask(mask, rehearsal)
    if args.ablate:
        sample(1, [Samples()], ablations(rehearsal))
    gradients += [volume] if has_volume else []
    record = [*_specs(denoiser, layers, every), *gradients]
    check_disk(args.out, planned_bytes(record))

    say(f"Sampling {args.steps} steps" + (f", recording every {every}th" if every > 1 else ""))
    pipe.set_progress_bar_config(disable=False)
    profile = sample(args.steps, record)
    edited = None
    edits = [*ablations(profile), *switches]
    if edits:
        say("Sampling again with the changes")
        edited = sample(args.steps, [Samples(every=every)], edits)
    say("Writing the profile and its report")
    with new_folder(args.out) as folder:
        profile.save_pretrained(folder)
        if edited is not None:
            edited.save_pretrained(folder / _EDITED)
        if mask is not None:
            Image.fromarray(mask).save(folder / "mask.png")
        command = _command(args, labels, every)
        write_report(profile, folder / "report.html", mask=mask, edited=edited, command=command)
        written = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"Profile: {args.out} ({written / 1e6:.0f} MB)\nReport:  {args.out / 'report.html'}")


def _sample_size(pipe: XAIPipeline) -> tuple[int, int]:
    size = pipe.unet.config.sample_size
    return (size, size) if isinstance(size, int) else tuple(size)


def _default_layers(denoiser: Denoiser) -> list[str]:
    return list(_LAYERS if denoiser.aliases else denoiser.attention_outputs())


def _specs(denoiser: Denoiser, layers: Sequence[str], every: int) -> list[RecordSpec]:
    specs: list[RecordSpec] = [Samples(every=every)]
    if denoiser.attention_outputs():
        specs.append(AttentionOutputs(every=every))
    if layers:
        specs.append(Activations(layers=layers, every=every))
    return specs


def _gradient_specs(mask: np.ndarray | None, layers: Sequence[str], every: int) -> list[RecordSpec]:
    energy = GradientEnergy(mask=mask, of=_GRADIENTS_OF, probes=_PROBES, every=every)
    maps = [GradientMaps(layers=layers, mask=mask, of=_GRADIENTS_OF, every=every)] if layers else []
    return [energy, *maps]


def _stride(calls: int, count: int, all_bytes: int, budget: float) -> int:
    """Every which step to record, for about `count` of them within `budget`, where all take `all_bytes`."""
    return max(calls // count, math.ceil(all_bytes / budget), 1)


def _check_mask(mask: np.ndarray | None, profile: DiffusionProfile) -> None:
    """Raises if `mask` vanishes at the size of a recorded layer."""
    for layer in layers_with_maps(profile) if mask is not None else []:
        try:
            profile.max_channel(layer, step=0, mask=mask)
        except ValueError as error:
            raise CommandError(f"the region does not fit {layer}: {error}") from error


def _command(args: argparse.Namespace, labels: list[int] | None, every: int) -> list[str]:
    """The command with every default written out, so that it means the same in later versions."""
    command = [PROGRAM, "profile"]
    values = {**vars(args), "every": every, "label": (args.label or DEFAULT_LABEL) if labels else None}
    for name in ("label", "seed", "steps", "guidance_scale", "every", "scheduler", "checkpoint", "revision", "mask"):
        if values[name] is not None:
            command += [f"--{name.replace('_', '-')}", str(values[name])]
    if args.box:
        command += ["--box", *map(str, args.box)]
    if args.no_gradients:
        command.append("--no-gradients")
    for layer, channels in args.ablate:
        command += ["--ablate", f"{layer}:{','.join(map(str, channels))}"]
    for switch in args.switch:
        command += ["--switch", switch]
    if args.layers:
        command += ["--layers", *args.layers]
    return [*command, "--out", args.out.name]
