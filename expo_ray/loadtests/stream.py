"""Streamed chat completions over HTTP, timed.

Bytes are stamped when they arrive, before they are parsed. Nothing is retried: a retry would hide
what the load test is there to see.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import aiohttp

from expo_ray.loadtests.answer import Answer, StreamError
from expo_ray.loadtests.dispatch import Clock
from expo_ray.loadtests.records import Job, RequestRecord
from expo_ray.proxies import find_proxy, through_proxy

REPLICA_HEADER = "x-expo-ray-replica"
"""Response header in which `expo-ray serve` names the replica that answers."""

_READ_BUFFER_BYTES = 2**20
"""aiohttp's 64 KiB make the client look like a slow server at high rates."""

_MAX_REFUSAL_BYTES = 2**16
_MAX_EVENT_BYTES = 2**24
"""Of one event; what a service sends without an end is not kept."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Endpoint:
    """Where requests go."""

    url: str
    """Address of the service, with or without a trailing `/v1`."""
    model: str
    weights_digest: str | None = None
    """Of the weights that are measured; an answer by others counts as failed. None where the
    service tells none."""
    alpha: float | None = None
    """Of the extrapolation that it serves, where there is one and it tells."""
    alpha_rules: Mapping[str, Any] | None = None
    """Alpha by part of the model, instead of one number."""
    api_key: str | None = field(default=None, repr=False)
    app_name: str | None = None
    """Ray Serve application behind it, where it is one of this cluster."""

    @property
    def api_url(self) -> str:
        """The address that ends in `/v1`."""
        base = self.url.rstrip("/")
        return base if base.endswith("/v1") else f"{base}/v1"

    @property
    def headers(self) -> dict[str, str]:
        """Headers of every request."""
        return {} if self.api_key is None else {"Authorization": f"Bearer {self.api_key}"}


def request_body(endpoint: Endpoint, job: Job, body: dict[str, Any]) -> dict[str, Any]:
    """Return the JSON of one request.

    Args:
        endpoint: Names the model.
        job: Prompt and, where it has one, its own limit of tokens.
        body: Further fields.
    """
    own = {} if job.max_tokens is None else {"max_tokens": job.max_tokens}
    return {
        **body,
        **own,
        "model": endpoint.model,
        "messages": list(job.messages),
        "stream": True,
        "stream_options": {"include_usage": True},
    }


class HttpSender:
    """Sends requests over HTTP; an async context manager that holds the connections.

    Args:
        endpoint: The service.
        body: Fields of every request besides model and messages.
        timeout_seconds: Limit of one request.
    """

    def __init__(self, endpoint: Endpoint, body: dict[str, Any], timeout_seconds: float) -> None:
        self._endpoint = endpoint
        self._url = f"{endpoint.api_url}/chat/completions"
        proxy = find_proxy(self._url) if endpoint.app_name is None else None
        self._proxy = None if proxy is None else proxy.url
        self._through = through_proxy(self._url) if proxy else ""
        self._body = body
        self._timeout_seconds = timeout_seconds

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            # Servers drop idle connections after five seconds or more; stay clear of that race.
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=2),
            timeout=aiohttp.ClientTimeout(total=self._timeout_seconds),
            read_bufsize=_READ_BUFFER_BYTES,
            # A small packed answer could unpack to a large one: nobody is asked to pack.
            headers={"Accept-Encoding": "identity"},
            auto_decompress=False,
        )
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._session.close()

    async def send(self, job: Job, due: float, clock: Clock) -> RequestRecord:
        """Send one request and read its stream to the end.

        Args:
            job: Prompt and id.
            due: When it was due.
            clock: Seconds since second 0 of the point.

        Returns:
            The record, whatever happened; only a cancellation is raised.
        """
        answer = Answer()
        failure: tuple[str, str] | None = None
        answering = False
        sent = clock()
        body = request_body(self._endpoint, job, self._body)
        try:
            async with self._session.post(
                self._url, json=body, headers=self._endpoint.headers, proxy=self._proxy
            ) as response:
                answer.replica = response.headers.get(REPLICA_HEADER)
                if response.status != 200:
                    told = await response.content.read(_MAX_REFUSAL_BYTES)
                    text = told.decode(errors="replace")
                    raise StreamError(f"http_{response.status}", f"{self._through} {text}".strip())
                answering = True
                packed = response.headers.get("Content-Encoding", "identity")
                if packed.lower() != "identity":
                    raise StreamError("malformed", f"packed as {packed!r}, which nobody asked for")
                async for data, stamp in _events(response, clock):
                    answer.add(data, stamp)
            answer.check(model=self._endpoint.model, weights_digest=self._endpoint.weights_digest)
        except StreamError as error:
            failure = error.kind, str(error)
        except TimeoutError:
            failure = "timeout", "no end within the time limit"
        except (aiohttp.ClientError, OSError) as error:
            kind = "mid_stream" if answering else "connect"
            failure = kind, f"{type(error).__name__}: {error}{self._through}"
        return answer.as_record(
            job, intended_seconds=due, sent_seconds=sent, done_seconds=clock(), failure=failure
        )


async def _events(
    response: aiohttp.ClientResponse, clock: Clock
) -> AsyncIterator[tuple[bytes, float]]:
    """Yield the data of server-sent events with the time at which their bytes arrived."""
    rest = b""
    async for block in response.content.iter_any():
        stamp = clock()
        *lines, rest = (rest + block).split(b"\n")
        if len(rest) > _MAX_EVENT_BYTES:
            raise StreamError("malformed", f"an event of more than {_MAX_EVENT_BYTES} bytes")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[len(b"data:") :].strip(), stamp
