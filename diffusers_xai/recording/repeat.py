"""The arguments of a denoiser call with every row repeated, nested ones too."""

from collections.abc import Mapping
from typing import Any

import torch

from diffusers_xai.denoisers import DenoiserCall


# Positions of tokens, which all rows share, however many there are.
_SHARED = ("img_ids", "txt_ids", "image_rotary_emb", "rotary_embedding", "freqs_cis")
# Embeddings of several layers of a text encoder, (layer, row, …).
_ROWS_SECOND = ("encoder_hidden_states_llama3",)


def repeat_rows(batch: torch.Tensor, branches: int, samples: int, copies: int) -> torch.Tensor:
    """(branch · sample · …, …) -> (branch · copy · sample · …, …); what follows a sample are its frames."""
    if copies == 1:
        return batch.clone()  # tensors of inference mode can take part only as copies
    rows = batch.unflatten(0, (branches, 1, samples, -1))
    return rows.expand(-1, copies, *rows.shape[2:]).flatten(0, 3)


def repeated(
    call: DenoiserCall,
    samples: int,
    copies: int,
    frames: int | None = None,
    replaced: Mapping[int, torch.Tensor] | None = None,
) -> tuple[tuple, dict[str, Any]]:
    """The arguments of `call` for a batch whose images are repeated `copies` times.

    Args:
        call ([`DenoiserCall`]): A call of `rows` rows.
        samples (`int`): Number of images in it; the rest of its rows are guidance branches.
        copies (`int`): How often every image comes.
        frames (`int`, *optional*): Frames of an image; some arguments hold a row for each.
        replaced (mapping, *optional*): Repeated tensors that take the place of arguments, by the id of those.
    """
    rows, branches = call.rows, call.rows // samples

    def batch(value: Any) -> Any:
        if replaced is not None and id(value) in replaced:
            return replaced[id(value)]
        if isinstance(value, torch.Tensor):
            count = value.shape[0] if value.ndim else 0
            is_batched = count == rows or (frames is not None and count == rows * frames)
            return repeat_rows(value, branches, samples, copies) if is_batched else value.clone()
        if isinstance(value, dict):
            return {name: named(name, item) for name, item in value.items()}
        if isinstance(value, (list, tuple)):
            if isinstance(value, list) and len(value) == rows and not _hold_batches(value, rows):  # a row each
                return [value[i] for i in order]
            return type(value)(batch(item) for item in value)
        return value

    def named(name: str, value: Any) -> Any:
        if name in _ROWS_SECOND:
            return repeat_rows(value.transpose(0, 1), branches, samples, copies).transpose(0, 1)
        return value if name in _SHARED else batch(value)

    order = repeat_rows(torch.arange(rows), branches, samples, copies).tolist()
    names = list(call.arguments)
    args = tuple(named(names[i] if i < len(names) else "", value) for i, value in enumerate(call.args))
    return args, batch(call.kwargs)


def _hold_batches(values: Any, rows: int) -> bool:
    tensors = [value for value in values if isinstance(value, torch.Tensor)]
    return bool(tensors) and all(tensor.ndim > 0 and tensor.shape[0] == rows for tensor in tensors)
