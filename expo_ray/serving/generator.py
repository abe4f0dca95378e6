"""The generator replica: one engine, rows in bulk from a driver, or requests over HTTP.

Concurrent HTTP requests are gathered into one batch by Serve; a batch runs to its end before the
next one starts, while each of its rows is answered as soon as it is finished.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from ray import serve

from expo_ray.errors import ExpoError, TableError
from expo_ray.serving.engines import make_engine
from expo_ray.serving.engines.interface import Generated, Row
from expo_ray.serving.sampling import SamplingParams
from expo_ray.serving.source import ModelSource
from expo_ray.tables.prompts import Message

Result = TypeVar("Result")
MAX_BATCH_ROWS = 64
_BATCH_WAIT_SECONDS = 0.01


@dataclass(frozen=True, kw_only=True, slots=True)
class Loaded:
    """What a replica says about the weights that it holds."""

    weights_digest: str | None
    max_model_len: int
    error: ExpoError | None = None
    """Why there are none. A value, because an exception would lose its type on the way."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatRow:
    """One response that a driver asks for."""

    messages: Sequence[Message]
    params: SamplingParams
    seed: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Answered:
    """The responses of a chunk and the digest of the weights that made them."""

    loaded: Loaded
    responses: list[Generated]


class Generator:
    """One replica. The engine works in one thread of its own: loads and batches take turns.

    Args:
        engine: As `resolve_engine` returns it.
        source: Weights to load at the start; None waits for the first chunk of rows.
    """

    def __init__(self, engine: str, source: ModelSource | None = None) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._engine = make_engine(engine)
        self._source: ModelSource | None = None
        self._loaded = Loaded(weights_digest=None, max_model_len=0)
        if source is not None:
            self._switch(source)

    async def load(self, source: ModelSource) -> Loaded:
        """Load other weights in place, unless they are loaded already."""
        return await self._in_thread(self._switch, source)

    async def describe(self) -> Loaded:
        """Return what is loaded."""
        return self._loaded

    async def answer(self, source: ModelSource, rows: Sequence[ChatRow]) -> Answered:
        """Answer a chunk of rows by the weights of `source`, loading them first where needed.

        So every replica serves the right weights, whenever it was started.
        """
        return await self._in_thread(self._answer, source, rows)

    async def _in_thread(self, function: Callable[..., Result], *args: object) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *args)

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
            weights_digest=self._engine.weights_digest, max_model_len=self._engine.max_model_len
        )
        return self._loaded

    def _answer(self, source: ModelSource, rows: Sequence[ChatRow]) -> Answered:
        loaded = self._switch(source)
        if loaded.error is not None:
            return Answered(loaded=loaded, responses=[])
        responses: list[Generated | None] = [None] * len(rows)
        fitting: dict[int, Row] = {}
        for i, row in enumerate(rows):
            try:
                ids = self._engine.encode_chat(row.messages)
            except TableError as error:
                responses[i] = _refused(str(error))
                continue
            room = loaded.max_model_len - len(ids)
            if room < 1:
                context = f"the model's context is {loaded.max_model_len}"
                responses[i] = _refused(f"the prompt has {len(ids)} tokens, {context}", len(ids))
            else:
                limit = min(row.params.max_tokens, room)
                fitting[i] = Row(prompt_ids=ids, params=row.params, seed=row.seed, max_tokens=limit)
        if fitting:
            for i, made in zip(fitting, self._engine.generate([*fitting.values()]), strict=True):
                responses[i] = made
        return Answered(loaded=loaded, responses=[r for r in responses if r is not None])

    @serve.batch(  # type: ignore[untyped-decorator]
        max_batch_size=MAX_BATCH_ROWS, batch_wait_timeout_s=_BATCH_WAIT_SECONDS
    )
    async def _run_batch(self, rows: list[Row]) -> list[None]:
        await self._in_thread(self._engine.generate, rows)
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


def _refused(error: str, prompt_tokens: int = 0) -> Generated:
    return Generated(
        text="",
        finish_reason="length",
        prompt_tokens=prompt_tokens,
        completion_tokens=0,
        error=error,
    )
