"""Runs a pipeline of the zoo, and sees what happens in it with plain hooks: an oracle that shares no code."""

import functools
import inspect
from contextlib import ExitStack
from types import SimpleNamespace

import diffusers
import numpy as np
import torch
import torch.nn.functional as F


def run(pipe, entry):
    """The result of a run: latents where the pipeline gives them, else images."""
    parameters = inspect.signature(type(pipe).__call__).parameters
    only_images = type(pipe).__name__ in ("DiTPipeline", "IFPipeline")
    kind = {"output_type": "np" if only_images else "latent"} if "output_type" in parameters else {}
    pipe.set_progress_bar_config(disable=True)
    diffusers.utils.logging.set_verbosity_error()
    output = pipe(**entry.call, num_inference_steps=entry.steps, generator=torch.Generator().manual_seed(0), **kind)
    result = output[0]
    return np.asarray(result[0] if isinstance(result, list) else result)


def spied(pipe, entry, layer=None, attention=None, edit=None):
    """A run that is watched: what the scheduler and the denoiser got and gave, and a layer's raw outputs, by step.

    Returns:
        `SimpleNamespace` of `result`, `states` and `results` (of `scheduler.step`), `calls` (lists of (module, args,
        kwargs, output) by step), `outputs` (lists of a layer's outputs by step) and `attentions` (lists of query, key,
        mask and scale by step).
    """
    seen = SimpleNamespace(
        states=[], results=[], predictions=[], timesteps=[], calls=[[]], outputs=[[]], attentions=[[]]
    )
    networks = [
        getattr(pipe, name) for name in ("unet", "transformer", "transformer_2", "prior") if hasattr(pipe, name)
    ]
    networks = [network for network in networks if network is not None]
    original_step, original_attention, inside = pipe.scheduler.step, F.scaled_dot_product_attention, []

    @functools.wraps(original_step)
    def step(model_output, timestep, sample, *args, **kwargs):
        result = original_step(model_output, timestep, sample, *args, **kwargs)
        seen.states.append(sample.clone())
        seen.predictions.append(model_output.clone())
        seen.timesteps.append(float(timestep))
        seen.results.append((result[0] if isinstance(result, tuple) else result.prev_sample).clone())
        for by_step in (seen.calls, seen.outputs, seen.attentions):
            by_step.append([])
        return result

    def attend(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, **kwargs):
        if inside:
            seen.attentions[-1].append((query, key, attn_mask, scale))
        return original_attention(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, **kwargs)

    def module_of(path):
        for name in ("transformer_2", "unet", "transformer", "prior"):
            network = getattr(pipe, name, None)
            if network is not None:
                short = path.removeprefix(f"{name}.")
                modules = dict(network.named_modules())
                if short in modules and (name != "transformer_2" or path != short):
                    return modules[short]
        raise KeyError(path)

    def keep_output(module, args, output):
        seen.outputs[-1].append(output)
        return edit(output) if edit is not None else None

    with ExitStack() as stack:
        pipe.scheduler.step = step
        stack.callback(delattr, pipe.scheduler, "step")
        F.scaled_dot_product_attention = attend
        stack.callback(setattr, F, "scaled_dot_product_attention", original_attention)
        for network in networks:
            keep_call = lambda m, args, kwargs, output: seen.calls[-1].append((m, args, kwargs, output))  # noqa: E731
            stack.callback(network.register_forward_hook(keep_call, with_kwargs=True).remove)
        if layer is not None:
            stack.callback(module_of(layer).register_forward_hook(keep_output).remove)
        if attention is not None:
            module = module_of(attention)
            stack.callback(module.register_forward_pre_hook(lambda m, args: inside.append(1)).remove)
            stack.callback(module.register_forward_hook(lambda m, args, output: inside.pop() and None).remove)
        seen.result = run(pipe, entry)
    return seen
