"""Caches that let a network skip layers."""

import re
from typing import Any

from torch import nn

from diffusers_xai.taps.modules import modules_in


# The modules of diffusers whose hooks skip layers.
_OF_CACHES = re.compile(r"diffusers\.hooks\.(\w+_cache|pyramid_attention_broadcast)")


def cache_of(network: nn.Module) -> str | None:
    """The name of a cache that is on in a network of diffusers; `None` if none is."""
    if getattr(network, "is_cache_enabled", False):
        config: Any = getattr(network, "_cache_config", None)
        return type(config).__name__
    for module in modules_in(network):
        registry: Any = vars(module).get("_diffusers_hook")
        for hook in getattr(registry, "hooks", {}).values():
            if _OF_CACHES.fullmatch(type(hook).__module__):
                return type(hook).__name__
    return None
