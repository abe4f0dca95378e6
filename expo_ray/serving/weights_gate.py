"""Who may use the weights of a replica now: many readers, or one that replaces them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class WeightsGate:
    """Requests pass while it is open; closing waits until those inside have left.

    All calls come from one event loop.
    """

    def __init__(self) -> None:
        self._opened = asyncio.Event()
        self._opened.set()
        self._left = asyncio.Event()
        self._num_inside = 0
        self.num_waiting = 0

    @property
    def num_inside(self) -> int:
        """How many use the weights now."""
        return self._num_inside

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[None]:
        """Use the weights; waits while they are being replaced."""
        self.num_waiting += 1
        try:
            # Whoever is woken may find it closed again.
            while not self._opened.is_set():
                await self._opened.wait()
        finally:
            self.num_waiting -= 1
        self._num_inside += 1
        try:
            yield
        finally:
            self._num_inside -= 1
            self._left.set()

    async def close(self, *, timeout_seconds: float | None = None) -> None:
        """Let nobody in, and wait until everybody has left.

        Raises:
            TimeoutError: Somebody did not; the gate stays closed.
        """
        self._opened.clear()
        async with asyncio.timeout(timeout_seconds):
            while self._num_inside:
                self._left.clear()
                await self._left.wait()

    def open(self) -> None:
        """Let everybody in."""
        self._opened.set()
