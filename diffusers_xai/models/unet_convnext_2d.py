"""The ConvNeXt U-Net conditioned by label channels.

A Hub repository carries it as one file with what it imports of this package, see `hub/standalone.py`.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.attention import AttentionMixin
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import nn

from diffusers_xai.models.annotated import annotated_names, infer_annotated_config
from diffusers_xai.models.convnext_blocks import (
    ConvNextBlock2D,
    ConvNextDownBlock2D,
    ConvNextMidBlock2D,
    ConvNextUpBlock2D,
)
from diffusers_xai.models.label_channels import CLASS_ENCODINGS, LabelChannels


MID_ATTENTION_TYPES = ("linear", "softmax")


class ConvNextUNet2DModel(ModelMixin, AttentionMixin, ConfigMixin):
    r"""A 2D U-Net of ConvNeXt blocks with linear attention at every resolution, conditioned by label channels.

    It takes a noisy sample, a timestep and labels and returns a sample-shaped output, with the forward signature of
    [`~diffusers.UNet2DModel`]. Layers can be named by their own module path or by the path of *The Annotated Diffusion
    Model* that the thesis uses (`layer_aliases`).

    Source: thesis sections 3.2 and 4.2; Rogge and Rasul, *The Annotated Diffusion Model*, 2022.

    Parameters:
        sample_size (`int` or `tuple[int, int]`, *optional*, defaults to 64):
            Height and width of the samples to generate. Any height and width divisible by
            `2 ** (len(block_out_channels) - 1)` can be passed to `forward`.
        in_channels (`int`, *optional*, defaults to 3): Channels of the sample, label channels not counted.
        out_channels (`int`, *optional*, defaults to 3): Channels of the output.
        block_out_channels (`tuple[int]`, *optional*, defaults to `(64, 128, 256, 512)`):
            Width at each resolution. The first is the article's `dim`.
        conv_in_channels (`int`, *optional*): Width of the first convolution; `block_out_channels[0]` if `None`. The
            article has `dim // 3 * 2`.
        time_proj_dim (`int`, *optional*): Size of the sinusoidal embedding; `block_out_channels[0]` if `None`.
        time_embedding_dim (`int`, *optional*): Size of the time embedding; `4 * block_out_channels[0]` if `None`.
        num_attention_heads (`int`, *optional*, defaults to 4): Heads of every attention layer.
        attention_head_dim (`int`, *optional*, defaults to 32): Width of a head.
        mid_attention_type (`str`, *optional*, defaults to `"linear"`): Attention of the bottleneck: `"linear"` (the
            thesis's code) or `"softmax"` (the article).
        norm_eps (`float`, *optional*, defaults to 1e-5): Epsilon of the group norms.
        num_class_embeds (`int`, *optional*, defaults to 16): Number of labels; `None` for an unconditional network.
        class_encoding (`str`, *optional*, defaults to `"integer"`): How a label fills its channels, see
            [`LabelChannels`]: `"integer"` (thesis), `"scaled"` or `"bits"` (`num_class_embeds` must be a power of 2).
        null_class_label (`int`, *optional*, defaults to -1): The reserved label that means "no label", for
            classifier-free guidance (thesis eq. 3.4.3). It lies outside `0 .. num_class_embeds - 1`.
        class_attributes (`tuple[str]`, *optional*, defaults to CelebA's four): Names of the label's bits, most
            significant first; `None` where a label is not made of attributes.
    """

    _supports_gradient_checkpointing = True
    _skip_layerwise_casting_patterns = ["norm"]

    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] = 64,
        in_channels: int = 3,
        out_channels: int = 3,
        block_out_channels: tuple[int, ...] = (64, 128, 256, 512),
        conv_in_channels: int | None = None,
        time_proj_dim: int | None = None,
        time_embedding_dim: int | None = None,
        num_attention_heads: int = 4,
        attention_head_dim: int = 32,
        mid_attention_type: str = "linear",
        norm_eps: float = 1e-5,
        num_class_embeds: int | None = 16,
        class_encoding: str = "integer",
        null_class_label: int = -1,
        class_attributes: tuple[str, ...] | None = ("Bangs", "Male", "Smiling", "Wearing_Lipstick"),
    ):
        super().__init__()
        _check_config(mid_attention_type, num_class_embeds, class_encoding, null_class_label, class_attributes)
        self.sample_size = sample_size
        widths = (conv_in_channels or block_out_channels[0], *block_out_channels)
        time_proj_dim = time_proj_dim or block_out_channels[0]
        temb_channels = time_embedding_dim or 4 * block_out_channels[0]
        attention = {
            "heads": num_attention_heads,
            "head_dim": attention_head_dim,
            "linear": True,
            "norm_eps": norm_eps,
        }

        self.class_embedding = None
        label_channels = 0
        if num_class_embeds is not None:
            self.class_embedding = LabelChannels(num_class_embeds, class_encoding, null_class_label)
            label_channels = self.class_embedding.num_channels
        self.conv_in = nn.Conv2d(in_channels + label_channels, widths[0], 7, padding=3)
        self.time_proj = Timesteps(time_proj_dim, flip_sin_to_cos=False, downscale_freq_shift=1)
        self.time_embedding = TimestepEmbedding(time_proj_dim, temb_channels, act_fn="gelu")

        last = len(block_out_channels) - 1
        self.down_blocks = nn.ModuleList(
            [
                ConvNextDownBlock2D(widths[i], widths[i + 1], temb_channels, attention, add_downsample=i < last)
                for i in range(len(block_out_channels))
            ]
        )
        self.mid_block = ConvNextMidBlock2D(
            widths[-1], temb_channels, {**attention, "linear": mid_attention_type == "linear"}
        )
        self.up_blocks = nn.ModuleList(
            [
                ConvNextUpBlock2D(block_out_channels[i], block_out_channels[i - 1], temb_channels, attention)
                for i in range(last, 0, -1)
            ]
        )
        self.resnet_out = ConvNextBlock2D(block_out_channels[0], block_out_channels[0], None, norm_eps)
        self.conv_out = nn.Conv2d(block_out_channels[0], out_channels, 1)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """See [`~diffusers.ModelMixin.from_pretrained`]. Outputs are bit-identical to those of the saved network."""
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded  # with `output_loading_info=True` a tuple
        # Weights mapped from the file are not aligned in memory, and kernels then round the last bit differently.
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()
        return loaded

    @property
    def total_stride(self) -> int:
        """The factor by which the bottleneck is smaller than the sample."""
        return 2 ** (len(self.config.block_out_channels) - 1)

    @property
    def layer_aliases(self) -> dict[str, str]:
        """Article-style layer names (`downs.1.3`, `mid_attn.fn`) -> module paths of this network."""
        modules = self.named_modules()
        return dict(annotated_names(tuple(path for path, module in modules if not isinstance(module, nn.ModuleList))))

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        class_labels: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet2DOutput | tuple[torch.Tensor]:
        r"""Predicts the output for a noisy sample.

        Args:
            sample (`torch.Tensor` of shape `(batch_size, in_channels, height, width)`):
                The noisy sample; height and width divisible by `total_stride`.
            timestep (`torch.Tensor` or `float` or `int`): The timestep, one for all or one per sample.
            class_labels (`torch.Tensor` of shape `(batch_size,)`, integer dtype, *optional*):
                Labels in `0 .. num_class_embeds - 1`, or `null_class_label`. Required by a conditional network.
            return_dict (`bool`, *optional*, defaults to `True`): Return a `UNet2DOutput` instead of a tuple.

        Returns:
            [`~diffusers.models.unets.unet_2d.UNet2DOutput`] or `tuple`: the output of shape `(batch_size,
            out_channels, height, width)`, first element of the tuple.

        Raises:
            ValueError: for a sample of the wrong shape, or labels that are missing, out of range or of the wrong
                shape or dtype.
        """
        self._check_inputs(sample, class_labels)
        if self.class_embedding is not None and class_labels is not None:
            labels = class_labels.to(sample.device)
            channels = self.class_embedding(labels, sample.shape[-2], sample.shape[-1], sample.dtype)
            sample = torch.cat([sample, channels], dim=1)

        timesteps = torch.as_tensor(timestep, device=sample.device).reshape(-1).expand(sample.shape[0])
        temb = self.time_embedding(self.time_proj(timesteps).to(self.dtype))

        hidden_states = self.conv_in(sample)
        skips: tuple[torch.Tensor, ...] = ()
        for block in self.down_blocks:
            hidden_states, block_skips = block(hidden_states, temb)
            skips += block_skips
        hidden_states = self.mid_block(hidden_states, temb)
        for block in self.up_blocks:
            hidden_states = block(hidden_states, skips[-1:], temb)
            skips = skips[:-1]
        output = self.conv_out(self.resnet_out(hidden_states))

        if not return_dict:
            return (output,)
        return UNet2DOutput(sample=output)

    def _check_inputs(self, sample: torch.Tensor, class_labels: torch.Tensor | None) -> None:
        channels = self.config.in_channels
        if sample.ndim != 4 or sample.shape[1] != channels:
            raise ValueError(
                f"Expected `sample` of shape (batch, {channels}, height, width), got {tuple(sample.shape)}. Label"
                " channels are added by the model from `class_labels`."
            )
        if sample.shape[-2] % self.total_stride or sample.shape[-1] % self.total_stride:
            raise ValueError(
                f"Expected `sample` height and width divisible by the total stride {self.total_stride}, got"
                f" {tuple(sample.shape[-2:])}."
            )
        if self.class_embedding is None:
            if class_labels is not None:
                raise ValueError("Expected `class_labels` None, as `num_class_embeds=None`, got labels.")
            return
        count, null = self.class_embedding.num_classes, self.class_embedding.null_label
        expected = (
            f"Expected `class_labels` as an integer tensor of shape ({sample.shape[0]},) with values 0..{count - 1}"
            f" or the null label {null}"
        )
        if class_labels is None:
            raise ValueError(f"{expected}, got None.")
        if class_labels.shape != (sample.shape[0],) or class_labels.is_floating_point() or class_labels.is_complex():
            raise ValueError(f"{expected}, got shape {tuple(class_labels.shape)} and {class_labels.dtype}.")
        # A check of values would break a compiled graph, and make every step of a training wait for the device.
        if torch.compiler.is_compiling() or (self.training and class_labels.device.type != "cpu"):
            return
        invalid = ((class_labels < 0) | (class_labels >= count)) & (class_labels != null)
        if invalid.any():
            raise ValueError(f"{expected}, got {class_labels[invalid].tolist()}.")

    @classmethod
    def from_annotated(
        cls, state_dict: dict[str, torch.Tensor], sample_size: int | tuple[int, int] = 64, **config: Any
    ) -> "ConvNextUNet2DModel":
        """Builds the network from weights under the names of *The Annotated Diffusion Model*.

        Widths, label channels and the bottleneck's kind of attention are inferred from the tensors. What tensors do
        not show keeps its default and can be passed in `config`.

        Args:
            state_dict (`dict[str, torch.Tensor]`): `init_conv.weight`, `downs.0.0.ds_conv.weight`, ...
            sample_size (`int` or `tuple[int, int]`): Height and width that the network was trained on.
            **config: `num_attention_heads` (4), `class_encoding` (`"integer"` for one label channel, `"bits"` for
                several), `class_attributes`, `norm_eps`.

        Raises:
            ValueError: for a state dict that is not such a network's, with the missing and unexpected names.
        """
        model = cls(sample_size=sample_size, **{**infer_annotated_config(state_dict), **config})
        aliases = model.layer_aliases
        converted, unexpected = {}, []
        for key, tensor in state_dict.items():
            module, _, parameter = key.rpartition(".")
            if module in aliases:
                converted[f"{aliases[module]}.{parameter}"] = tensor
            else:
                unexpected.append(key)
        missing = [key for key in model.state_dict() if key not in converted]
        if missing or unexpected:
            raise ValueError(
                "`state_dict` does not hold an article-style network of widths"
                f" {tuple(model.config.block_out_channels)}: missing {missing[:5]}, unexpected {unexpected[:5]}."
            )
        try:
            model.load_state_dict(converted)
        except RuntimeError as error:
            raise ValueError(f"Expected a `state_dict` that fits the widths inferred from it, got {error}") from error
        return model


def _check_config(
    mid_attention_type: str,
    num_class_embeds: int | None,
    class_encoding: str,
    null_class_label: int,
    class_attributes: Sequence[str] | None,
) -> None:
    if mid_attention_type not in MID_ATTENTION_TYPES:
        raise ValueError(f"Expected `mid_attention_type` in {MID_ATTENTION_TYPES}, got {mid_attention_type!r}.")
    if class_encoding not in CLASS_ENCODINGS:
        raise ValueError(f"Expected `class_encoding` in {CLASS_ENCODINGS}, got {class_encoding!r}.")
    if num_class_embeds is None:
        return
    if num_class_embeds < 2:
        raise ValueError(f"Expected `num_class_embeds` of at least 2, or None, got {num_class_embeds}.")
    if 0 <= null_class_label < num_class_embeds:
        raise ValueError(
            f"Expected `null_class_label` outside 0..{num_class_embeds - 1}, where the labels are, got"
            f" {null_class_label}."
        )
    if class_encoding == "bits" and num_class_embeds != 2 ** int(math.log2(num_class_embeds)):
        raise ValueError(
            f"Expected `num_class_embeds` as a power of 2 for `class_encoding='bits'`, got {num_class_embeds}."
        )
    if class_attributes is not None and 2 ** len(class_attributes) != num_class_embeds:
        raise ValueError(
            f"Expected one name per bit of the label in `class_attributes`: {len(class_attributes)} names make"
            f" {2 ** len(class_attributes)} labels, got `num_class_embeds={num_class_embeds}`."
        )
