"""Vector-Jacobian products of one step, as many in one backward pass as fit."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch

from diffusers_xai.recording.replay import StepReplay


# (first row, gradients w.r.t. the sample, gradients w.r.t. the label conditioning): both (row, branch, sample, …).
StoreRows = Callable[[int, torch.Tensor, torch.Tensor | None], None]

# Numbers in the repeated sample where a backward pass took the least time per row: 64 rows of RGB images of 64 px on
# an H100 (16 rows took 1.7 times as long per row, 256 rows 1.3 times, 512 rows twice).
_FASTEST_NUMEL = 64 * 3 * 64 * 64


def pull_back(
    replay: StepReplay,
    weights: Callable[[int, int], torch.Tensor],
    rows: int,
    store: StoreRows,
    *,
    chunk_size: int | str = "auto",
    labels: bool = False,
) -> None:
    """Computes Σ_k w_k · ∂y_k/∂x for many weight maps w over the output's pixels.

    The step is evaluated forward once with the batch repeated `chunk_size` times, and every backward pass through that
    graph gives `chunk_size` products. When memory runs out the chunk is halved, and what is done stays done.

    Args:
        replay (`StepReplay`): The step.
        weights (`Callable`): `weights(start, stop)` -> (stop - start, *positions), the weight maps of these rows.
        rows (`int`): Number of weight maps.
        store (`Callable`): Receives the rows as they come.
        chunk_size (`int` or `"auto"`): Weight maps per backward pass. `"auto"` is 1 on a CPU, where more is slower
            (backward passes run side by side there), and on a GPU as many as are fastest and as free memory holds.
        labels (`bool`): Whether to differentiate w.r.t. the label conditioning too.

    Raises:
        torch.OutOfMemoryError: if not even one product at a time fits.
    """
    done = 0
    chunk = _auto_chunk(replay, labels) if chunk_size == "auto" else int(chunk_size)
    while done < rows:
        try:
            done = _pull_back_from(replay, weights, done, rows, store, min(chunk, rows - done), labels)
        except _OutOfMemory as error:
            if error.chunk == 1:
                raise error.cause from None
            done, chunk = error.done, error.chunk // 2
            torch.cuda.empty_cache()


class _OutOfMemory(Exception):
    """Memory ran out after `done` rows."""

    def __init__(self, done: int, chunk: int, cause: torch.OutOfMemoryError):
        super().__init__(str(cause))
        self.done, self.chunk, self.cause = done, chunk, cause


def _pull_back_from(
    replay: StepReplay,
    weights: Callable[[int, int], torch.Tensor],
    done: int,
    rows: int,
    store: StoreRows,
    chunk: int,
    labels: bool,
) -> int:
    try:
        with replay.graph(copies=chunk, labels=labels) as graph:
            leaves = [graph.leaf, *graph.labels]
            target = graph.target.unflatten(0, (-1, chunk, replay.samples))

            def product(maps: torch.Tensor) -> list[torch.Tensor]:
                """Gradients (row, branch, sample, …) for weight maps (row, *positions)."""
                padding = maps.new_zeros(chunk - len(maps), *maps.shape[1:])
                cotangent = torch.cat([maps, padding])[None, :, None].expand_as(target).reshape_as(graph.target)
                own, *labels_grads = torch.autograd.grad(graph.target, leaves, cotangent, retain_graph=True)
                return [
                    torch.cat(parts).unflatten(0, (-1, chunk, replay.samples)).transpose(0, 1)[: len(maps)]
                    for parts in ([graph.image(own)], labels_grads)
                    if parts
                ]

            with _mapper(replay.device) as (parallel_map, at_once):
                while done < rows:
                    window = range(done, min(done + chunk * at_once, rows), chunk)
                    maps = [weights(start, min(start + chunk, rows)).to(target) for start in window]
                    for start, by_row in zip(window, parallel_map(product, maps), strict=True):
                        store(start, by_row[0], by_row[1] if labels else None)
                        done = min(start + chunk, rows)
    except torch.OutOfMemoryError as error:
        raise _OutOfMemory(done, chunk, error) from error
    return done


@contextmanager
def _mapper(device: torch.device) -> Iterator[tuple[Callable, int]]:
    """A `map` and how many items to give it at once.

    On a CPU, backward passes side by side with one thread each are a third faster than one after the other with all
    threads. Nodes of the shared graph lock themselves.
    """
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1:
        yield map, 1
        return
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            yield pool.map, 32 * threads
    finally:
        torch.set_num_threads(threads)


def _auto_chunk(replay: StepReplay, labels: bool) -> int:
    device = replay.device
    if device.type != "cuda":
        return 1
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    with replay.graph(labels=labels) as graph:
        fastest = max(1, _FASTEST_NUMEL // graph.leaf.numel())
        torch.autograd.grad(graph.target.sum(), graph.leaf)
    one = max(torch.cuda.max_memory_allocated(device) - before, 1)
    free, _ = torch.cuda.mem_get_info(device)
    return max(1, min(fastest, int(0.8 * free / one)))
