"""The generator replica: one engine, rows in bulk from a driver, or requests over HTTP.

Concurrent HTTP requests are gathered into one batch by Serve; a batch runs to its end before the
next one starts, while each of its rows is answered as soon as it is finished.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

from ray import serve

from expo_ray.errors import ExpoError
from expo_ray.serving.engines.interface import Engine, Generated, Row
from expo_ray.serving.loaded import NOTHING_LOADED, Answered, ChatRow, Loaded
from expo_ray.serving.own_thread import OwnThread
from expo_ray.serving.row_fitting import fit_rows
from expo_ray.serving.source import ModelSource

MAX_BATCH_ROWS = 64
_BATCH_WAIT_SECONDS = 0.01


class Generator:
    """One replica. The engine works in one thread of its own: loads and batches take turns.

    Args:
        make_engine: Returns a new engine.
        source: Weights to load at the start; None waits for the first chunk of rows.
        num_threads: Of its arithmetic on a CPU, see `replica_threads`.
    """

    def __init__(
        self,
        make_engine: Callable[[], Engine],
        source: ModelSource | None = None,
        num_threads: int | None = None,
    ) -> None:
        self._thread = OwnThread("engine", num_threads)
        self._engine = make_engine()
        self._source: ModelSource | None = None
        self._loaded = NOTHING_LOADED
        if source is not None:
            self._switch(source)

    async def load(self, source: ModelSource) -> Loaded:
        """Load other weights in place, unless they are loaded already."""
        return await self._thread.run(self._switch, source)

    async def describe(self) -> Loaded:
        """Return what is loaded."""
        return self._loaded

    async def answer(self, source: ModelSource, rows: Sequence[ChatRow]) -> Answered:
        """Answer a chunk of rows by the weights of `source`, loading them first where needed.

        So every replica serves the right weights, whenever it was started.
        """
        return await self._thread.run(self._answer, source, rows)

    def _switch(self, source: ModelSource) -> Loaded:
        if source == self._source:
            return self._loaded
        self._source = None
        try:
            self._engine.load(source)
        except ExpoError as error:
            self._loaded = Loaded(weights_digest=None, max_model_len=0, error=error)
            return self._loaded
        self._source = source
        self._loaded = Loaded(
            weights_digest=self._engine.weights_digest,
            max_model_len=self._engine.max_model_len,
            model=source.name,
        )
        return self._loaded

    def _answer(self, source: ModelSource, rows: Sequence[ChatRow]) -> Answered:
        loaded = self._switch(source)
        if loaded.error is not None:
            return Answered(loaded=loaded, responses=[])
        fitting, responses = fit_rows(
            rows, encode=self._engine.encode_chat, max_model_len=loaded.max_model_len
        )
        if fitting:
            made = self._engine.generate([*fitting.values()])
            for (i, row), response in zip(fitting.items(), made, strict=True):
                responses[i] = self._engine.tell_apart(
                    response, row, messages=rows[i].messages, reasoning=rows[i].reasoning
                )
        return Answered(loaded=loaded, responses=[responses[i] for i in range(len(rows))])

    @serve.batch(  # type: ignore[untyped-decorator]
        max_batch_size=MAX_BATCH_ROWS, batch_wait_timeout_s=_BATCH_WAIT_SECONDS
    )
    async def _run_batch(self, rows: list[Row]) -> list[None]:
        await self._thread.run(self._engine.generate, rows)
        return [None] * len(rows)

    async def stream(self, row: Row) -> AsyncIterator[str | Generated]:
        """Yield pieces of text as they come, and the whole result last.

        Leaving the iteration early (a client went away) ends the row's work.
        """
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[str | Generated | BaseException] = asyncio.Queue()

        def put(event: str | Generated | BaseException) -> None:
            loop.call_soon_threadsafe(events.put_nowait, event)

        def batch_ended(task: asyncio.Task[None]) -> None:
            if not task.cancelled() and (error := task.exception()) is not None:
                put(error)

        row.on_text, row.on_done = put, put
        batch = asyncio.ensure_future(self._run_batch(row))
        batch.add_done_callback(batch_ended)
        try:
            while True:
                event = await events.get()
                if isinstance(event, BaseException):
                    raise event
                yield event
                if isinstance(event, Generated):
                    return
        finally:
            row.cancelled = True
            batch.cancel()
