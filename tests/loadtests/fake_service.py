"""A real HTTP server that speaks the OpenAI streaming API and misbehaves on request.

The last message says how: a word of `BEHAVIOURS` or `tokens=N` / `wait=SECONDS` pairs; `thoughts=N`
come first, in the field `as=NAME`, and `usage=N` tells another number of tokens.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web


@dataclass(kw_only=True)
class FakeService:
    url: str = ""
    models: list[dict[str, Any]] = field(
        default_factory=lambda: [{"id": "fake", "weights_digest": "abc"}]
    )
    lists: int | str | None = None
    """Answered where the models are asked for, a status or a text, instead of their list."""
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    in_flight: int = 0
    most_in_flight: int = 0
    one_at_a_time: bool = False
    usage: bool = True
    names_itself: dict[str, str] = field(default_factory=dict)
    extra_tokens: int = 0
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def list_models(self, request: web.Request) -> web.Response:
        if isinstance(self.lists, int):
            return web.Response(status=self.lists, text="no\nluck")
        return web.json_response(self.lists or {"object": "list", "data": self.models})

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.requests.append(body)
        self.headers.append(dict(request.headers))
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            async with self._lock if self.one_at_a_time else contextlib.nullcontext():
                return await self._answer(request, body["messages"][-1]["content"])
        finally:
            self.in_flight -= 1

    async def _answer(self, request: web.Request, order: str) -> web.StreamResponse:
        if order.startswith("http_"):
            return web.Response(status=int(order.removeprefix("http_")), text="no\nluck")
        if order == "packed":
            packed = {"Content-Encoding": "gzip", "Content-Type": "text/event-stream"}
            return web.Response(body=gzip.compress(bytes(2**26)), headers=packed)
        if order == "endless event":
            return web.Response(body=b"data: " + b"x" * 2**25)
        options = dict(pair.split("=") for pair in order.split() if "=" in pair)
        num_tokens = int(options.get("tokens", 3)) + self.extra_tokens
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)

        async def event(data: str | dict[str, Any]) -> None:
            text = data if isinstance(data, str) else json.dumps({**self.names_itself, **data})
            await response.write(f"data: {text}\n\n".encode())

        await event({"choices": [{"delta": {"role": "assistant", "content": ""}}]})
        await response.write(b": a comment\r\n\r\n")
        if order == "hang":
            await asyncio.sleep(1)
        for i in range(int(options.get("thoughts", 0))):
            await asyncio.sleep(float(options.get("wait", 0)))
            await event({"choices": [{"delta": {options["as"]: f"t{i} "}}]})
        for i in range(0 if order == "empty" else num_tokens):
            await asyncio.sleep(float(options.get("wait", 0)))
            if i == 1 and order == "cut" and request.transport is not None:
                request.transport.abort()
                return response
            if i == 1 and order == "error":
                await event({"error": {"message": "engine died"}})
            if i == 1 and order == "garbage":
                await event("{not json")
            if i == 1 and order == "nonsense":
                await event({"choices": [None]})
            if i == 1 and order == "stop":
                return response
            await event({"choices": [{"delta": {"content": f"w{i} "}}]})
        await event({"choices": [{"delta": {}, "finish_reason": "stop"}]})
        if self.usage:
            told = int(options.get("usage", num_tokens))
            usage: dict[str, Any] = {"prompt_tokens": 7, "completion_tokens": told}
            if "hidden" in options:
                usage["completion_tokens_details"] = {"reasoning_tokens": int(options["hidden"])}
            await event({"choices": [], "usage": usage})
        await event("[DONE]")
        return response


@contextlib.contextmanager
def running_service() -> Iterator[FakeService]:
    """Serve from a thread of its own until the block ends."""
    service = FakeService()
    ready = threading.Event()
    loop = asyncio.new_event_loop()

    async def start() -> web.AppRunner:
        app = web.Application()
        app.router.add_get("/v1/models", service.list_models)
        app.router.add_post("/v1/chat/completions", service.chat)
        runner = web.AppRunner(app, shutdown_timeout=0)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        service.url = f"http://{host}:{port}"
        return runner

    def serve() -> None:
        asyncio.set_event_loop(loop)
        runner = loop.run_until_complete(start())
        ready.set()
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())
        loop.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield service
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
