"""How long a network takes."""

import time
from collections.abc import Callable
from typing import Any

import torch


def shortest_time(call: Callable[[], Any], device: torch.device, repeats: int = 3) -> float:
    """Seconds of the quickest of several calls: the first ones make caches, others are held up."""

    def once() -> float:
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    return min(once() for _ in range(repeats))
