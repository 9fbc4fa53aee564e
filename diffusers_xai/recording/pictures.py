"""A pipeline's samples as pictures: its autoencoder decodes them, as the pipeline itself does at the end."""

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ModelMixin

from diffusers_xai.denoisers import networks_of
from diffusers_xai.passed import Pipeline


# What pipelines call the autoencoder that makes their pictures.
_AUTOENCODERS = ("vae", "movq", "vqvae")
# Pipelines that scale what they decode by numbers of their own, which no configuration tells.
_OWN_SCALE = ("Cosmos", "SanaSprint")


def picture_decoder(pipeline: Pipeline, channels: int, positions: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """The function from samples (row, channel, *positions) to pictures (row, color, [frame,] height, width) in bytes.

    Args:
        pipeline (`DiffusionPipeline`): The pipeline.
        channels (`int`): Of its samples; tokens that hold several pixels of a latent have those of all.
        positions (`int`): Number of dims over which its samples extend: 2 for images, 3 for videos.

    Raises:
        ValueError: if the samples are no pictures, or how they become some is not known.
    """
    networks = networks_of(pipeline)
    vae: ModelMixin = next((networks[name] for name in _AUTOENCODERS if name in networks), None)
    expected = f"DecodedImages: expected a pipeline with {', '.join(map(repr, _AUTOENCODERS))} to decode its samples"
    if positions not in (2, 3) or "vocoder" in networks:
        raise ValueError(f"DecodedImages: expected samples that are pictures, got those of {_name(pipeline)}.")
    if vae is None:
        if channels not in (1, 3):
            raise ValueError(f"{expected}, or colours as samples; got {_name(pipeline)} with {channels} channels.")
        return picture_bytes
    if not hasattr(vae, "decode") or type(pipeline).__name__.startswith(_OWN_SCALE):
        raise ValueError(f"{expected} as their configurations say, got {_name(pipeline)}, which has a way of its own.")
    own = vae.config.get("latent_channels") or vae.config.get("z_dim")
    patch = math.isqrt(channels // own) if own else 0
    if not own or own * patch**2 != channels or (patch > 1 and positions == 3):
        raise ValueError(f"{expected} of {channels} channels, got {type(vae).__name__} with {own} latent channels.")
    return lambda latents: picture_bytes(_decoded(vae, latents, patch))


@torch.no_grad()
def _decoded(vae: ModelMixin, latents: torch.Tensor, patch: int) -> torch.Tensor:
    with _upcast(vae) as dtype:
        latents = _unscaled(vae, latents.detach().to(_device(vae), dtype), patch)
        # One by one: no more memory than the pipeline itself takes for one picture.
        return torch.cat([_decode_one(vae, row) for row in latents.split(1)])


def _unscaled(vae: ModelMixin, latents: torch.Tensor, patch: int) -> torch.Tensor:
    """Undoes what the pipeline did to the autoencoder's latents."""
    config = vae.config
    if hasattr(vae, "bn"):  # of whole tokens
        std = (vae.bn.running_var + config.batch_norm_eps).sqrt()
        latents = latents * _per_channel(std, latents) + _per_channel(vae.bn.running_mean, latents)
    if patch > 1:
        latents = F.pixel_shuffle(latents, patch)
    if hasattr(vae, "bn"):
        return latents
    if "force_not_quantize" in _parameters(vae):
        return latents
    scale = config.get("scaling_factor") or 1.0
    stated = {**dict(vae.named_buffers(recurse=False)), **{k: v for k, v in config.items() if v is not None}}
    mean, std = stated.get("latents_mean"), stated.get("latents_std")
    if mean is not None and std is not None:
        return latents * _per_channel(std, latents) / scale + _per_channel(mean, latents)
    return latents / scale + (config.get("shift_factor") or 0.0)


def _decode_one(vae: ModelMixin, latents: torch.Tensor) -> torch.Tensor:
    parameters = _parameters(vae)
    options: dict[str, Any] = {"return_dict": False}
    if "force_not_quantize" in parameters:
        options["force_not_quantize"] = True
    if vae.config.get("timestep_conditioning"):
        options["temb"] = torch.zeros(1, device=latents.device, dtype=latents.dtype)
    of_videos = any(parameter.ndim == 5 for parameter in vae.parameters()) and "num_frames" not in parameters
    if latents.ndim == 5 and not of_videos:  # frame by frame
        if "num_frames" in parameters:
            options["num_frames"] = latents.shape[2]
        frames = vae.decode(latents[0].transpose(0, 1), **options)[0]
        return frames.transpose(0, 1)[None]
    if latents.ndim == 4 and of_videos:  # an image is a video of one frame
        return vae.decode(latents[:, :, None], **options)[0][:, :, 0]
    return vae.decode(latents, **options)[0]


@contextmanager
def _upcast(vae: ModelMixin) -> Iterator[torch.dtype]:
    """The dtype to decode in; a half-precision autoencoder that would overflow is float32 meanwhile."""
    dtype = next(vae.parameters()).dtype
    if dtype != torch.float16 or not vae.config.get("force_upcast"):
        yield dtype
        return
    vae.to(torch.float32)
    try:
        yield torch.float32
    finally:
        vae.to(dtype)


def _device(vae: ModelMixin) -> torch.device:
    hook = getattr(vae, "_hf_hook", None)  # where accelerate moves an offloaded network to
    device = getattr(hook, "execution_device", None)
    return next(vae.parameters()).device if device is None else torch.device(device)


def _parameters(vae: ModelMixin) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(vae.decode).parameters


def _per_channel(values: Any, latents: torch.Tensor) -> torch.Tensor:
    column = torch.as_tensor(values).to(latents.device, latents.dtype)
    return column.view(1, -1, *[1] * (latents.ndim - 2))


def picture_bytes(pictures: torch.Tensor) -> torch.Tensor:
    """Pictures in [-1, 1], clipped, as whole numbers from 0 to 255."""
    return ((pictures.detach().float() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)


def _name(pipeline: Pipeline) -> str:
    return type(pipeline).__name__
