"""How recorded tensors reach the host while a GPU continues sampling."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch


# What may be on its way from the device before the next copy waits for it, and what may wait for the thread behind.
MOST_BYTES_UNDER_WAY = 256 * 2**20


class HostCopies:
    """Copies of tensors in the host's memory, from a GPU through pinned memory on a stream of their own.

    Such a copy holds its values only after `arrived`; copies from everywhere else are there at once.
    """

    def __init__(self) -> None:
        self._stream: torch.cuda.Stream | None = None
        self._bytes = 0

    def copy(self, tensor: torch.Tensor, dtype: torch.dtype, *, is_own: bool = False) -> torch.Tensor:
        """A copy of what `tensor` holds now, whatever happens to it afterwards.

        Args:
            tensor (`torch.Tensor`): On any device.
            dtype (`torch.dtype`): That of the copy.
            is_own (`bool`): Whether nobody else holds the tensor, so that on its device it need not be copied.
        """
        tensor = tensor.detach()
        if tensor.device.type != "cuda":
            return tensor.to("cpu", dtype, copy=not is_own)
        if self._stream is None:
            self._stream = torch.cuda.Stream(tensor.device)
        own = tensor.to(dtype=dtype, copy=not is_own)
        self._bytes += own.nbytes
        if self._bytes > MOST_BYTES_UNDER_WAY:
            self._stream.synchronize()
            self._bytes = own.nbytes
        self._stream.wait_stream(torch.cuda.current_stream(tensor.device))
        with torch.cuda.stream(self._stream):
            copied = torch.empty_like(own, device="cpu", pin_memory=True).copy_(own, non_blocking=True)
        own.record_stream(self._stream)
        return copied

    def arrived(self) -> Callable[[], None] | None:
        """A function that waits for the copies made until now; `None` where all are there."""
        if self._stream is None:
            return None
        self._bytes = 0
        event = torch.cuda.Event(blocking=True)
        event.record(self._stream)
        return event.synchronize


class WorkBehind:
    """Runs functions one after the other in a thread, so that what calls it need not wait for them."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._waiting: deque[tuple[Future, int]] = deque()
        self._failed = False

    def add(self, function: Callable[[], None], nbytes: int) -> None:
        """Runs `function` after those before it; waits while what they hold exceeds `MOST_BYTES_UNDER_WAY`.

        Args:
            function (`Callable`): What is to be done.
            nbytes (`int`): The memory that it holds until it is done.

        Raises:
            Exception: What a function before it raised; those behind that one are not run.
        """
        while self._waiting and (
            self._waiting[0][0].done() or nbytes + sum(held for _, held in self._waiting) > MOST_BYTES_UNDER_WAY
        ):
            self._waiting.popleft()[0].result()
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="recording")
        self._waiting.append((self._pool.submit(self._run, function), nbytes))

    def finish(self) -> None:
        """Waits for all of them.

        Raises:
            Exception: What one of them raised; those behind it are not run.
        """
        try:
            while self._waiting:
                self._waiting.popleft()[0].result()
        finally:
            if self._pool is not None:
                self._pool.shutdown()
                self._pool = None

    def _run(self, function: Callable[[], None]) -> None:
        if self._failed:
            return
        try:
            function()
        except BaseException:
            self._failed = True
            raise
