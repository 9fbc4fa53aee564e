"""Trains a small text-to-image model on captioned pictures, and exports it as a `StableDiffusionPipeline`.

    python -m training.train_text --config training/configs/drawn-text-32.json --data DATA --output RUN
    python -m training.train_text --config training/configs/drawn-text-32.json --data DATA --output RUN --resume
    python -m training.train_text --config training/configs/drawn-text-32.json --output RUN --export FOLDER

The data has a column `caption`. Text encoder and U-Net are trained together, with the settings and in the way of
`train.py`; `model` holds the arguments of `UNet2DConditionModel` and `text_layers`.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import torch
from diffusers import UNet2DConditionModel
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from training.caption_model import (
    build_pipeline,
    build_text_encoder,
    build_tokenizer,
    tokenize,
)
from training.card import run_facts, write_facts
from training.celeba import open_splits
from training.checkpoint import load_checkpoint
from training.config import TrainingConfig, load_config
from training.data import FaceImages, load_splits
from training.export import load_weights
from training.log import LOG_FILE, read_log
from training.optim import build_optimizers
from training.rehearsal import check_same_data, rehearse_device, rehearse_scheduler
from training.run import Run
from training.sampling import StoppedError
from training.train import check_folder, check_teacher, checkpoint_to_resume, execute, parse_args, start
from training.trainer import Trainer


TOKENIZER_FOLDER = "tokenizer"


class CaptionedUNet(nn.Module):
    """Text encoder and U-Net in one module whose labels are rows of a table of captions; what a run trains.

    Args:
        text_encoder (`CLIPTextModel`): Reads the captions.
        unet (`UNet2DConditionModel`): The denoiser.
        token_ids (`torch.Tensor` of shape `(caption, token)`): int64. The last row is the empty caption, which means
            "no caption".
    """

    def __init__(self, text_encoder: CLIPTextModel, unet: UNet2DConditionModel, token_ids: torch.Tensor):
        super().__init__()
        self.text_encoder, self.unet = text_encoder, unet
        self.register_buffer("token_ids", token_ids, persistent=False)
        self.config = SimpleNamespace(null_class_label=len(token_ids) - 1)

    @property
    def class_embedding(self) -> nn.Module:
        """What a run looks for in a network to see that it takes labels."""
        return self.text_encoder

    def forward(self, noisy: torch.Tensor, timesteps: torch.Tensor, captions: torch.Tensor):
        """The U-Net's output for images x_t (batch, 3, height, width) and rows of captions (batch,)."""
        states = self.text_encoder(self.token_ids[captions]).last_hidden_state
        return self.unet(noisy, timesteps, states)


class CaptionTrainer(Trainer):
    """A `Trainer` of a `CaptionedUNet`.

    Args:
        config (`TrainingConfig`): The settings.
        train (`FaceImages`): Images whose labels are rows of
        captions (`list[str]`): the captions, the last of which is empty.
        tokenizer (`CLIPTokenizer`): Their words.
        output (`Path`): As in `Trainer`.
        sample_rows (`list[int]`): Captions of the sample grid.
    """

    def __init__(
        self,
        config: TrainingConfig,
        train: FaceImages,
        captions: list[str],
        tokenizer: CLIPTokenizer,
        output: Path,
        sample_rows: list[int],
    ):
        self.tokenizer, self.captions, self.sample_rows = tokenizer, captions, sample_rows
        super().__init__(config, train, output)
        self.label_counts = {"-1": len(train)}  # captions are not counted

    def build_network(self) -> CaptionedUNet:
        """The network of the configuration, with its first weights."""
        return build_network(self.config, self.tokenizer, tokenize(self.tokenizer, self.captions))

    @torch.no_grad()
    def samples(self, stop: Callable[[], bool] = lambda: False) -> dict[str, torch.Tensor]:
        """Pictures of some validation captions, each from the same noises."""

        def check(_pipeline: object, _step: int, _timestep: object, tensors: dict) -> dict:
            if stop():
                raise StoppedError
            return tensors

        pipeline = build_pipeline(self.network.text_encoder, self.network.unet, self.tokenizer, self.config.scheduler)
        pipeline.vae.to(self.accelerator.device)
        pipeline.set_progress_bar_config(disable=True)
        config, count = self.config, self.config.samples_per_label
        samples = {}
        for row in self.sample_rows:
            images = pipeline(
                [self.captions[row]] * count,
                num_inference_steps=config.sample_steps,
                guidance_scale=config.guidance_scale,
                generator=[torch.Generator().manual_seed(config.seed + i) for i in range(count)],
                output_type="pt",
                callback_on_step_end=check,
            ).images
            samples[self.captions[row]] = images.cpu() * 2 - 1
        return samples


def build_network(config: TrainingConfig, tokenizer: CLIPTokenizer, token_ids: torch.Tensor) -> CaptionedUNet:
    """Text encoder and U-Net of the configuration, with their first weights."""
    settings = {name: value for name, value in config.model.items() if name != "num_class_embeds"}  # of labels
    encoder = build_text_encoder(tokenizer, settings["cross_attention_dim"], settings.pop("text_layers"))
    network = CaptionedUNet(encoder, UNet2DConditionModel(**settings), token_ids)
    if config.zero_init_output:
        nn.init.zeros_(network.unet.conv_out.weight)
        nn.init.zeros_(network.unet.conv_out.bias)
    return network


