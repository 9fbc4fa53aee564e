"""Runs a pipeline of the zoo, and sees what happens in it with plain hooks and autograd: shares no code."""

import functools
import inspect
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from unittest import mock

import diffusers
import torch
import torch.nn.functional as F
from diffusers.models.transformers.transformer_hidream_image import MOEFeedForwardSwiGLU


NETWORKS = ("unet", "transformer", "transformer_2", "prior", "decoder")
# What only attention modules own.
_PROJECTIONS = ("to_q", "to_qkv", "to_qkv_mlp_proj", "query", "to_query")


def run(pipe, entry, call=None, seed=0):
    """The result of a run: latents where the pipeline gives them, else images."""
    parameters = inspect.signature(type(pipe).__call__).parameters
    kind = {"output_type": entry.output} if "output_type" in parameters else {}
    diffusers.utils.logging.set_verbosity_error()
    call = functools.partial(type(pipe).__call__, pipe) if call is None else call
    generator = torch.Generator().manual_seed(seed)
    output = call(**entry.call, num_inference_steps=entry.steps, generator=generator, **kind)
    result = output[0][0] if isinstance(output[0], list) else output[0]
    return torch.as_tensor(result).detach().numpy()


@contextmanager
def experts_in_graph():
    """HiDream's experts, which it computes without a graph, as their sum by definition."""

    def experts(self, x, chosen, weights):
        chosen, weights = (part.view(len(x), -1) for part in (chosen, weights))
        shares = [((chosen == i) * weights).sum(dim=1, keepdim=True) for i in range(len(self.experts))]
        return sum(share * expert(x) for share, expert in zip(shares, self.experts, strict=True))

    with mock.patch.object(MOEFeedForwardSwiGLU, "moe_infer", experts):
        yield


def layers_of(pipe):
    """Path -> module of all networks that denoise; paths of `transformer_2` begin with its name."""
    found = {}
    for name in NETWORKS:
        network = getattr(pipe, name, None)
        if network is not None:
            prefix = f"{name}." if name == "transformer_2" else ""
            found |= {prefix + path: module for path, module in network.named_modules() if path}
    return found


def is_watched(path, entry):
    """Whether the queries and keys of an attention layer are kept."""
    return path == entry.attention or any(path == end or path.endswith(f".{end}") for end in entry.crosses)


def spied(pipe, entry, edit=None, seed=0, after_step=None):
    """A run that is watched, by step: what the scheduler and the denoiser got and gave, and what layers put out.

    Args:
        pipe: The pipeline.
        entry: Its entry.
        edit: `edit(output, step, call)` gives what the entry's layer puts out instead.
        seed: Of the generator.
        after_step: `after_step(seen)` is called at the end of every step, in the state in which the step was made.

    Returns:
        `SimpleNamespace` of `result`; `states`, `results`, `predictions`, `clean` (x̂_0, where it is told),
        `timesteps` and `sigmas` of `scheduler.step`; by step `calls` (list of (module, args, kwargs, output)),
        `outputs` (list of the layer's outputs), `attentions` (path -> list of query, key, mask, scale) and `attended`
        (path -> list of the outputs of attention layers before any residual sum).
    """
    seen = SimpleNamespace(states=[], results=[], predictions=[], clean=[], timesteps=[], sigmas=[])
    seen.calls, seen.outputs, seen.attentions, seen.attended = [[]], [[]], [{}], [{}]
    original_step, original_attention, inside = pipe.scheduler.step, F.scaled_dot_product_attention, []

    @functools.wraps(original_step)
    def step(model_output, timestep, sample, *args, **kwargs):
        result = original_step(model_output, timestep, sample, *args, **kwargs)
        seen.states.append(sample.clone())
        seen.results.append((result[0] if isinstance(result, tuple) else result.prev_sample).clone())
        seen.predictions.append(model_output.clone())
        seen.timesteps.append(float(timestep))
        sigmas, index = getattr(pipe.scheduler, "sigmas", None), getattr(pipe.scheduler, "step_index", None)
        seen.sigmas.append(None if sigmas is None or index is None else float(sigmas[index - 1]))
        seen.clean.append(_clean(result))
        for by_step in (seen.calls, seen.outputs):
            by_step.append([])
        for by_step in (seen.attentions, seen.attended):
            by_step.append({})
        if after_step is not None:
            inside.append(None)  # what is computed there is no part of the run
            after_step(seen)
            inside.clear()
        return result

    def attend(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, **kwargs):
        if inside and inside[0] is not None:
            seen.attentions[-1].setdefault(inside[-1], []).append((query, key, attn_mask, scale))
        return original_attention(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, **kwargs)

    def enter(path, module, args):
        inside.append(path)
        if hasattr(module, "query"):  # computes the softmax itself (UNet1DModel)
            hidden = module.group_norm(args[0]).transpose(1, 2)
            query, key = (module.transpose_for_scores(part(hidden)) for part in (module.query, module.key))
            seen.attentions[-1].setdefault(path, []).append((query, key, None, None))

    def keep_output(module, args, output):
        if inside == [None]:
            return None
        seen.outputs[-1].append(output)
        return None if edit is None else edit(output, len(seen.outputs) - 1, len(seen.outputs[-1]) - 1)

    def keep_call(module, args, kwargs, output):
        if not inside:
            seen.calls[-1].append((module, args, kwargs, output))

    def keep_attended(path, module, args, output):
        if inside[:1] != [None]:
            seen.attended[-1].setdefault(path, []).append(output)

    with ExitStack() as stack:
        pipe.scheduler.step = step
        stack.callback(delattr, pipe.scheduler, "step")
        F.scaled_dot_product_attention = attend
        stack.callback(setattr, F, "scaled_dot_product_attention", original_attention)
        for name in NETWORKS:
            if getattr(pipe, name, None) is not None:
                stack.callback(getattr(pipe, name).register_forward_hook(keep_call, with_kwargs=True).remove)
        layers = layers_of(pipe)
        stack.callback(layers[entry.layer].register_forward_hook(keep_output).remove)
        for path, module in layers.items():
            if is_watched(path, entry):
                stack.callback(module.register_forward_pre_hook(functools.partial(enter, path)).remove)
                stack.callback(module.register_forward_hook(lambda m, args, output: inside.pop() and None).remove)
            if any(hasattr(module, name) for name in _PROJECTIONS):
                source = module.to_out[1] if getattr(module, "residual_connection", False) else module
                kept = functools.partial(keep_attended, path)
                if hasattr(module, "to_qkv_mlp_proj"):  # its output is the MLP's too
                    source, width = module.to_out, module.heads * module.head_dim
                    kept = lambda m, args, output, kept=kept, width=width: kept(m, args, args[0][..., :width])  # noqa: E731
                stack.callback(source.register_forward_hook(kept).remove)
        seen.result = run(pipe, entry, seed=seed)
    return seen


