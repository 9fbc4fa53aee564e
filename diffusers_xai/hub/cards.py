"""Model cards and dataset cards: what is known of a checkpoint or a profile, as the Hub shows it."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResultEntry, ModelCard, ModelCardData, eval_result_entries_to_yaml


CARD_FACTS = "card.json"
SAMPLE_GRID = "samples.png"
EVAL_RESULTS = ".eval_results/diffusers_xai.yaml"

# What `card.json` may hold, and of which type; `model_card.md` says what each means.
_FACTS: dict[str, type] = {
    "model_name": str,
    "license": str,
    "license_name": str,
    "license_note": str,
    "datasets": list,
    "data": str,
    "labelling": str,
    "synthetic": bool,
    "label_counts": list,
    "training": dict,
    "metrics": list,
    "limitations": list,
}


def read_facts(folder: Path) -> dict[str, Any]:
    """What `card.json` in a checkpoint's folder says for its card; empty where there is none.

    Raises:
        ValueError: If the file is no JSON object, or a fact is unknown or of another type.
    """
    path = folder / CARD_FACTS
    if not path.is_file():
        return {}
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: expected JSON, got {error}") from error
    return check_facts(facts, str(path))


def check_facts(facts: Any, source: str = "card") -> dict[str, Any]:
    """`facts`, if each is known and of its type; a ValueError otherwise."""
    if not isinstance(facts, dict):
        raise ValueError(f"Expected {source} to hold an object, got {type(facts).__name__}.")
    for name, value in facts.items():
        if name not in _FACTS:
            raise ValueError(f"{source}: expected facts of a card, got {name!r}; available: {', '.join(_FACTS)}.")
        if not isinstance(value, _FACTS[name]):
            raise ValueError(f"{source}: expected {name} as {_FACTS[name].__name__}, got {type(value).__name__}.")
    for name, width in (("label_counts", 3), ("metrics", 3)):
        for row in facts.get(name, []):
            if not isinstance(row, list) or len(row) != width:
                raise ValueError(f"{source}: expected {name} as rows of {width} cells, got {row!r}.")
    return facts


def model_card(
    facts: Mapping[str, Any],
    config: Mapping[str, Any],
    *,
    repo_id: str | None,
    parameters: int,
    prediction_type: str,
    carries_code: bool,
    sample_grid: bool,
) -> str:
    """The README of a model repository, from the template `model_card.md`.

    Args:
        facts (`Mapping`): As in `card.json`; what is missing is said to be not stated.
        config (`Mapping`): Of the network.
        repo_id (`str` or `None`): Hub id, or folder, that the examples load from; `None` for the checkpoint inside the
            package.
        parameters (`int`): Number of weights.
        prediction_type (`str`): Of the scheduler.
        carries_code (`bool`): Whether the repository serves plain diffusers.
        sample_grid (`bool`): Whether it holds `samples.png`.
    """
    name = facts.get("model_name") or (repo_id or "The embedded checkpoint").rsplit("/", 1)[-1]
    licence = facts.get("license", "other")
    data = ModelCardData(
        library_name="diffusers",
        pipeline_tag="unconditional-image-generation",
        license=licence,
        license_name=facts.get("license_name", "not-stated") if licence == "other" else None,
        tags=["diffusers_xai", "ddpm", "explainable-ai"],
        datasets=facts.get("datasets") or None,
    )
    card = ModelCard.from_template(
        data,
        template_str=template(),
        **{
            name: facts[name] for name in ("data", "labelling", "label_counts", "training", "metrics") if name in facts
        },
        synthetic=facts.get("synthetic", False),
        limitations=facts.get("limitations"),
        license_note=facts.get("license_note"),
        model_name=name,
        repo_id=repo_id,
        image_size=config["sample_size"],
        parameters=parameters,
        attributes=list(config.get("class_attributes") or ()),
        num_labels=config.get("num_class_embeds"),
        class_encoding=config.get("class_encoding"),
        network=config.get("_class_name", "ConvNextUNet2DModel"),
        widths=list(config.get("block_out_channels") or ()),
        prediction_type=prediction_type,
        carries_code=carries_code,
        sample_grid=SAMPLE_GRID if sample_grid else None,
    )
    return str(card) + "\n"


def eval_results(facts: Mapping[str, Any]) -> str:
    """The metrics that are numbers as the Hub reads them from `.eval_results/*.yaml`, for its tables of models.

    Empty where there is none, or where `datasets` does not name the one data set of the Hub that they belong to.

    Args:
        facts (`Mapping`): As in `card.json`. Of a value such as `"83.9 % (80–87)"` the number before the unit counts.
    """
    if len(facts.get("datasets", [])) != 1:
        return ""
    entries = []
    for measure, value, where in facts.get("metrics", []):
        number = re.match(r"[-+]?\d+(\.\d+)?(e[-+]?\d+)?", str(value))
        if number:
            task = re.sub(r"\W+", "_", measure.lower()).strip("_")
            notes = f"{measure}: {value}, {where}"
            entries.append(EvalResultEntry(facts["datasets"][0], task, float(number[0]), notes=notes))
    # JSON is YAML.
    return json.dumps(eval_result_entries_to_yaml(entries), indent=1, ensure_ascii=False) + "\n" if entries else ""


def template() -> str:
    """The text of `model_card.md`: in an installed package beside this file, in a clone at its top."""
    packaged = Path(__file__).with_name("model_card.md")
    path = packaged if packaged.is_file() else Path(__file__).parents[2] / "model_card.md"
    return path.read_text(encoding="utf-8")