def prepare(args: argparse.Namespace, started: float) -> tuple[TrainingConfig, Run | None]:
    """All that can fail before training: settings, folders, checkpoint, and last, since it takes longest, the data.

    The time runs since `started`.
    """
    config = load_config(args.config, args.set)
    rehearse_captioned(config)
    rehearse_scheduler(config)
    for folder in filter(None, (args.output, args.export)):
        check_folder(folder)
    if args.data is None:
        return config, None
    rehearse_device(config)
    check_teacher(args, config)
    checkpoint = checkpoint_to_resume(args, config)
    weights = pretrained_weights(args.start_from) if args.start_from is not None else None
    splits = open_splits(args.data, args.data_config)
    if "caption" not in splits["train"].column_names or "validation" not in splits:
        raise ValueError(
            f"expected splits 'train' and 'validation' with a column 'caption' in {args.data!r}, got the splits"
            f" {list(splits)} with {splits['train'].column_names}"
        )
    train, validation = load_splits(args.data, args.data_config, config, None)
    faulty = [*train.faulty, *validation.faulty]
    if faulty:
        raise ValueError(f"expected captioned data without faulty rows, got {len(faulty)}, the first: {faulty[0]}")
    captions = [*splits["train"]["caption"][: len(train)], *splits["validation"]["caption"][: len(validation)], ""]
    train.labels = torch.arange(len(train))
    validation.labels = len(train) + torch.arange(len(validation))
    if checkpoint is not None:
        check_same_data(checkpoint[1], train, validation)

    known = Path(args.start_from or args.output) / TOKENIZER_FOLDER
    tokenizer = CLIPTokenizer.from_pretrained(known) if known.is_dir() else build_tokenizer(captions[: len(train)])
    args.output.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(args.output / TOKENIZER_FOLDER)
    sample_rows = [len(train) + i for i in range(min(len(config.sample_labels), len(validation)))]
    trainer = CaptionTrainer(config, train, captions, tokenizer, args.output, sample_rows)
    return config, start(args, trainer, validation, weights, started)


def rehearse_captioned(config: TrainingConfig) -> None:
    """Builds the network and sends an image and a caption through it; raises a ValueError if that fails."""
    try:
        tokenizer = build_tokenizer(["a face"])
        network = build_network(config, tokenizer, tokenize(tokenizer, ["a face", ""]))
        size = config.model["sample_size"]
        with torch.no_grad():
            network(
                torch.zeros(1, 3, size, size), torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
            )
        build_optimizers(network, config)
    except KeyError as error:
        raise ValueError(f"expected {error} among the model settings, got {sorted(config.model)}") from error
    except Exception as error:  # of many classes, for settings of a wrong type or size
        raise ValueError(f"model settings: {error}") from error


def pretrained_weights(folder: str) -> dict[str, torch.Tensor]:
    """The weights of a pipeline's text encoder and U-Net by the names that they have in `CaptionedUNet`."""
    parts = {
        "text_encoder": CLIPTextModel.from_pretrained(folder, subfolder="text_encoder", dtype=torch.float32),
        "unet": UNet2DConditionModel.from_pretrained(folder, subfolder="unet", dtype=torch.float32),
    }
    return {f"{name}.{key}": value for name, part in parts.items() for key, value in part.state_dict().items()}


def export_captioned(run: str | Path, config: TrainingConfig, target: str | Path) -> int:
    """Writes the averaged weights of a run as a `StableDiffusionPipeline`, with the facts for a model card.

    The U-Net is stored in half precision. The text encoder is not: transformers would open it in what it is stored in,
    and the rest of the pipeline in single precision.

    Args:
        run (`str` or `Path`): The run's folder, of which the last checkpoint is taken.
        config (`TrainingConfig`): Its configuration.
        target (`str` or `Path`): Folder for `DiffusionPipeline.from_pretrained`; made if need be.

    Returns:
        `int`: the number of steps that the weights were trained.

    Raises:
        FileNotFoundError, ValueError: If there is no usable checkpoint, or it is of another network.
    """
    tensors, state = load_checkpoint(run)
    tokenizer = CLIPTokenizer.from_pretrained(Path(run) / TOKENIZER_FOLDER)
    network = build_network(config, tokenizer, tokenize(tokenizer, [""]))
    load_weights(network, tensors["ema"], run)
    pipeline = build_pipeline(network.text_encoder, network.unet, tokenizer, config.scheduler)
    pipeline.unet.to(dtype=torch.float16)
    pipeline.save_pretrained(str(target), safe_serialization=True)
    records = read_log(Path(run)) if (Path(run) / LOG_FILE).is_file() else []
    write_facts(
        Path(target), run_facts(config, state["step"], state["label_counts"], state["images_per_step"], records)
    )
    return state["step"]


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    return execute(parse_args(arguments, __doc__), prepare, export_captioned)


if __name__ == "__main__":
    sys.exit(main())
