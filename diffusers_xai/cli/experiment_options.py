"""What an experiment takes of the options of `diffusers-xai experiment`: labels, prompts, functions, its own."""

import argparse
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline

from diffusers_xai.checkpoints import part_of_face
from diffusers_xai.cli.base import CommandError
from diffusers_xai.cli.options import spoken
from diffusers_xai.cli.pipelines import pipeline_of_prompts
from diffusers_xai.cli.requests import default_labels, named_function, parse_label, region, sample_size
from diffusers_xai.experiments import EXPERIMENTS
from diffusers_xai.experiments.base import ALL_LABELS, SPANNED_LABELS, Experiment
from diffusers_xai.experiments.patching import EACH
from diffusers_xai.hub.cards import read_facts
from diffusers_xai.labels import label_from_bits, labels_between
from diffusers_xai.pipelines.patch_sweep import branches_of
from diffusers_xai.prompts import without, words_of


FUNCTIONS = ("judge", "measure", "concepts")  # options that name a function of the user's, as FILE:FUNCTION
OWN = ("between", "branch", "measure")  # options of a single experiment
MIN_IMAGES = 50  # of a label that counts as trained


def user_functions(args: argparse.Namespace) -> dict[str, Callable]:
    """The user's functions by option.

    Raises:
        CommandError: if there is none of that name, or its file cannot be run.
    """
    given = {name: getattr(args, name) for name in FUNCTIONS}
    return {name: named_function(text, f"--{name}") for name, text in given.items() if text is not None}


def takes_prompt(args: argparse.Namespace) -> bool:
    """Whether a pipeline with a prompt is explained, not one of labels."""
    experiment = EXPERIMENTS.get(args.name)
    if experiment is None:
        return False
    asked = args.prompt is not None or args.other_prompt is not None
    return experiment.needs == "prompt" or (experiment.may_take in ("prompt", "prompts") and asked)


def prompt_pipeline(args: argparse.Namespace) -> type[DiffusionPipeline]:
    """The class of the pipeline with a prompt.

    Raises:
        CommandError: if the checkpoint's takes none.
    """
    kind = pipeline_of_prompts(args)
    if kind is None:
        raise CommandError(
            f"expected a --checkpoint of diffusers whose pipeline takes a prompt, got {spoken(args.checkpoint)}"
        )
    return kind


def guidance_scale(args: argparse.Namespace) -> float:
    """The guidance that was asked for; by default none, of a pipeline with a prompt its own."""
    if args.guidance_scale is not None:
        return args.guidance_scale
    if not takes_prompt(args):
        return 1.0
    parameter = inspect.signature(prompt_pipeline(args).__call__).parameters.get("guidance_scale")
    return float(parameter.default) if parameter is not None and isinstance(parameter.default, (int, float)) else 1.0


def labels_to_compare(args: argparse.Namespace, config: dict[str, Any]) -> list[int]:
    """The labels of `--label` and `--other-label`; none of a checkpoint that takes none."""
    if config.get("num_class_embeds") is None:
        for option, text in (("--label", args.label), ("--other-label", args.other_label)):
            if text is not None:
                raise CommandError(f"{option}: expected none, as this checkpoint takes no labels, got {text}")
        return []
    defaults = default_labels(config)
    first = defaults[0] if args.label is None else parse_label(args.label, config)
    if args.other_label is not None:
        second = parse_label(args.other_label, config, "--other-label")
    else:
        second = next(label for label in reversed(defaults) if label != first)
    if first == second:
        raise CommandError(f"--other-label: expected another label than --label, got {second} for both")
    return [first, second]


def labels_of(
    experiment: Experiment, args: argparse.Namespace, config: dict[str, Any], compared: list[int]
) -> list[int]:
    """The labels that an experiment samples, where two of them are `compared`."""
    if experiment.labels == ALL_LABELS:
        return _trained_labels(args, config)
    if args.between == "seeds":
        return compared[:1]
    if experiment.labels == SPANNED_LABELS:
        first, second = compared
        return labels_between(first, second, config.get("class_attributes") or ())
    return compared[: experiment.labels]


def _trained_labels(args: argparse.Namespace, config: dict[str, Any]) -> list[int]:
    """The labels with enough training images, where the checkpoint's `card.json` tells; all of them otherwise."""
    folder = Path(args.checkpoint)
    counts = read_facts(folder).get("label_counts") if folder.is_dir() else None
    if counts is None:
        return list(range(config["num_class_embeds"]))
    return [label_from_bits(bits) for bits, _, count in counts if count >= MIN_IMAGES]


