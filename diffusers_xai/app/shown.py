"""What each control shows for some settings: when the page is built, for a link, and for another model."""

from collections.abc import Iterable
from typing import Any

from diffusers_xai.app import texts
from diffusers_xai.app.models import Model
from diffusers_xai.app.settings import Limits, Settings
from diffusers_xai.labels import attribute_words


EXAMPLES = [(["Smiling"], 7), (["Smiling", "Wearing_Lipstick"], 5), (["Male", "Bangs"], 7)]


def shown(model: Model, settings: Settings, limits: Limits) -> dict[str, dict[str, Any]]:
    """Name of a control -> its value, its choices, and whether it is visible."""
    blocks = [block for block, paths in model.blocks.items() if set(paths) & set(settings.layers)]
    ablated = [f"{model.layers[layer]}:{channel}" for layer, channel in settings.ablations]
    at, has_labels, has_blocks = settings.switch_at, model.classes > 0, bool(model.blocks)
    has_null = model.null_label is not None
    return {
        "model": {"value": model.name, "info": model.about},
        **_label("label", model, settings.label),
        "null_label": {"value": has_null and settings.label == model.null_label, "visible": has_null},
        "seed": {"value": settings.seed},
        "steps": {"choices": model.step_choices(limits, settings.steps), "value": settings.steps},
        "every": {"value": settings.every},
        "scheduler": {"value": settings.scheduler},
        "guidance": {"value": settings.guidance, "visible": has_null},
        "examples": {"visible": {name for names, _ in EXAMPLES for name in names} <= set(model.attributes)},
        "blocks_panel": {"visible": has_blocks},
        "blocks": {"choices": list(model.blocks), "value": blocks},
        **shown_slots(model, blocks, settings.layers, limits),
        "weights": {"value": settings.weights, "visible": model.has_weights},
        "gradients": {"value": settings.gradients},
        "ablation_panel": {"visible": has_blocks},
        "ablate_layer": {
            "choices": [(name, path) for path, name in model.layers.items()],
            "value": model.default_layer(model.default_blocks()[-1]) if has_blocks else None,
        },
        "ablations": {"choices": ablated, "value": ablated},
        "switch_panel": {"visible": has_labels},
        "switch": {"value": at is not None},
        "switch_at": {"value": settings.steps // 2 if at is None else at, "maximum": settings.steps},
        **_label("switch", model, settings.switch_to),
        **_label("sweep", model, settings.switch_to),
        **_label("experiment", model, settings.switch_to),
        "sweep": {"interactive": has_labels},
        "sweep_status": {"value": texts.EMPTY_SWEEP if has_labels else texts.NO_LABELS},
    }


def shown_slots(model: Model, blocks: Any, held: Iterable[Any], limits: Limits) -> dict[str, dict[str, Any]]:
    """The slots: slot i offers the layers of the i-th chosen block.

    Args:
        model (`Model`): The chosen model.
        blocks (sequence of `str`): The chosen blocks, in any order.
        held (iterable of `str`): Layers that stay chosen, wherever they stood.
        limits (`Limits`): How many slots there are.
    """
    chosen = chosen_layers(model, blocks, held)
    slots: dict[str, dict[str, Any]] = {f"slot_{i}": {"visible": False} for i in range(limits.max_blocks)}
    for slot, (block, layer) in zip(slots, chosen, strict=False):
        choices = [(model.layers[path], path) for path in model.blocks[block]]
        slots[slot] = {"choices": choices, "value": layer, "label": f"Layer of {block}", "visible": True}
    return slots


def chosen_layers(model: Model, blocks: Any, held: Iterable[Any]) -> list[tuple[str, str]]:
    """(block, layer) of the chosen blocks: the one of `held` that lies in the block, or the default."""
    held = list(held)
    return [
        (block, next((layer for layer in held if layer in paths), model.default_layer(block)))
        for block, paths in model.blocks.items()
        if block in (blocks or [])
    ]


def _label(name: str, model: Model, label: int | None) -> dict[str, dict[str, Any]]:
    """The two boxes of a label: attributes to check, or a number where they have no names; neither without labels."""
    names, plain = model.attributes, model.classes > 0 and not model.attributes
    return {
        f"{name}_names": {
            "choices": [(attribute_words(each), each) for each in names],
            "value": model.names_of(label), "visible": bool(names),
        },
        f"{name}_class": {
            "choices": list(range(model.classes)) if plain else [0],
            "value": max(label or 0, 0) if plain else 0,
            "visible": plain,
        },
    }  # fmt: skip
