"""What cannot be seen of a model family: a row per class of denoiser."""

from collections.abc import Callable
from dataclasses import dataclass

from diffusers_xai.denoisers import grids
from diffusers_xai.denoisers.call import DenoiserCall


# Parts of a sequence of joint attention. `pad` fills up to a multiple of 32, `reference` holds images to edit.
PARTS = ("image", "text", "register", "pad", "reference")


@dataclass(frozen=True)
class Layout:
    """What a class of denoisers does that its calls do not show.

    Args:
        grid (`Callable`, *optional*): Gives (height, width), (frame, height, width), or of sound (frame,) of the image
            tokens of a call; `None` where levels have grids of their own (U-Nets).
        order (`tuple[str, ...]`, *optional*): The parts of a sequence that holds image and text, in their order, from
            `PARTS`. Needed by joint attention, and where registers stand beside the image.
        cross_order (`tuple[str, ...]`): The parts of the keys of cross-attention whose keys hold image positions too.
        text (`tuple[str, ...]`): Arguments of the call whose tokens are the first keys of text, in their order; needed
            where that is not the order of the arguments, one comes twice, or keys of no token stand behind.
        image_blocks (`tuple[str, ...]`): Modules of the network all of whose attention layers look from the image, or
            from a sequence that holds it. Of layers elsewhere it is measured, in one more denoiser call.
        image_prompt_first (`bool`): Whether layers that look at an image prompt and at the text, each in an attention
            of its own, look at the image prompt first, through projections whose names begin with `add_`.
        branches (`tuple[str, ...]`): Names of the guidance branches in the order in which they are computed.
        separate_calls (`bool`): Whether each branch is a call of its own instead of a part of the batch.
        doubles_sample (`bool`): Whether the scheduler's own state holds every image once per branch.
        scale_guides (`bool`): Whether pipelines guide wherever their `guidance_scale` is above 1, and say so nowhere.
        frames_first (`bool`): Whether a sample of video or sound is (row, frame, channel, …) instead of (row, channel,
            frame, …).
        channels_last (`bool`): Whether a sample of video is (row, frame, height, width, channel).
        sign (`int`): -1 where pipelines turn the sign of the prediction around before `scheduler.step`.
        registers (`str`, *optional*): Attribute, or argument of the call, with the registers (…, token, channel).
        aliases (`str`, *optional*): Attribute that maps other layer names to module paths.
    """

    grid: Callable[[DenoiserCall], tuple[int, ...]] | None = None
    order: tuple[str, ...] | None = None
    cross_order: tuple[str, ...] = ("text", "image")
    text: tuple[str, ...] = ()
    image_blocks: tuple[str, ...] = ()
    image_prompt_first: bool = False
    branches: tuple[str, ...] = ("uncond", "cond")
    separate_calls: bool = False
    doubles_sample: bool = False
    scale_guides: bool = False
    frames_first: bool = False
    channels_last: bool = False
    sign: int = 1
    registers: str | None = None
    aliases: str | None = None

    def __post_init__(self) -> None:
        unknown = {part for part in (*(self.order or ()), *self.cross_order) if part not in PARTS}
        if unknown:
            raise ValueError(f"Expected parts from {PARTS}, got {sorted(unknown)}.")


_COND_FIRST = ("cond", "uncond")
_TEXT_FIRST, _IMAGE_FIRST = ("text", "image"), ("image", "text")
_REGISTERS_FIRST = ("register", "image")
_SAMPLE, _PACKED = grids.patches, grids.image_ids
_LEVELS = ("down_blocks", "mid_block", "up_blocks")
_BLOCKS = ("transformer_blocks", "single_transformer_blocks")

