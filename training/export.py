"""The averaged weights of a run as a pipeline folder."""

from pathlib import Path

import torch
from diffusers import DDPMScheduler

from diffusers_xai import ConvNextUNet2DModel, XAIPipeline
from training.card import run_facts, write_facts
from training.checkpoint import load_checkpoint
from training.config import TrainingConfig
from training.log import LOG_FILE, read_log


def export_pipeline(checkpoint: str | Path, config: TrainingConfig, target: str | Path) -> int:
    """Writes the averaged (EMA) weights as fp16 safetensors, with configurations and the facts for a model card.

    Args:
        checkpoint (`str` or `Path`): A checkpoint, or a run's folder, of which the last checkpoint is taken.
        config (`TrainingConfig`): The run's configuration.
        target (`str` or `Path`): Folder for `XAIPipeline.from_pretrained`; made if need be.

    Returns:
        `int`: the number of steps that the weights were trained.

    Raises:
        FileNotFoundError, ValueError: If there is no usable checkpoint, or it is not of this configuration's network.
    """
    tensors, state = load_checkpoint(checkpoint)
    model = ConvNextUNet2DModel(**config.model)
    load_weights(model, tensors["ema"], checkpoint)
    pipeline = XAIPipeline(model.half(), DDPMScheduler(**config.scheduler))
    pipeline.save_pretrained(str(target), safe_serialization=True)
    records = read_log(Path(checkpoint)) if (Path(checkpoint) / LOG_FILE).is_file() else []
    facts = run_facts(config, state["step"], state["label_counts"], state["images_per_step"], records)
    write_facts(Path(target), facts)
    return state["step"]


def load_weights(model: ConvNextUNet2DModel, weights: dict[str, torch.Tensor], source: str | Path) -> None:
    """Loads `weights` into `model`.

    Raises:
        ValueError: If names or shapes differ.
    """
    expected = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    got = {name: tuple(t.shape) for name, t in weights.items()}
    if expected != got:
        names = sorted(name for name in {*expected, *got} if expected.get(name) != got.get(name))
        raise ValueError(
            f"the checkpoint {str(source)!r} is of another network than the configuration's: {len(names)} tensors"
            f" differ, for example {names[0]!r}: expected {expected.get(names[0])}, got {got.get(names[0])}"
        )
    model.load_state_dict(weights)
