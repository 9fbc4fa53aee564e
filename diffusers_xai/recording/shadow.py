"""A pipeline's copy that can be called beside the original: same networks, own scheduler, own settings."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from diffusers_xai.denoisers import networks_of
from diffusers_xai.passed import Pipeline
from diffusers_xai.taps import copy_scheduler


@contextmanager
def shadow_of(pipeline: Pipeline) -> Iterator[Any]:
    """A shallow copy of `pipeline` with a scheduler of its own and without a progress bar.

    Attention processors that a call of it leaves behind in the networks are put back at the end.
    """
    modules = [module for network in networks_of(pipeline).values() for module in network.modules()]
    processors = [(module, module.processor) for module in modules if hasattr(module, "processor")]
    shadow = copy.copy(pipeline)
    # Past `__setattr__`, which would write the copy into the pipeline's configuration.
    vars(shadow).update(scheduler=copy_scheduler(pipeline.scheduler), _progress_bar_config={"disable": True})
    vars(shadow).pop("progress_bar", None)  # a tap's attribute stays bound to the original
    try:
        yield shadow
    finally:
        for module, processor in processors:
            if module.processor is not processor:
                module.processor = processor


def shadow_arguments(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call for a shadow: sources of noise are copied, callbacks are left out."""
    return {
        name: _copied(value)
        for name, value in arguments.items()
        if not name.startswith("callback") and name != "kwargs"
    }


def _copied(value: Any) -> Any:
    if isinstance(value, torch.Generator):
        return value.clone_state()
    if isinstance(value, list) and any(isinstance(item, torch.Generator) for item in value):
        return [_copied(item) for item in value]
    return value
