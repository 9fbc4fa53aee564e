"""What a run knows for the model card of its checkpoint."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from safetensors import safe_open

from diffusers_xai.hub.cards import CARD_FACTS, SAMPLE_GRID, read_facts
from diffusers_xai.labels import attributes_of, label_bits
from training.config import TrainingConfig


_CAPTIONED_FACTS = {"data": "Not stated.", "training": {}, "metrics": [], "limitations": []}


def run_facts(
    config: TrainingConfig, step: int, label_counts: dict[str, int], images_per_step: int, log: Sequence[dict]
) -> dict[str, Any]:
    """Facts for `card.json`: label counts, training settings, and the last validation up to `step`.

    Args:
        config (`TrainingConfig`): The settings.
        step (`int`): Number of finished steps.
        label_counts (`dict[str, int]`): Training images of each label, as a decimal number.
        images_per_step (`int`): In all processes.
        log (`Sequence[dict]`): Records of the run's `log.jsonl`.
    """
    attributes = config.model.get("class_attributes") or ("Bangs", "Male", "Smiling", "Wearing_Lipstick")
    training = {
        "steps": step,
        "images per step": images_per_step,
        "loss": f"{config.loss} of the predicted {config.prediction_type}",
        "target": "the images"
        if config.distilled_guidance_scale is None
        else f"what its teacher predicts with guidance {config.distilled_guidance_scale:g}",
        "weights of the timesteps": "equal"
        if config.min_snr_gamma is None
        else f"min(SNR, {config.min_snr_gamma:g})^{config.min_snr_power:g} on the x_0 loss",
        "optimizer": _optimizer(config),
        "label dropout": config.label_dropout,
        "sampling of labels": f"images of a label with n images are drawn with weight n^-{config.class_balance:g}",
        "precision": config.mixed_precision,
        "running mean of the weights": config.ema_decay,
        "seed": config.seed,
    }
    facts: dict[str, Any] = {"training": training}
    if config.model.get("num_class_embeds", 16) is not None and "-1" not in label_counts:
        facts["label_counts"] = [
            [
                label_bits(int(label), attributes),
                ", ".join(attributes_of(int(label), attributes)) or "none of them",
                count,
            ]
            for label, count in sorted(label_counts.items(), key=lambda pair: int(pair[0]))
        ]
    validations = [record for record in log if "ssim" in record and record["step"] <= step]
    if validations:
        last, timesteps = validations[-1], ", ".join(map(str, config.validation_timesteps))
        where = f"{config.validation_images} validation images, one-step predictions at t = {timesteps}"
        facts["metrics"] = [
            ["L1 of x̂_0 (range [-1, 1])", round(last["l1"], 4), where],
            ["SSIM of x̂_0", round(last["ssim"], 4), where],
            ["PSNR of x̂_0 (dB)", round(last["psnr"], 2), where],
            *[
                [f"mean squared error of the noise, t = {t}", f"{last[f'noise_mse/{t}']:.3g}", "the same images"]
                for t in config.validation_timesteps
            ],
        ]
    return facts


def add_metrics(checkpoint: Path, rows: Sequence[Sequence[Any]]) -> None:
    """Puts measures (measure, value, how) into a checkpoint's `card.json`, over those of the same name."""
    facts = read_facts(checkpoint)
    names = {row[0] for row in rows}
    facts["metrics"] = [row for row in facts.get("metrics", []) if row[0] not in names] + [list(row) for row in rows]
    write_facts(checkpoint, facts)


def write_captioned_card(folder: Path) -> None:
    """Writes the README of a captioned pipeline from its `card.json` and its configurations.

    Raises:
        FileNotFoundError: If there is no pipeline.
    """
    facts = read_facts(folder)
    counts = {}
    for part in ("unet", "text_encoder"):
        weights = next((folder / part).glob("*.safetensors"), None)
        if weights is None:
            raise FileNotFoundError(f"expected the weights of a pipeline in {str(folder / part)!r}, got none")
        with safe_open(weights, "pt") as file:
            counts[part] = sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    card = ModelCard.from_template(
        ModelCardData(
            library_name="diffusers",
            pipeline_tag="text-to-image",
            license=facts.get("license", "other"),
            tags=["stable-diffusion", "explainable-ai"],
        ),
        template_path=str(Path(__file__).with_name("captioned_card.md")),
        model_name=facts.get("model_name", folder.name),
        image_size=json.loads((folder / "unet" / "config.json").read_text())["sample_size"],
        unet_parameters=counts["unet"],
        text_parameters=counts["text_encoder"],
        prediction_type=scheduler["prediction_type"],
        sample_grid=SAMPLE_GRID if (folder / SAMPLE_GRID).is_file() else None,
        **{name: facts.get(name, default) for name, default in _CAPTIONED_FACTS.items()},
    )
    (folder / "README.md").write_text(str(card) + "\n", encoding="utf-8")


def write_facts(folder: Path, facts: dict[str, Any]) -> None:
    """Writes `card.json`. Facts of other names that are there, such as the text on the data, stay."""
    facts = {**read_facts(folder), **facts}
    (folder / CARD_FACTS).write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _optimizer(config: TrainingConfig) -> str:
    rates = f"learning rate {config.learning_rate:g}"
    if config.optimizer == "muon":
        rates = f"{config.muon_learning_rate:g} (inner kernels) with AdamW {config.learning_rate:g}"
    return f"{config.optimizer} {rates}, falling to zero over the last {config.decay_steps} steps"
