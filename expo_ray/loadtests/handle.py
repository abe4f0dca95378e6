"""Streamed chat completions through a Serve handle: what the service costs without its proxy."""

from __future__ import annotations

import asyncio
from typing import Any, Self

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from expo_ray.loadtests.answer import Answer, StreamError
from expo_ray.loadtests.dispatch import Clock
from expo_ray.loadtests.records import Job, RequestRecord
from expo_ray.loadtests.stream import REPLICA_HEADER, Endpoint, request_body

_REPLICA_COMMENT = f": {REPLICA_HEADER} "


class HandleSender:
    """Sends requests as `HttpSender` does, to `OpenAIServer.chat_events` of a Serve application.

    Args:
        endpoint: Names the application.
        body: Fields of every request besides model and messages.
        timeout_seconds: Limit of one request.
    """

    def __init__(self, endpoint: Endpoint, body: dict[str, Any], timeout_seconds: float) -> None:
        self._endpoint = endpoint
        self._body = body
        self._timeout_seconds = timeout_seconds

    async def __aenter__(self) -> Self:
        from ray import serve

        handle = await asyncio.to_thread(serve.get_app_handle, self._endpoint.app_name)
        self._chat_events = handle.options(stream=True, method_name="chat_events")
        return self

    async def __aexit__(self, *exc: object) -> None:
        pass

    async def send(self, job: Job, due: float, clock: Clock) -> RequestRecord:
        """Send one request and read its events to the end, see `HttpSender.send`."""
        answer = Answer()
        failure: tuple[str, str] | None = None
        sent = clock()
        body = request_body(self._endpoint, job, self._body)
        try:
            async with asyncio.timeout(self._timeout_seconds):
                async for event in self._chat_events.remote(body):
                    stamp = clock()
                    for line in event.splitlines():
                        if line.startswith("data:"):
                            answer.add(line[len("data:") :].strip().encode(), stamp)
                        elif line.startswith(_REPLICA_COMMENT):
                            answer.replica = line[len(_REPLICA_COMMENT) :].strip()
            answer.check(model=self._endpoint.model, weights_digest=self._endpoint.weights_digest)
        except StreamError as error:
            failure = error.kind, str(error)
        except TimeoutError:
            failure = "timeout", "no end within the time limit"
        except (RayError, RayServeException) as error:
            failure = "handle", f"{type(error).__name__}: {error}"
        return answer.as_record(
            job, intended_seconds=due, sent_seconds=sent, done_seconds=clock(), failure=failure
        )
