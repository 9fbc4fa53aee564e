"""Compiled modules run eagerly while they are tapped."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from diffusers_xai.taps.modules import modules_in


@contextmanager
def force_eager(module: nn.Module) -> Iterator[None]:
    """Runs compiled parts of `module` eagerly: hooks added after the first compiled call would never fire."""
    is_compiled = any(
        type(child).__name__ == "OptimizedModule" or getattr(child, "_compiled_call_impl", None) is not None
        for child in modules_in(module)
    )
    if not is_compiled:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield
