"""What a recording has to hold: worked out by hand from what plain hooks see. Shares no code with the package."""

from math import prod

import torch
import torch.nn.functional as F

from tests.zoo.running import experts_in_graph


def samples_of(seen, entry):
    """Number of images of a run."""
    return state(seen.states[0], entry).shape[0] // (len(entry.branches) if entry.doubled else 1)


def state(tensor, entry):
    """What has the form of the scheduler's state as (row, channel, *positions)."""
    if tensor.ndim == 3 and entry.grid is not None and len(entry.grid) > 1:
        return tensor[:, : prod(entry.grid)].transpose(1, 2).unflatten(2, entry.grid)
    if entry.frames_in_rows and tensor.ndim == 4:
        return tensor.unflatten(0, (-1, entry.grid[0])).transpose(1, 2)
    if entry.channels_last:
        return tensor.permute(0, 4, 1, 2, 3)
    return tensor.transpose(1, 2) if entry.frames_first else tensor


def clean(seen, entry, step):
    """(sample, channel, *positions): x̂_0 as the scheduler tells it, of flows by its definition; `None` elsewhere."""
    told = seen.clean[step]
    if told is None and entry.predicts is not None and entry.predicts.endswith("flow"):
        told = seen.states[step] - seen.sigmas[step] * seen.predictions[step]
    if entry.predicts == "inverted":  # the scheduler counts the share of the image
        told = seen.states[step] + (1 - seen.sigmas[step]) * seen.predictions[step]
    return None if told is None else state(told, entry)[: samples_of(seen, entry)]


def image_of(output, entry):
    """The tensor of a layer's output that is the image's."""
    return output if isinstance(output, torch.Tensor) else list(output)[entry.position]


def placed(raw, entry, rows, first=None):
    """A layer's tensor as (row, channel, *positions), of the image alone; a view."""
    if raw.ndim == 4:
        return raw if len(raw) == rows else raw.unflatten(0, (rows, -1)).transpose(1, 2)
    if entry.grid is None or raw.ndim != 3:
        return raw
    if len(raw) != rows:  # frames are rows
        return raw.unflatten(0, (rows, -1)).permute(0, 3, 1, 2).unflatten(3, entry.grid[1:])
    count = prod(entry.grid)
    first = 0 if raw.shape[1] == count else entry.first if first is None else first
    return raw[:, first : first + count].transpose(1, 2).unflatten(2, entry.grid)


def by_branch(parts, entry, samples):
    """Rows of one or several calls -> (sample, branch, …)."""
    rows = torch.cat(list(parts))
    return torch.stack(rows.split(samples), dim=1) if len(entry.branches) > 1 else rows


def rows_of(call):
    """Rows of a denoiser call."""
    module, args, kwargs, _ = call
    return len(args[0] if args else next(iter(kwargs.values())))


def of_layer(outputs, calls, entry, samples):
    """A layer's outputs in the calls of a step, by branch."""
    rows = [rows_of(call) for call in calls]
    images = [placed(image_of(output, entry), entry, n) for output, n in zip(outputs, rows, strict=True)]
    return by_branch(images, entry, samples)


def edited(output, entry, samples, change):
    """A layer's output with `change(image)` written into its image (row, channel, …)."""
    tensor = image_of(output, entry)
    changed = tensor.clone()
    rows, grid = len(tensor), entry.grid
    if grid is not None and (tensor.ndim == 4 or tensor.shape[1] < prod(grid)):  # frames are rows
        rows //= grid[0]
    change(placed(changed, entry, rows))
    if isinstance(output, torch.Tensor):
        return changed
    parts = list(output)
    parts[entry.position] = changed
    # A down block's last skip is its hidden state.
    parts = [tuple(changed if p is tensor else p for p in part) if isinstance(part, tuple) else part for part in parts]
    return type(output)(parts)


def weights(query, key, mask, scale):
    """Softmax attention by its definition, (row, head, query, key)."""
    if key.shape[1] != query.shape[1]:  # heads share keys
        key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    scores = query.double() @ key.double().transpose(-1, -2) * (scale or query.shape[-1] ** -0.5)
    if mask is not None:
        bias = torch.zeros(mask.shape, dtype=torch.float64)
        scores = scores + (bias.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else mask)
    return scores.softmax(dim=-1)


