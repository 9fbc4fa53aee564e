"""Settings as a link, and back."""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import urlencode

from diffusers_xai.app.models import Model
from diffusers_xai.app.settings import OWN_SCHEDULER, Limits, Settings, SettingsError, shortened
from diffusers_xai.measures import mask_from_runs, mask_to_runs


NAMES = {
    "model", "label", "seed", "steps", "every", "scheduler", "guidance", "layers", "weights", "gradients", "mask",
    "ablate", "switch",
}  # fmt: skip
MAX_LENGTH = 2**15


def to_query(settings: Settings) -> str:
    """The settings as the query of a link, `?seed=…`."""
    values: dict[str, Any] = {"seed": settings.seed, "steps": settings.steps, "every": settings.every}
    if settings.label is not None:
        values["label"] = settings.label
    values["model"] = settings.model
    if settings.scheduler != OWN_SCHEDULER:
        values["scheduler"] = settings.scheduler
    if settings.guidance != 1:
        values["guidance"] = f"{settings.guidance:g}"
    values["layers"] = ",".join(settings.layers)
    if settings.weights:
        values["weights"] = 1
    values["gradients"] = int(settings.gradients)
    if settings.mask is not None:
        values["mask"] = settings.mask
    if settings.ablations:
        values["ablate"] = ",".join(f"{layer}:{channel}" for layer, channel in settings.ablations)
    if settings.switch_at is not None:
        values["switch"] = f"{settings.switch_at}:{settings.switch_to}"
    return "?" + urlencode(values)


def from_query(query: Mapping[str, str], models: Mapping[str, Model], limits: Limits, **defaults: Any) -> Settings:
    """The settings of a link; what it does not name is the model's default.

    Args:
        query (`Mapping[str, str]`): The parameters, see `NAMES`.
        models (`Mapping[str, Model]`): What can be chosen; the first one if the link names none.
        limits (`Limits`): What may be asked of the server.
        defaults: Fields of `Settings`.

    Raises:
        SettingsError: If the link is damaged, names what there is not, or asks for too much; the text says which.
    """
    if sum(map(len, query.values())) > MAX_LENGTH:
        raise SettingsError(
            f"Expected a link of at most {MAX_LENGTH} characters, got a longer one: the settings stay as they are."
        )
    name = query.get("model", next(iter(models)))
    if name not in models:
        raise SettingsError(
            f"Expected a link to a model that is offered here, got {shortened(name)}; available: {', '.join(models)}."
        )
    model = models[name]
    try:
        settings = _read(query, model, model.default(limits, **defaults))
    except (ValueError, KeyError, TypeError, IndexError, OverflowError, RecursionError) as error:
        raise SettingsError("This link is damaged: the settings stay at their defaults.") from error
    named = {*settings.layers, *(layer for layer, _ in settings.ablations)}
    labels = {settings.label or 0, settings.switch_to} - {model.null_label}
    if not named <= set(model.layers) or not labels <= set(range(max(model.classes, 1))):
        raise SettingsError(f"Expected a link to layers and labels that {model.name} has, got others.")
    model.check_layers(settings.layers)
    model.check_channels(settings.ablations)
    if settings.guidance != 1 and model.null_label is None:
        raise SettingsError(
            f"Expected a link without guidance, as {model.name} has no null label, got {settings.guidance:g}."
        )
    return settings.check(model.limits(limits))


def _read(query: Mapping[str, str], model: Model, default: Settings) -> Settings:
    changes: dict[str, Any] = {name: _whole(query[name]) for name in ("seed", "steps", "every") if name in query}
    if "label" in query and model.classes:
        changes["label"] = _whole(query["label"])
    if "layers" in query:
        changes["layers"] = tuple(layer for layer in query["layers"].split(",") if layer)
    for name in ("weights", "gradients"):
        if name in query:
            changes[name] = {"0": False, "1": True}[query[name]]
    if "scheduler" in query:
        changes["scheduler"] = query["scheduler"]
    if "guidance" in query:
        changes["guidance"] = _number(query["guidance"])
    if "mask" in query:
        runs = json.loads(query["mask"])
        if tuple(runs["size"]) != model.size or len(runs["runs"]) > 4096 or min(runs["runs"]) < 0:
            raise ValueError("mask")
        if sum(runs["runs"]) != model.size[0] * model.size[1]:
            raise ValueError("mask")
        changes["mask"] = json.dumps(mask_to_runs(mask_from_runs(runs)))
    pairs = [pair.rsplit(":", 1) for pair in query.get("ablate", "").split(",") if pair]
    changes["ablations"] = tuple((layer, _whole(channel)) for layer, channel in pairs)
    if "switch" in query:
        at, to = query["switch"].split(":")
        changes |= {"switch_at": _whole(at), "switch_to": _whole(to)}
    return replace(default, **changes)


def _whole(text: str) -> int:
    """A whole number as a link writes it: Python would also take digits of other scripts, and blanks."""
    if re.fullmatch(r"-?[0-9]{1,20}", text) is None:
        raise ValueError(text)
    return int(text)


def _number(text: str) -> float:
    if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text) is None:
        raise ValueError(text)
    return float(text)