def check_own(args: argparse.Namespace) -> None:
    """Refuses what a single experiment takes, of others, and a branch that the run to patch does not have.

    Raises:
        CommandError: for such an option.
    """
    for option in OWN:
        value = getattr(args, option)
        if value is not None and not (args.name in EXPERIMENTS and EXPERIMENTS[args.name].takes(option)):
            raise CommandError(f"--{option}: expected none, as {args.name} takes none, got {value}")
    if args.between == "seeds" and args.other_label is not None:
        raise CommandError(f"--other-label: expected none between seeds, got {args.other_label}")
    if args.branch is not None and not takes_prompt(args):  # of a prompt, the pipeline's first step tells them
        branches = branches_of(guidance_scale(args))
        if args.branch not in ((*branches, EACH) if len(branches) > 1 else branches):
            known = ", ".join(branches)
            if args.branch == EACH:
                raise CommandError(f"--branch each: expected a run with --guidance-scale, got one with {known} alone")
            raise CommandError(f"--branch: expected a branch of the run, got {args.branch}; available: {known}")


def options_of(experiment: Experiment, args: argparse.Namespace, config: dict[str, Any]) -> dict[str, Any]:
    """The options of an experiment's `measure`, functions by their name.

    Raises:
        CommandError: for an option that it does not take, or one that it lacks.
    """
    name, takes = experiment.name, (experiment.needs, experiment.may_take)
    options: dict[str, Any] = {"null": args.null or experiment.nulls[0]}
    if options["null"] not in (*experiment.nulls, "none"):
        known = ", ".join((*experiment.nulls, "none"))
        raise CommandError(f"--null: expected one that {name} knows, got {args.null}; available: {known}")
    if experiment.region is not None:
        size = sample_size(config)
        options["mask"] = region(args.mask, part_of_face(experiment.region, args.checkpoint, size), size)
    elif args.mask is not None and experiment.takes("mask"):
        options["mask"] = region(args.mask, size=None if takes_prompt(args) else sample_size(config))
    options |= {key: getattr(args, key) for key in OWN if getattr(args, key) is not None}
    if experiment.judged and args.judge is not None:
        options["judge"] = args.judge
    options |= _prompts(experiment, args)
    if experiment.needs == "concepts" and args.concepts is None:
        raise CommandError(
            f"{name}: expected --concepts FILE:FUNCTION, which tells where the parts of images are, got none"
        )
    if args.concepts is not None:
        if "concepts" not in takes:
            raise CommandError(f"--concepts: expected none, as {name} takes no concepts, got {args.concepts}")
        options["concepts"] = args.concepts
    return options


def _prompts(experiment: Experiment, args: argparse.Namespace) -> dict[str, Any]:
    """The prompts and words of an experiment that takes some."""
    name = experiment.name
    if experiment.needs == "prompt":
        if args.prompt is None:
            raise CommandError(f"{name}: expected a --prompt, got none")
        words = args.words or words_of(args.prompt)
        for word in words:
            without(args.prompt, word)  # before anything is loaded
        if args.other_prompt is not None:
            raise CommandError(f"--other-prompt: expected none, as {name} takes one prompt, got {args.other_prompt!r}")
        return {"prompt": args.prompt, "words": words}
    if args.words is not None:
        raise CommandError(f"--words: expected none, as {name} takes none, got {', '.join(args.words)}")
    if experiment.may_take == "prompt" and args.prompt is not None:
        if args.other_prompt is not None:
            raise CommandError(f"--other-prompt: expected none, as {name} takes one prompt, got {args.other_prompt!r}")
        return {"prompt": args.prompt}
    if experiment.may_take == "prompts" and takes_prompt(args) and args.between == "seeds":
        if args.prompt is None or args.other_prompt is not None:
            got = "no --prompt" if args.prompt is None else f"--other-prompt {args.other_prompt!r}"
            raise CommandError(f"{name}: expected a --prompt and no --other-prompt between seeds, got {got}")
        return {"prompts": [args.prompt]}
    if experiment.may_take == "prompts" and takes_prompt(args):
        if None in (args.prompt, args.other_prompt) or args.prompt == args.other_prompt:
            got = " and ".join(repr(text) for text in (args.prompt, args.other_prompt) if text is not None) or "none"
            raise CommandError(f"{name}: expected a --prompt and another --other-prompt, got {got}")
        return {"prompts": [args.prompt, args.other_prompt]}
    if args.other_prompt is not None or args.prompt is not None:
        given = args.prompt if args.other_prompt is None else args.other_prompt
        raise CommandError(f"{name}: expected neither --prompt nor --other-prompt, got {given!r}")
    return {}