def attention_weights(seen, entry, step):
    """(sample, branch, head, [frame,] token): how the image looks at each token, on average over its positions."""
    parts = []
    for call in _texts(seen.attentions[step][entry.attention], entry):
        own = weights(*call)[..., slice(*entry.queries), :][..., slice(*entry.keys)].mean(dim=-2)
        parts.append(own)
    rows = sum(rows_of(call) for call in seen.calls[step])
    total = torch.cat(parts)
    if len(total) != rows:  # frames are rows
        total = total.unflatten(0, (rows, -1)).movedim(1, 2)
    return by_branch([total], entry, samples_of(seen, entry))


def _texts(calls, entry):
    """The attentions to the text; an IP-Adapter's, or what is taken away from them, follow each."""
    return calls[::2] if "ip_adapter_image_embeds" in entry.call or entry.differential else calls


def word_map(seen, entry, step, tokens):
    """(sample, *positions): how the image looks at some tokens, on average over heads and layers."""
    samples, size = samples_of(seen, entry), state(seen.states[step], entry).shape[2:]
    rows = sum(rows_of(call) for call in seen.calls[step])
    cond, maps = entry.branches.index("cond"), []
    for calls in seen.attentions[step].values():
        every = torch.cat([weights(*call).mean(dim=1) for call in _texts(calls, entry)])
        if entry.differential:
            every = every - torch.cat([weights(*call).mean(dim=1) for call in calls[1::2]])
        own = every[:, slice(*entry.queries)][..., slice(*entry.keys)][..., slice(*tokens)].mean(dim=-1)
        own = own.unflatten(0, (rows, -1)).flatten(1)  # frames may be rows
        count = own.shape[1]
        known = entry.grid is not None and count == prod(entry.grid)
        grid = entry.grid if known else square(count, size)
        mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(size)]
        own = own[cond * samples : (cond + 1) * samples].unflatten(1, grid)[:, None]
        maps.append(F.interpolate(own, size=size, mode=mode, align_corners=False)[:, 0])
    return torch.stack(maps).mean(dim=0)


def square(tokens, size):
    """Where the tokens of a U-Net's level lie: every side of the sample is divided by the same number."""
    frames = size[:-2]
    stride = round((prod(size) / tokens) ** 0.5)
    return (*frames, size[-2] // stride, size[-1] // stride)


def attention_outputs(seen, entry, step):
    """(sample, branch, *positions): outputs of attention layers, summed over channels, up-sampled and added."""
    samples, size, total = samples_of(seen, entry), state(seen.states[step], entry).shape[2:], 0
    rows = [rows_of(call) for call in seen.calls[step]]
    mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(size)]
    for path, outputs in seen.attended[step].items():
        if path.startswith(entry.text_only):
            continue
        images = [_spread(output, entry, n, size) for output, n in zip(outputs, rows, strict=False)]
        maps = torch.cat([image.sum(dim=1, keepdim=True) for image in images])
        if len(maps) == sum(rows):
            total = total + F.interpolate(maps, size=size, mode=mode, align_corners=False)[:, 0]
    return by_branch([total], entry, samples)


