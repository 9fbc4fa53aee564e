"""What a training run is made of: one JSON file."""

import dataclasses
import difflib
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from training.celeba import DEFAULT_ATTRIBUTES, MAX_ATTRIBUTES


OPTIMIZERS = ("adam", "adamw", "muon")
LOSSES = ("l1", "l2")
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
MIXED_PRECISION = ("no", "fp16", "bf16")
# Settings that say what is learned, from what, and how it is measured: a resumed run keeps them.
FIXED_SETTINGS = (
    "model", "scheduler", "center_crop", "max_images", "max_values", "horizontal_flip", "class_balance",
    "class_balance_floor", "label_dropout", "permuted_labels", "distilled_guidance_scale", "loss", "min_snr_gamma",
    "min_snr_power", "stratified_timesteps", "optimizer", "betas", "weight_decay", "ema_decay", "seed",
    "validation_images", "validation_timesteps",
)  # fmt: skip
LEAST_SAMPLE_SIZE = 7  # the window of SSIM
_OPTIONAL_MODEL_NUMBERS = ("num_class_embeds", "conv_in_channels", "time_proj_dim", "time_embedding_dim")
_MODEL_NUMBERS = {  # and the least value; the sinusoids of fewer than four dimensions divide by zero
    "num_class_embeds": 2, "conv_in_channels": 1, "time_proj_dim": 4, "time_embedding_dim": 1,
    "num_attention_heads": 1, "attention_head_dim": 1,
}  # fmt: skip


