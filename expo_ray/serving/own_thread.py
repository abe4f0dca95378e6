"""The one thread of a replica in which its model loads and computes, apart from the event loop."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")


class OwnThread:
    """Does one piece of work after the other.

    Args:
        name: Of the thread.
        num_threads: Torch's threads for a computation on the CPU, at most the cores of this
            machine; None leaves what there is.
    """

    def __init__(self, name: str, num_threads: int | None = None) -> None:
        self._pool = ThreadPoolExecutor(1, name, initializer=_use_threads, initargs=(num_threads,))

    def wait(self, work: Callable[[], Result]) -> Result:
        """Wait for a result where no event loop runs yet."""
        return self._pool.submit(work).result()

    async def run(self, work: Callable[..., Result], *args: object) -> Result:
        """Wait until it is the turn of this work, and for its result."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, work, *args)


def _use_threads(num_threads: int | None) -> None:
    if num_threads is not None:
        import torch

        torch.set_num_threads(min(num_threads, os.cpu_count() or 1))
