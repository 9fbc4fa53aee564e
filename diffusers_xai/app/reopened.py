"""The settings of a profile from a file, as far as the controls can show them."""

import json
from collections.abc import Mapping
from typing import Any

from diffusers_xai import DiffusionProfile
from diffusers_xai.app.models import Model
from diffusers_xai.app.settings import OWN_SCHEDULER, SCHEDULERS, Limits, Settings, SettingsError


def settings_of(profile: DiffusionProfile, models: Mapping[str, Model], limits: Limits) -> Settings | None:
    """How a profile was made, or `None` if no model that is offered has made it, or the controls cannot say how."""
    facts = profile.provenance
    try:
        model = next(model for model in models.values() if _config(facts["model"]) == model.architecture)
        settings = _read(facts, model, model.default(limits).switch_to)
        named = {*settings.layers, *(layer for layer, _ in settings.ablations)}
        labels = {0 if settings.label is None else settings.label, settings.switch_to} - {model.null_label}
        if not named <= set(model.layers) or not labels <= set(range(max(model.classes, 1))):
            return None
        edits = json.loads(json.dumps([edit.to_dict() for edit in settings.edits()], default=str))
        if edits != facts["edits"] or facts.get("eta"):  # the controls cannot say how it was made
            return None
        model.check_layers(settings.layers)
        model.check_channels(settings.ablations)
        return settings.check(model.limits(limits))
    except (StopIteration, KeyError, TypeError, ValueError, IndexError, AttributeError, SettingsError):
        return None  # a file may hold anything


def _read(facts: Mapping[str, Any], model: Model, switch_to: int) -> Settings:
    specs = {spec["type"]: spec for spec in facts["record"]}
    edits = {kind: [edit for edit in facts["edits"] if edit["type"] == kind] for kind in _EDITS}
    gradients = specs.get("GradientVolume")
    switch = edits["LabelSwitch"][0] if edits["LabelSwitch"] else None
    mask = specs.get("GradientMaps", gradients)["mask"] if gradients else None  # whole in maps, thinned in a volume
    (seed,) = facts["seeds"]
    labels = facts.get("class_labels") or [None]
    return Settings(
        model=model.name,
        label=None if labels[0] is None else int(labels[0]),
        seed=int(seed),
        steps=int(facts["num_inference_steps"]),
        every=int(specs["Samples"]["every"] or 1),
        scheduler=_scheduler(facts["scheduler"], model),
        guidance=float(facts.get("guidance_scale", 1.0)),
        layers=tuple(specs["Activations"]["layers"]) if "Activations" in specs else (),
        weights="AttentionWeights" in specs,
        gradients=gradients is not None,
        mask=None if mask is None else json.dumps({"size": list(mask["size"]), "runs": list(mask["runs"])}),
        ablations=tuple((edit["layers"][0], int(edit["channels"][0])) for edit in edits["ChannelAblation"]),
        switch_at=None if switch is None else int(switch["from_step"]),
        switch_to=switch_to if switch is None else int(switch["to"]),
    )


_EDITS = ("ChannelAblation", "LabelSwitch")


def _scheduler(facts: Mapping[str, Any], model: Model) -> str:
    if facts["class"] == type(model.pipe.scheduler).__name__:
        return OWN_SCHEDULER
    return next(name for name, class_name in SCHEDULERS.items() if class_name == facts["class"])


def _config(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in facts["config"].items() if not key.startswith("_")}