def _spread(output, entry, rows, size):
    """An attention layer's output (row, channel, *positions)."""
    tensor = output if isinstance(output, torch.Tensor) else output[0]
    if len(size) == 1 and entry.grid is None:  # (row, channel, frame) at every level
        return tensor
    if tensor.ndim == 4 and entry.grid is not None and tensor.shape[1] == prod(entry.grid):  # heads behind tokens
        tensor = tensor.flatten(2)
    if tensor.ndim == 4:
        return placed(tensor, entry, rows)
    if len(tensor) == rows and entry.grid is not None and tensor.shape[1] >= prod(entry.grid):
        return placed(tensor, entry, rows, entry.queries[0] if tensor is output else 0)
    frames = size[0] if len(size) == 3 else None
    if frames is not None and tensor.shape[1] == frames:  # over time: a row for each place
        places = square(len(tensor) // rows, size[-2:])
        return tensor.unflatten(0, (rows, *places)).permute(0, 4, 3, 1, 2)
    tensor = tensor.transpose(1, 2).unflatten(2, square(tensor.shape[1], size[-2:]))
    return tensor if len(tensor) == rows else tensor.unflatten(0, (rows, -1)).transpose(1, 2)


def noise(predicts, x, prediction, scheduler, timestep, sigma):
    """ε by its definition, from what the network predicts of its input x."""
    if predicts == "epsilon":
        return prediction
    if predicts == "inverted":
        return x - sigma * prediction
    if predicts.endswith("flow"):
        return x + (1 - sigma) * (-prediction if predicts == "-flow" else prediction)
    if predicts == "v":
        bar = float(scheduler.alphas_cumprod[int(timestep)]) if sigma is None else 1 / (1 + sigma**2)
        return bar**0.5 * prediction + (1 - bar) ** 0.5 * x
    data = scheduler.config.sigma_data
    state = x * (sigma**2 + data**2) ** 0.5
    if predicts == "consistency":
        low = scheduler.config.sigma_min
        skip, out = data**2 / ((sigma - low) ** 2 + data**2), (sigma - low) * data / (sigma**2 + data**2) ** 0.5
    else:  # EDM with v
        skip, out = data**2 / (sigma**2 + data**2), -sigma * data / (sigma**2 + data**2) ** 0.5
    return (state - skip * state - out * prediction) / sigma


def pixel_of(seen, entry):
    """A position of the sample."""
    return (1,) * (state(seen.states[0], entry).ndim - 2)


@torch.enable_grad()
def gradient_of_noise(pipe, entry, seen, step):
    """(sample, branch, channel, *positions): ∂ Σ_channels ε_pixel / ∂ the network's input, of every branch."""
    pixel = pixel_of(seen, entry)
    shape, (axis, start), parts = seen.states[step].shape, entry.noisy, []
    for module, args, kwargs, _ in list(seen.calls[step]):
        key = None if args else next(iter(kwargs))
        given = args[0] if args else kwargs[key]
        sample = torch.stack(list(given)).squeeze(2) if isinstance(given, list) else given
        stop = start + shape[axis]
        before, own, after = sample.split([start, shape[axis], sample.shape[axis] - stop], dim=axis)
        leaf = own.clone().requires_grad_()
        full = torch.cat([before, leaf, after], dim=axis)
        full = list(full.unsqueeze(2)) if isinstance(given, list) else full
        with experts_in_graph():
            output = module(full, *args[1:], **kwargs) if args else module(**{**kwargs, key: full})
        output = output[0] if isinstance(output, tuple) else output.sample
        output = torch.stack(output).squeeze(2) if isinstance(output, list) else output
        output = output[:, : shape[1]]  # without a learned variance, without references
        target = noise(entry.predicts, leaf, output, pipe.scheduler, seen.timesteps[step], seen.sigmas[step])
        total = state(target, entry)[(slice(None), slice(None), *pixel)].sum()
        (gradient,) = torch.autograd.grad(total, leaf)
        parts.append(state(gradient, entry))
    return by_branch(parts, entry, samples_of(seen, entry))


def gradient_of_step(graph, entry, samples, pixel):
    """(sample, channel, *positions): ∂ Σ_channels (next state)_pixel / ∂ state, through the pipeline's own code."""
    target = state(graph.result, entry)[:samples][(slice(None), slice(None), *pixel)].sum()
    is_other = entry.frames_in_rows or entry.doubled or entry.channels_last  # a copy, or overwritten
    leaf = graph.leaf if is_other else graph.state
    (gradient,) = torch.autograd.grad(target, leaf, retain_graph=True)
    return state(gradient, entry)[:samples]


def gradient_attention(graph, entry, seen, step):
    """(sample, branch, *positions): ReLU Σ_k α_k A_k of the layer, α_k the mean over places of Σ (next state)'s."""
    calls, gradients = seen.calls[step], gradient_maps(graph, entry, seen, step)
    outputs = of_layer(graph.outputs, calls, entry, samples_of(seen, entry)).detach()
    channel = 2 if len(entry.branches) > 1 else 1
    places = tuple(range(channel + 1, outputs.ndim))
    return (gradients.mean(dim=places, keepdim=True) * outputs).sum(dim=channel).clamp(min=0)


def gradient_maps(graph, entry, seen, step):
    """(sample, branch, channel, *positions): ∂ Σ (next state) / ∂ the layer's output, through the pipeline's code."""
    samples = samples_of(seen, entry)
    layers = [image_of(output, entry) for output in graph.outputs]
    gradients = torch.autograd.grad(state(graph.result, entry)[:samples].sum(), layers, retain_graph=True)
    rows = [rows_of(call) for call in seen.calls[step]]
    images = [placed(gradient, entry, n) for gradient, n in zip(gradients, rows, strict=True)]
    return by_branch(images, entry, samples)