# By class name: a class that a Hub repository carries as code has the same name and another module.
_LAYOUTS: dict[str, Layout] = {
    "ConvNextUNet2DModel": Layout(aliases="layer_aliases"),
    "GaussianDenoiser": Layout(),
    "MixtureDenoiser": Layout(),
    "EmpiricalDenoiser": Layout(),
    "UNet2DModel": Layout(),
    "UNet2DConditionModel": Layout(image_blocks=_LEVELS),
    "UNet3DConditionModel": Layout(),
    "UNetMotionModel": Layout(image_blocks=_LEVELS),
    "UNetSpatioTemporalConditionModel": Layout(frames_first=True),
    "UNet1DModel": Layout(),
    "Kandinsky3UNet": Layout(),
    "StableCascadeUNet": Layout(cross_order=_IMAGE_FIRST, text=("clip_text",), branches=_COND_FIRST),
    "DiTTransformer2DModel": Layout(_SAMPLE, branches=_COND_FIRST, doubles_sample=True, scale_guides=True),
    "PixArtTransformer2DModel": Layout(_SAMPLE, image_blocks=_BLOCKS),
    "HunyuanDiT2DModel": Layout(_SAMPLE),
    "LuminaNextDiT2DModel": Layout(_SAMPLE, branches=_COND_FIRST, sign=-1),
    "SanaTransformer2DModel": Layout(_SAMPLE),
    "SD3Transformer2DModel": Layout(_SAMPLE, _IMAGE_FIRST, image_blocks=_BLOCKS),
    "AuraFlowTransformer2DModel": Layout(_SAMPLE, ("register", "text", "image"), registers="register_tokens"),
    "CogView3PlusTransformer2DModel": Layout(_SAMPLE, _TEXT_FIRST),
    "CogView4Transformer2DModel": Layout(_SAMPLE, _TEXT_FIRST, branches=_COND_FIRST, separate_calls=True),
    "Lumina2Transformer2DModel": Layout(_SAMPLE, _TEXT_FIRST, branches=_COND_FIRST, separate_calls=True, sign=-1),
    "HiDreamImageTransformer2DModel": Layout(
        _SAMPLE,
        _IMAGE_FIRST,
        text=("encoder_hidden_states_t5", *["encoder_hidden_states_llama3"] * 2),
        sign=-1,
    ),
    "ZImageTransformer2DModel": Layout(
        grids.listed_patches, ("image", "pad", "text", "pad"), branches=_COND_FIRST, sign=-1
    ),
    "FluxTransformer2DModel": Layout(
        _PACKED,
        ("text", "image", "reference"),
        image_blocks=_BLOCKS,
        branches=_COND_FIRST,
        separate_calls=True,
    ),
    "Flux2Transformer2DModel": Layout(
        _PACKED, ("text", "image", "reference"), branches=_COND_FIRST, separate_calls=True
    ),
    "BriaTransformer2DModel": Layout(_PACKED, _TEXT_FIRST, image_blocks=_BLOCKS),
    "OvisImageTransformer2DModel": Layout(
        _PACKED, _TEXT_FIRST, image_blocks=_BLOCKS, branches=_COND_FIRST, separate_calls=True, scale_guides=True
    ),
    "ChromaTransformer2DModel": Layout(_PACKED, _TEXT_FIRST, branches=_COND_FIRST, separate_calls=True),
    "QwenImageTransformer2DModel": Layout(
        grids.image_shapes,
        ("text", "image", "reference"),
        image_blocks=_BLOCKS,
        branches=_COND_FIRST,
        separate_calls=True,
    ),
    "CogVideoXTransformer3DModel": Layout(grids.patches_frames_first, _TEXT_FIRST, frames_first=True),
    "WanTransformer3DModel": Layout(_SAMPLE, image_prompt_first=True, branches=_COND_FIRST, separate_calls=True),
    "SkyReelsV2Transformer3DModel": Layout(
        _SAMPLE, image_prompt_first=True, branches=_COND_FIRST, separate_calls=True
    ),
    "LTXVideoTransformer3DModel": Layout(grids.keywords),
    "HunyuanVideoTransformer3DModel": Layout(_SAMPLE, _IMAGE_FIRST, branches=_COND_FIRST, separate_calls=True),
    "Kandinsky5Transformer3DModel": Layout(
        grids.patches_channels_last,
        image_blocks=("visual_transformer_blocks",),
        branches=_COND_FIRST,
        separate_calls=True,
        scale_guides=True,
        channels_last=True,
    ),
    "MochiTransformer3DModel": Layout(_SAMPLE, _IMAGE_FIRST),
    "AllegroTransformer3DModel": Layout(_SAMPLE),
    "LatteTransformer3DModel": Layout(_SAMPLE),
    "StableAudioDiTModel": Layout(grids.sequence, _REGISTERS_FIRST, registers="global_hidden_states"),
    "StableAudio3DiTModel": Layout(grids.sequence, _REGISTERS_FIRST, registers="memory_tokens"),
    "LongCatAudioDiTTransformer": Layout(
        grids.sequence_frames_first, branches=_COND_FIRST, separate_calls=True, scale_guides=True, frames_first=True
    ),
    "AceStepTransformer1DModel": Layout(grids.sequence_frames_first, branches=_COND_FIRST, frames_first=True),
}


def register_layout(name: str, layout: Layout) -> None:
    """Tells how a class of denoisers works, so that what needs it (word maps, joint attention) works too.

    Args:
        name (`str`): The class's name, such as `"MyTransformer2DModel"`.
        layout ([`Layout`]): How it works; replaces what was known of a class of that name.

    Raises:
        TypeError: if `layout` is none.
    """
    if not isinstance(layout, Layout):
        raise TypeError(f"Expected a `Layout`, got {type(layout).__name__}.")
    _LAYOUTS[name] = layout


def layout_of(module: object) -> Layout | None:
    """The layout of a denoiser, by the name of its class or of one that it inherits from; `None` if unknown."""
    return next((_LAYOUTS[base.__name__] for base in type(module).__mro__ if base.__name__ in _LAYOUTS), None)