def _clean(result):
    """The clean image that `scheduler.step` returned, if it tells."""
    if isinstance(result, tuple):
        return result[1].clone() if len(result) > 1 else None
    found = getattr(result, "pred_original_sample", getattr(result, "denoised", None))
    return None if found is None else found.clone()


def ended_with(pipe, entry, state, last):
    """What a pipeline gives if its step of index `last` results in `state`."""
    original, done = pipe.scheduler.step, []

    @functools.wraps(original)
    def step(*args, **kwargs):
        output = original(*args, **kwargs)
        done.append(1)
        if len(done) <= last:
            return output
        if isinstance(output, tuple):
            return (state, *output[1:])
        output.prev_sample = state
        return output

    with mock.patch.object(pipe.scheduler, "step", step):
        return run(pipe, entry)


def differentiated(pipe, entry, step):
    """A run of the pipeline's own code with a graph from the state before a step to the state after it.

    Args:
        pipe: The pipeline.
        entry: Its entry.
        step: Index of the step, at least 1.

    Returns:
        `SimpleNamespace` of `leaf` (what the step before gave), `state` (what the step was given of it), `result` and
        `outputs`, the outputs of the entry's layer in that step.
    """
    seen, original = SimpleNamespace(outputs=[], count=0), pipe.scheduler.step

    @functools.wraps(original)
    def stepped(model_output, timestep, sample, *args, **kwargs):
        output = original(model_output, timestep, sample, *args, **kwargs)
        after = output[0] if isinstance(output, tuple) else output.prev_sample
        if seen.count == step:
            seen.state, seen.result = sample, after
        after = after.detach()
        if seen.count == step - 1:
            seen.leaf = after.requires_grad_()
        seen.count += 1
        if isinstance(output, tuple):
            return (after, *output[1:])
        output.prev_sample = after
        return output

    def keep(module, args, output):
        if seen.count == step:
            seen.outputs.append(output)

    with ExitStack() as stack:
        for component in pipe.components.values():
            if isinstance(component, torch.nn.Module):
                component.requires_grad_(False)
                stack.callback(component.requires_grad_, True)
        pipe.scheduler.step = stepped
        stack.callback(delattr, pipe.scheduler, "step")
        stack.callback(layers_of(pipe)[entry.layer].register_forward_hook(keep).remove)
        stack.enter_context(torch.enable_grad())
        stack.enter_context(experts_in_graph())
        run(pipe, entry, functools.partial(type(pipe).__call__.__wrapped__, pipe))
    return seen
