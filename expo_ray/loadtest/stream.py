"""One streamed chat completion over HTTP, timed.

Bytes are stamped when they arrive, before they are parsed. Nothing is retried: a retry would hide
what the load test is there to see.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from expo_ray.loadtest.records import Job, RequestRecord

READ_BUFFER_BYTES = 2**20
"""aiohttp's 64 KiB make the client look like a slow server at high rates."""

_MAX_DETAIL_CHARACTERS = 300


@dataclass(frozen=True, kw_only=True, slots=True)
class Endpoint:
    """Where requests go."""

    url: str
    """Address of the service, with or without a trailing `/v1`."""
    model: str
    weights_digest: str | None = None
    api_key: str | None = field(default=None, repr=False)

    @property
    def api_url(self) -> str:
        """The address that ends in `/v1`."""
        base = self.url.rstrip("/")
        return base if base.endswith("/v1") else f"{base}/v1"

    @property
    def headers(self) -> dict[str, str]:
        """Headers of every request."""
        return {} if self.api_key is None else {"Authorization": f"Bearer {self.api_key}"}


class _StreamError(Exception):
    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind


@dataclass(kw_only=True, slots=True)
class _Answer:
    """What has arrived of an answer so far."""

    token_seconds: list[float] = field(default_factory=list)
    input_tokens: int | None = None
    output_tokens: int | None = None
    finish_reason: str | None = None
    ended: bool = False

    def add(self, data: bytes, seconds: float) -> None:
        if data == b"[DONE]":
            self.ended = True
            return
        try:
            self._read(json.loads(data), seconds)
        except (ValueError, TypeError, AttributeError) as error:
            raise _StreamError("malformed", f"not a completion chunk: {data[:100]!r}") from error

    def _read(self, event: dict[str, Any], seconds: float) -> None:
        if event.get("error"):
            raise _StreamError("mid_stream", json.dumps(event["error"]))
        usage = event.get("usage")
        if usage:
            self.input_tokens = usage.get("prompt_tokens")
            self.output_tokens = usage.get("completion_tokens")
        for choice in event.get("choices") or ():
            if (choice.get("delta") or {}).get("content"):
                self.token_seconds.append(seconds)
            if choice.get("finish_reason"):
                self.finish_reason = choice["finish_reason"]
                self.ended = True

    def check(self) -> None:
        if not self.ended:
            raise _StreamError("truncated", "the stream stopped without finish_reason or [DONE]")
        if not self.token_seconds:
            raise _StreamError("empty", "the answer has no text")


async def send_request(
    session: aiohttp.ClientSession,
    endpoint: Endpoint,
    job: Job,
    body: dict[str, Any],
    *,
    origin: float,
    intended_seconds: float,
) -> RequestRecord:
    """Send one request and read its stream to the end.

    Args:
        session: Its timeout is the request's.
        endpoint: The service.
        job: Prompt and id.
        body: Further fields of the request.
        origin: `time.perf_counter()` at second 0 of the point.
        intended_seconds: When the request was due.

    Returns:
        The record, whatever happened; only a cancellation is raised.
    """
    answer = _Answer()
    error: str | None = None
    detail: str | None = None
    answering = False
    sent = time.perf_counter() - origin
    request = {
        **body,
        "model": endpoint.model,
        "messages": list(job.messages),
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    url = f"{endpoint.api_url}/chat/completions"
    try:
        async with session.post(url, json=request, headers=endpoint.headers) as response:
            if response.status != 200:
                text = await response.text(errors="replace")
                raise _StreamError(f"http_{response.status}", text)
            answering = True
            async for data, stamp in _events(response):
                answer.add(data, stamp - origin)
        answer.check()
    except _StreamError as failure:
        error, detail = failure.kind, str(failure)
    except TimeoutError:
        error, detail = "timeout", "no end within the time limit"
    except (aiohttp.ClientError, OSError) as failure:
        error = "mid_stream" if answering else "connect"
        detail = f"{type(failure).__name__}: {failure}"
    return RequestRecord(
        request_id=job.request_id,
        prompt_id=job.prompt_id,
        intended_seconds=intended_seconds,
        sent_seconds=sent,
        token_seconds=tuple(answer.token_seconds),
        done_seconds=time.perf_counter() - origin,
        input_tokens=answer.input_tokens,
        output_tokens=answer.output_tokens,
        finish_reason=answer.finish_reason,
        error=error,
        error_detail=None if detail is None else detail[:_MAX_DETAIL_CHARACTERS],
    )


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[tuple[bytes, float]]:
    """Yield the data of server-sent events with the time at which their bytes arrived."""
    rest = b""
    async for block in response.content.iter_any():
        stamp = time.perf_counter()
        *lines, rest = (rest + block).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[len(b"data:") :].strip(), stamp
