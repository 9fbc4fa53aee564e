"""The models that visitors choose from, and what can be chosen of each."""

import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch

from diffusers_xai import Activations, XAIPipeline
from diffusers_xai.app.settings import SCHEDULERS, Limits, Settings, SettingsError
from diffusers_xai.checkpoints import demo_checkpoint, part_of_face
from diffusers_xai.checkpoints.drawn_judge import probabilities
from diffusers_xai.denoisers import get_denoiser
from diffusers_xai.denoisers.blocks import layers_by_block
from diffusers_xai.experiments.judging import Judge
from diffusers_xai.labels import attribute_words, attributes_of, encode_label
from diffusers_xai.measures import mask_from_box
from diffusers_xai.pipelines.arguments import default_steps
from diffusers_xai.pipelines.checkpoint import open_pipeline
from diffusers_xai.profile.names import short_name


# What visitors call a model of the package -> its name there; the first is what they see at first.
EMBEDDED = {
    "lfw-64 (in the package)": "lfw-64",
    "lfw-32 (in the package, fast)": "lfw-32",
    "drawn-32 (in the package)": "drawn-32",
}
DEMO, FAST, DRAWN = EMBEDDED
STEPS = (25, 50, 100, 250, 1000)


@dataclass(eq=False)
class Model:
    """A pipeline that all visitors share, one run at a time.

    Args:
        name (`str`): What visitors and links call it.
        pipe ([`XAIPipeline`]): The pipeline.

    Attributes:
        blocks (`dict[str, list[str]]`): Short name of a block -> paths of its layers, in the forward pass's order.
        layers (`dict[str, str]`): Path of a layer -> its short name.
        channels (`dict[str, int]`): Path of a layer -> its number of channels; only layers whose output is maps.
        has_attention (`bool`): Whether there is a layer that attention maps can be made of.
        has_weights (`bool`): Whether there is softmax attention, whose weights can be recorded.
        lock (`threading.Lock`): Held by the current run: a pipeline has one scheduler.
        others (`list[Model]`): The other models on offer that have the same architecture.
    """

    name: str
    pipe: XAIPipeline
    blocks: dict[str, list[str]] = field(init=False)
    layers: dict[str, str] = field(init=False)
    channels: dict[str, int] = field(init=False)
    has_attention: bool = field(init=False)
    has_weights: bool = field(init=False)
    lock: threading.Lock = field(init=False, default_factory=threading.Lock)
    others: list["Model"] = field(init=False, default_factory=list, repr=False)

    def __post_init__(self) -> None:
        self.pipe.set_progress_bar_config(disable=True)
        denoiser = get_denoiser(self.pipe)
        aliases = {alias: path for alias, path in denoiser.aliases.items() if not alias.endswith((".fn.fn", ".mlp"))}
        aliases["mid"] = "mid_block"
        blocks = layers_by_block(self.pipe.unet)
        self.layers = {path: short_name(path, aliases) for paths in blocks.values() for path in paths}
        self.blocks = {short_name(block, aliases): paths for block, paths in blocks.items()}
        self.has_attention = bool(denoiser.attention_outputs())
        self.has_weights = bool(denoiser.softmax_attention())
        self.channels = self._count_channels()

    def _count_channels(self) -> dict[str, int]:
        specs = [Activations(layers=[path], steps=[0]) for path in self.layers]
        entries = self.pipe.plan(specs, num_inference_steps=1).entries[: len(specs)]
        shapes = [entry.arrays[0].shape for entry in entries]
        return {path: shape[-3] for path, shape in zip(self.layers, shapes, strict=True) if len(shape) >= 4}

    def check_layers(self, layers: Sequence[str]) -> tuple[str, ...]:
        """The layers themselves.

        Raises:
            SettingsError: If several of them lie in one block.
        """
        for block, paths in self.blocks.items():
            if len(set(paths) & set(layers)) > 1:
                raise SettingsError(f"Expected one layer of each block, got several of {block}.")
        return tuple(layers)

    def check_channels(self, pairs: tuple[tuple[str, int], ...]) -> tuple[tuple[str, int], ...]:
        """The pairs of layer and channel themselves.

        Raises:
            SettingsError: If a layer does not have a channel.
        """
        for path, channel in pairs:
            if not 0 <= channel < self.channels.get(path, 0):
                count = self.channels.get(path, 0)
                raise SettingsError(f"{self.layers[path]}: expected a channel from 0 to {count - 1}, got {channel}.")
        return pairs

    @property
    def architecture(self) -> dict[str, Any]:
        """The network's config as JSON holds it."""
        config = {key: value for key, value in self.pipe.unet.config.items() if not key.startswith("_")}
        return json.loads(json.dumps(config, default=str))

    @property
    def classes(self) -> int:
        """The number of labels; 0 for an unconditional model."""
        return self.pipe.unet.config.get("num_class_embeds") or 0

    @property
    def attributes(self) -> list[str]:
        """The names of the label's bits; a number is chosen instead where there are none."""
        return list(self.pipe.unet.config.get("class_attributes") or ()) if self.classes else []

    @property
    def null_label(self) -> int | None:
        """The label that means "no label", which guidance needs; `None` where there is none."""
        return self.pipe.unet.config.get("null_class_label") if self.classes else None

    @property
    def has_masks(self) -> bool:
        """Whether there are pictures such as those of its training, with exact masks of their parts."""
        return self.name == DRAWN

    @property
    def judge(self) -> Judge | None:
        """What tells the attributes of its images without an error, where there is such a thing."""
        return probabilities if self.name == DRAWN else None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the samples."""
        return self.pipe.sample_shape[1], self.pipe.sample_shape[2]

    @property
    def parameters(self) -> int:
        """The number of weights."""
        return sum(parameter.numel() for parameter in self.pipe.unet.parameters())

    @property
    def threads(self) -> int:
        """CPU threads of a run: in a small network more would only wait for each other."""
        return 1 if self.parameters < 2e7 else os.cpu_count() or 1

    @property
    def about(self) -> str:
        """The model in a line."""
        labels = f"labels of {len(self.attributes)} attributes" if self.attributes else f"{self.classes} labels"
        return f"{self.size[1]} × {self.size[0]} pixels, {labels if self.classes else 'no labels'}"

    @contextmanager
    def scheduled(self, name: str) -> Iterator[None]:
        """Samples with a scheduler of `SCHEDULERS` for a while; the lock is held meanwhile."""
        own, class_name = self.pipe.scheduler, SCHEDULERS[name]
        if class_name is None:
            yield
            return
        self.pipe.scheduler = getattr(diffusers, class_name).from_config(own.config)
        try:
            yield
        finally:
            self.pipe.scheduler = own

    def limits(self, limits: Limits) -> Limits:
        """What may be asked of this model."""
        trained = self.pipe.scheduler.config.get("num_train_timesteps", 1000)
        return replace(limits, max_steps=min(limits.max_steps, trained))

    def default(self, limits: Limits, **changes: Any) -> Settings:
        """What is set when a visitor chooses the model.

        Args:
            limits (`Limits`): What may be asked of the server.
            changes: Fields of `Settings`, within the limits.
        """
        label = self.label_of(["Smiling"] if "Smiling" in self.attributes else [], 0)
        other = max(self.classes // 2 - 1, 0)
        settings = Settings(
            model=self.name,
            label=label,
            layers=tuple(map(self.default_layer, self.default_blocks())),
            gradients=self.parameters < 5e6,  # else a visitor would wait for them
            switch_to=other if other != label else min(other + 1, max(self.classes - 1, 0)),
        )
        count = min(settings.steps, default_steps(self.pipe.scheduler))
        settings = replace(settings, **{"steps": count, "every": max(count // 10, 1), **changes})
        steps = min(settings.steps, self.limits(limits).max_steps)
        return replace(settings, steps=steps, every=min(settings.every, steps))

    def step_choices(self, limits: Limits, steps: int) -> list[int]:
        """Numbers of steps to choose from, `steps` among them."""
        return sorted({*(count for count in STEPS if count <= self.limits(limits).max_steps), steps})

    def default_layer(self, block: str) -> str:
        """The attention layer of a block, or its first layer."""
        paths = self.blocks[block]
        return min(paths, key=lambda path: (not path.endswith(".attn"), ".attentions." not in path))

    def default_blocks(self) -> list[str]:
        """A few, spread over the network."""
        names = list(self.blocks)
        return [names[i] for i in sorted({0, len(names) // 3, len(names) // 2, len(names) - 1})] if names else []

    def default_mask(self) -> np.ndarray:
        """The eyes in a photographed face, or the middle of any other image: bool (height, width)."""
        checkpoint = demo_checkpoint(EMBEDDED[self.name]) if self.name in EMBEDDED else None
        height, width = self.size
        left, top = width // 4, height // 4
        middle = left, top, left + max(width // 2, 1), top + max(height // 2, 1)
        return mask_from_box(part_of_face("eyes", checkpoint, self.size) or middle, self.size)

    def words_of(self, label: int | None) -> str:
        """A label in words."""
        if label is None:
            return "no labels"
        if label == self.null_label:
            return "null label"
        if not self.attributes:
            return f"label {label}"
        return " and ".join(map(attribute_words, self.names_of(label))) or "no attribute"

    def label_of(self, names: Sequence[str] | None, number: int | None) -> int | None:
        """The label with these attributes, or this number where labels have none; `None` without labels."""
        if not self.classes:
            return None
        config = self.pipe.unet.config
        chosen = {name: name in (names or ()) for name in self.attributes} if self.attributes else int(number or 0)
        return encode_label(chosen, config["num_class_embeds"], config.get("null_class_label"), self.attributes)

    def names_of(self, label: int | None) -> list[str]:
        """The attributes that a label has."""
        return [] if label is None else attributes_of(label, self.attributes)


def relate(models: Mapping[str, Model]) -> None:
    """Tells each model which others have its architecture."""
    for model in models.values():
        alike = [other for other in models.values() if other.architecture == model.architecture]
        model.others = [other for other in alike if other is not model]


def load_models(checkpoints: Sequence[str] = ()) -> dict[str, Model]:
    """Name -> model: the given ones, the first of which visitors see first, and those of the package.

    Args:
        checkpoints (`Sequence[str]`): Folders or Hub ids of pipelines.

    Raises:
        ValueError: If one cannot be loaded, or two have the same name.
    """
    named = [
        (Path(checkpoint).resolve().name if Path(checkpoint).is_dir() else checkpoint, checkpoint)
        for checkpoint in checkpoints
    ]
    models: dict[str, Model] = {}
    for name, checkpoint in [*named, *((name, demo_checkpoint(inside)) for name, inside in EMBEDDED.items())]:
        if name in models:
            raise ValueError(f"Expected checkpoints of different names, got two called {name}: rename a folder.")
        pipe = open_pipeline(XAIPipeline, checkpoint)
        models[name] = Model(name, pipe.to("cuda") if torch.cuda.is_available() else pipe)
    return models
