"""Finds the denoiser among a pipeline's components."""

from collections.abc import Mapping, Sequence

from torch import nn

from diffusers_xai.denoisers.base import Denoiser, unwrapped
from diffusers_xai.denoisers.layouts import layout_of
from diffusers_xai.passed import Pipeline


# What pipelines call the networks that they denoise with; of several, all that are there are recorded.
_NAMES = ("unet", "transformer", "transformer_2", "unet_2", "prior", "decoder", "denoiser", "dit", "model")


def get_denoiser(pipeline: Pipeline, component: str | Sequence[str] | None = None) -> Denoiser:
    """The network that a pipeline calls before `scheduler.step`, of any class.

    Args:
        pipeline (`DiffusionPipeline` or any object with a `scheduler` and networks as attributes): Any pipeline.
        component (`str` or sequence of `str`, *optional*): Names of the pipeline's components. If `None`: those of a
            known class; else those with a usual name (`unet`, `transformer`, …); else the only network that is neither
            an autoencoder nor a library's encoder of text or images.

    Raises:
        TypeError: if there is no such network, or several could be meant, with the networks that there are.
    """
    networks = networks_of(pipeline)
    if component is not None:
        names = [component] if isinstance(component, str) else list(component)
        missing = [name for name in names if name not in networks]
        if missing or not names:
            raise TypeError(
                f"Expected `denoiser` among the networks of {type(pipeline).__name__}: {_listed(networks)}; got"
                f" {missing or names}."
            )
        return Denoiser({name: networks[name] for name in names})
    named = {name: networks[name] for name in _NAMES if name in networks and not _is_codec(networks[name])}
    known = {name: module for name, module in networks.items() if layout_of(unwrapped(module)) is not None}
    other = {name: module for name, module in networks.items() if not _is_auxiliary(module)}
    for found in (named, known, other):
        if len(found) == 1 or (found and found is named):
            return Denoiser(found)
        if found:
            break
    raise TypeError(
        f"Expected a pipeline with one network that denoises, got {type(pipeline).__name__} with"
        f" {_listed(networks)}. Say which: `record(pipeline, …, denoiser='…')`."
    )


def networks_of(pipeline: Pipeline) -> dict[str, nn.Module]:
    """All networks of a pipeline by name."""
    components = getattr(pipeline, "components", None)
    found = dict(components) if isinstance(components, Mapping) else {}
    attributes = getattr(pipeline, "__dict__", {})
    found = {**attributes.get("_modules", {}), **attributes, **found}
    return {name: module for name, module in found.items() if isinstance(module, nn.Module)}


def _is_codec(module: nn.Module) -> bool:
    return hasattr(module, "encode") and hasattr(module, "decode")


def _is_auxiliary(module: nn.Module) -> bool:
    """Whether a network only prepares or decodes: an autoencoder, an encoder of transformers, a ControlNet."""
    network = type(unwrapped(module))
    return (
        _is_codec(module)
        or network.__module__.startswith("transformers.")
        or any(
            word in network.__name__
            for word in ("ControlNet", "Adapter", "SafetyChecker", "Encoder", "Projection", "Decoder")
        )
    )


def _listed(networks: Mapping[str, nn.Module]) -> str:
    return (
        ", ".join(f"{name} ({type(unwrapped(module)).__name__})" for name, module in networks.items()) or "no network"
    )