@dataclass
class TrainingConfig:
    """The settings of a run; the JSON file holds the fields by name.

    Args:
        model (`dict`): Arguments of `ConvNextUNet2DModel`; `sample_size` is the side length of the training images.
            `num_class_embeds` follows from `class_attributes`, of which there may be eight.
        scheduler (`dict`): Arguments of `DDPMScheduler`; `prediction_type` is what the network learns to predict.
        center_crop (`int`, *optional*): Side of the centred square that is cut out and resized; `None`: the largest.
        max_images (`int`, *optional*): Use only the first images of the training split.
        max_values (`dict[str, float]`): Leave out rows whose value in this column is greater.
        horizontal_flip (`bool`): Mirror half of the images.
        class_balance (`float`): Each of a label's n images is drawn with weight n ** -class_balance: 0 draws every
            image alike, 1 every label alike.
        class_balance_floor (`int`): Labels with fewer images than this are weighted as if they had so many.
        label_dropout (`float`): Probability of the null label, for classifier-free guidance.
        permuted_labels (`bool`): Shuffle the training images' labels among them, so that they mean nothing: for
            `diffusers-xai audit --permuted`.
        distilled_guidance_scale (`float`, *optional*): Learn what the network of `--start-from` predicts with this
            guidance scale, instead of the images: labels then show at guidance 1 as they did with it. `None`: learn
            the images.
        loss (`str`): `"l1"` or `"l2"`, taken on the prediction.
        min_snr_gamma (`float`, *optional*): Weight timesteps by min(SNR, gamma) ** min_snr_power on the scale of
            the x_0 loss; `None`: no weights.
        min_snr_power (`float`): 1 is the published rule; smaller lifts the noisy timesteps.
        stratified_timesteps (`bool`): Spread the timesteps of a batch evenly over the schedule.
        optimizer (`str`): `"adam"`, `"adamw"`, or `"muon"` for the inner convolution kernels with AdamW for the rest.
        learning_rate (`float`), betas (`tuple[float, float]`): Of Adam.
        muon_learning_rate (`float`): Of Muon.
        weight_decay (`float`): Of both.
        batch_size (`int`): Images per process and forward pass. A step sees `batch_size * gradient_accumulation_steps`
            images times the number of processes, the same ones however that number is made up.
        gradient_accumulation_steps (`int`): Forward passes per process and step.
        max_steps (`int`): Optimizer steps of the whole run.
        warmup_steps (`int`): The learning rate rises linearly over the first steps,
        decay_steps (`int`): and falls linearly to zero over the last ones.
        max_grad_norm (`float`, *optional*): Gradients are scaled down to this norm; `None`: they are left as they are.
        ema_decay (`float`): Decay of the running mean of the weights, which validation, samples and the export use.
        mixed_precision (`str`): `"no"`, `"fp16"` or `"bf16"`.
        compile (`bool`): Train through `torch.compile`; pays on a GPU, not on a CPU.
        channels_last (`bool`): Memory format of the network; on the CPU the faster one for small widths.
        zero_init_output (`bool`): Start with a prediction of zero.
        seed (`int`): Fixes the initial weights, the order of the images and all noise.
        tracker (`str`, *optional*): `"tensorboard"` or another of accelerate's trackers, beside `log.jsonl`.
        log_every, validate_every, sample_every, checkpoint_every (`int`): In steps.
        keep_checkpoints (`int`): Older ones are deleted.
        validation_images (`int`): Images of the validation split that are measured.
        validation_timesteps (`list[int]`): Timesteps at which they are measured.
        sample_labels (`list[int]`, *optional*): Rows of the sample grid; `None`: all labels, but at most 16.
        samples_per_label (`int`): Columns of the sample grid.
        sample_steps (`int`): DDIM steps of the sample grid.
        guidance_scale (`float`): Of the sample grid; 1 is no guidance.
    """

    model: dict
    scheduler: dict
    center_crop: int | None = None
    max_images: int | None = None
    max_values: dict[str, float] = field(default_factory=dict)
    horizontal_flip: bool = True
    class_balance: float = 0.0
    class_balance_floor: int = 20
    label_dropout: float = 0.1
    permuted_labels: bool = False
    distilled_guidance_scale: float | None = None
    loss: str = "l1"
    min_snr_gamma: float | None = None
    min_snr_power: float = 1.0
    stratified_timesteps: bool = False
    optimizer: str = "adam"
    learning_rate: float = 2e-4
    muon_learning_rate: float = 0.02
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    batch_size: int = 32
    gradient_accumulation_steps: int = 1
    max_steps: int = 94_000
    warmup_steps: int = 0
    decay_steps: int = 0
    max_grad_norm: float | None = 1.0
    ema_decay: float = 0.999
    mixed_precision: str = "no"
    compile: bool = False
    channels_last: bool = False
    zero_init_output: bool = False
    seed: int = 0
    tracker: str | None = "tensorboard"
    log_every: int = 50
    validate_every: int = 1000
    sample_every: int = 1000
    checkpoint_every: int = 1000
    keep_checkpoints: int = 2
    validation_images: int = 512
    validation_timesteps: list[int] = field(default_factory=lambda: [50, 150, 300, 500, 700, 900])
    sample_labels: list[int] | None = None
    samples_per_label: int = 4
    sample_steps: int = 50
    guidance_scale: float = 1.0

    def __post_init__(self):
        for name, kind in get_type_hints(type(self)).items():
            if not fits(getattr(self, name), kind):
                raise ValueError(f"expected {name} as {in_words(kind)}, got {getattr(self, name)!r}")
        self._check_model()
        num_labels = self.model.get("num_class_embeds", 16) or 0
        if self.sample_labels is None:
            self.sample_labels = list(range(min(num_labels, 16)))
        if num_labels and not self.sample_labels:
            raise ValueError("expected at least one of sample_labels, got []")
        if not all(0 <= label < num_labels for label in self.sample_labels):
            raise ValueError(
                f"expected sample_labels in 0..{num_labels - 1}, got {self.sample_labels}"
                if num_labels
                else f"an unconditional network has no labels: expected sample_labels [], got {self.sample_labels}"
            )
        if not self.validation_timesteps or len(set(self.validation_timesteps)) < len(self.validation_timesteps):
            raise ValueError(f"expected validation_timesteps, each of them once, got {self.validation_timesteps}")
        self._check_choice("loss", LOSSES)
        self._check_choice("optimizer", OPTIMIZERS)
        self._check_choice("mixed_precision", MIXED_PRECISION)
        if self.prediction_type not in PREDICTION_TYPES:
            raise ValueError(f"expected scheduler.prediction_type in {PREDICTION_TYPES}, got {self.prediction_type!r}")
        for name in (
            "batch_size", "gradient_accumulation_steps", "max_steps", "log_every", "validate_every", "sample_every",
            "checkpoint_every", "keep_checkpoints", "validation_images", "samples_per_label", "sample_steps",
            "center_crop", "max_images",
        ):  # fmt: skip
            self._check_range(name, 1)
        for name in ("warmup_steps", "decay_steps", "weight_decay", "class_balance_floor"):
            self._check_range(name, 0)
        for name in ("label_dropout", "class_balance", "ema_decay", "min_snr_power"):
            self._check_range(name, 0, 1)
        self._check_range("seed", 0, 2**32 - 1)
        for name in (
            "learning_rate", "muon_learning_rate", "max_grad_norm", "min_snr_gamma", "distilled_guidance_scale",
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"expected {name} above 0, got {value!r}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"expected two betas of at least 0 and below 1, got {self.betas}")
        if self.optimizer == "muon" and self.mixed_precision == "fp16":
            raise ValueError("expected mixed_precision 'no' or 'bf16' for optimizer 'muon', got 'fp16'")
        if num_labels and self.label_dropout == 0 and self.guidance_scale != 1:
            raise ValueError(
                "expected label_dropout above 0, which trains the prediction without a label that guidance needs, or"
                f" guidance_scale 1, got label_dropout 0 and guidance_scale {self.guidance_scale}"
            )
        if not num_labels and self.distilled_guidance_scale is not None:
            raise ValueError(
                "expected distilled_guidance_scale null for an unconditional network (model.num_class_embeds null),"
                f" got {self.distilled_guidance_scale}"
            )
        if not num_labels and self.label_dropout > 0:
            raise ValueError(
                "expected label_dropout 0 for an unconditional network (model.num_class_embeds null), got"
                f" {self.label_dropout}"
            )

    def _check_model(self) -> None:
        """What the network needs so that square RGB images and their attributes go through it."""
        model = self.model
        attributes = model.get("class_attributes", DEFAULT_ATTRIBUTES)
        if attributes is not None:
            if not fits(attributes, list[str]) or len(set(attributes)) < len(attributes):
                raise ValueError(f"expected model.class_attributes as a list of names, none twice, got {attributes!r}")
            if not 1 <= len(attributes) <= MAX_ATTRIBUTES:
                raise ValueError(
                    f"expected 1 to {MAX_ATTRIBUTES} class_attributes, got {len(attributes)}: {attributes}"
                )
            self.model = model = {"num_class_embeds": 2 ** len(attributes), **model}
        elif model.get("num_class_embeds", 16) is not None:
            raise ValueError(
                "expected model.class_attributes, the columns that make up the label, or model.num_class_embeds null,"
                " got neither"
            )
        for name in ("in_channels", "out_channels"):
            if model.get(name, 3) != 3:
                raise ValueError(f"expected model.{name} 3 (images are RGB), got {model[name]!r}")
        widths = model.get("block_out_channels", [64])
        if not widths or not fits(widths, list[int]) or min(widths) < 1:
            raise ValueError(f"expected model.block_out_channels as a list of whole numbers above 0, got {widths!r}")
        for name, least in _MODEL_NUMBERS.items():
            value = model.get(name, least)
            if name in _OPTIONAL_MODEL_NUMBERS and value is None:
                continue
            if not fits(value, int) or value < least:
                raise ValueError(f"expected model.{name} as a whole number of at least {least}, got {value!r}")
        if not fits(model.get("null_class_label", -1), int):
            raise ValueError(f"expected model.null_class_label as a whole number, got {model['null_class_label']!r}")
        if not fits(model.get("norm_eps", 1e-5), float) or model.get("norm_eps", 1e-5) <= 0:
            raise ValueError(f"expected model.norm_eps as a number above 0, got {model['norm_eps']!r}")
        if model.get("time_proj_dim") is None and widths[0] < _MODEL_NUMBERS["time_proj_dim"]:
            raise ValueError(f"expected model.block_out_channels to begin with 4 or more, got {widths}")
        size, stride = model.get("sample_size", 64), 2 ** (len(widths) - 1)
        if not fits(size, int) or size < LEAST_SAMPLE_SIZE:
            raise ValueError(
                f"expected model.sample_size as a whole number of at least {LEAST_SAMPLE_SIZE} (images are square),"
                f" got {size!r}"
            )
        if size % stride:
            raise ValueError(
                f"expected model.sample_size divisible by {stride} for the {len(widths)} levels of block_out_channels,"
                f" got {size}"
            )

    def _check_choice(self, name: str, choices: tuple[str, ...]) -> None:
        if getattr(self, name) not in choices:
            raise ValueError(f"expected {name} in {choices}, got {getattr(self, name)!r}")

    def _check_range(self, name: str, low: float, high: float = float("inf")) -> None:
        value = getattr(self, name)
        if value is not None and not low <= value <= high:
            bounds = f"at least {low}" if high == float("inf") else f"in {low}..{high}"
            raise ValueError(f"expected {name} {bounds}, got {value!r}")

    @property
    def prediction_type(self) -> str:
        """What the network predicts: `"epsilon"`, `"v_prediction"` or `"sample"`."""
        return self.scheduler.get("prediction_type", "epsilon")

    def to_dict(self) -> dict:
        """The fields as JSON-able values."""
        return dataclasses.asdict(self)


def load_config(path: str, overrides: list[str] | None = None) -> TrainingConfig:
    """Reads a run's settings.

    Args:
        path (`str`): JSON file.
        overrides (`list[str]`, *optional*): `"name=value"`, the value in JSON, put over the file's.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is no JSON object, a field is unknown or missing, or a value is out of range.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"expected a configuration file, got {path!r}")
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except ValueError as error:  # also where it is no UTF-8
        raise ValueError(f"expected JSON in {path}, got {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"expected a JSON object in {path}, got {type(values).__name__}")
    for override in overrides or []:
        name, _, value = override.partition("=")
        try:
            values[name] = json.loads(value)
        except json.JSONDecodeError as error:
            raise ValueError(f"expected --set NAME=VALUE with a JSON value, got {override!r}") from error

    names = [f.name for f in dataclasses.fields(TrainingConfig)]
    for name in values:
        if name not in names:
            nearest = difflib.get_close_matches(name, names, n=3) or names
            raise ValueError(f"expected a setting of the configuration, got {name!r}; available: {', '.join(nearest)}")
    for name in ("model", "scheduler"):
        if not isinstance(values.get(name), dict):
            raise ValueError(f"expected an object {name!r} in the configuration, got {values.get(name)!r}")
    return TrainingConfig(**values)


def fits(value: Any, kind: Any) -> bool:
    """Whether a value from JSON is of the type that a field is annotated with."""
    origin, args = get_origin(kind), get_args(kind)
    if origin is UnionType:
        return any(fits(value, part) for part in args)
    if origin is tuple:
        return isinstance(value, list | tuple) and len(value) == len(args) and all(map(fits, value, args))
    if origin is list:
        return isinstance(value, list | tuple) and all(fits(item, args[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(fits(item, args[1]) for item in value.values())
    if kind in (int, float) and isinstance(value, bool):
        return False
    if kind is float:
        return isinstance(value, int | float) and abs(value) <= sys.float_info.max
    return isinstance(value, kind)


def in_words(kind: Any) -> str:
    """What `fits` expects, for a message."""
    origin, args = get_origin(kind), get_args(kind)
    if origin is UnionType:
        return " or ".join(map(in_words, args))
    if origin is tuple:
        return f"a list of {len(args)} numbers"
    if origin is list:
        return f"a list, each {in_words(args[0])}"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", NoneType: "null"}
    return words.get(kind, "an object of numbers by name" if args else "an object")
