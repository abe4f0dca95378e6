"""Bulk work through a deployment handle: bounded, in order, and past the death of a replica."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from ray.exceptions import RayActorError, RayError, WorkerCrashedError
from ray.serve.exceptions import RayServeException, ReplicaUnavailableError

from expo_ray.errors import ServingError
from expo_ray.remote_errors import brought_home, cause_in_one_line

Item = TypeVar("Item")
Chunk = TypeVar("Chunk")
_MAX_ATTEMPTS = 4
_TIMEOUT_SECONDS = 3600.0
_REPLICA_LOST = (RayActorError, WorkerCrashedError, ReplicaUnavailableError)


def split(rows: Sequence[Item], *, max_rows: int, num_replicas: int) -> list[Sequence[Item]]:
    """Return consecutive chunks of like size, as many for each replica.

    Args:
        rows: The work.
        max_rows: Most rows of a chunk.
        num_replicas: Chunks are a multiple of this, so that no replica idles at the end.
    """
    num_rounds = -(-len(rows) // (max_rows * num_replicas))
    size = max(1, -(-len(rows) // max(1, num_rounds * num_replicas)))
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def call_in_chunks(
    call: Callable[[Chunk], Any], chunks: Sequence[Chunk], *, num_in_flight: int
) -> Iterator[tuple[Chunk, Any]]:
    """Yield (chunk, result), in order.

    A chunk whose replica died is sent again, a bounded number of times; Serve starts another
    replica meanwhile. Any other failure ends the work.

    Args:
        call: Sends a chunk and returns a `DeploymentResponse`.
        chunks: The work.
        num_in_flight: Chunks sent and not yet answered.

    Raises:
        ServingError: A replica answered with an error, or died again and again.
    """
    waiting = deque(chunks)
    sent: deque[tuple[Chunk, Any]] = deque()
    while waiting or sent:
        while waiting and len(sent) < num_in_flight:
            chunk = waiting.popleft()
            sent.append((chunk, call(chunk)))
        chunk, response = sent.popleft()
        yield chunk, _result(call, chunk, response)


def _result(call: Callable[[Chunk], Any], chunk: Chunk, response: Any) -> Any:
    for attempt in range(1, _MAX_ATTEMPTS + 1):
        try:
            return response.result(timeout_s=_TIMEOUT_SECONDS)
        except _REPLICA_LOST as error:
            if attempt == _MAX_ATTEMPTS:
                raise ServingError(
                    "a replica died again and again under the same work",
                    got=f"{_MAX_ATTEMPTS} attempts, last: {cause_in_one_line(error)}",
                    hint="it may lack memory: give fewer replicas or shorter responses",
                ) from error
            response = call(chunk)
        except TimeoutError as error:
            raise ServingError(
                "a replica did not answer", expected=f"within {_TIMEOUT_SECONDS:g} s"
            ) from error
        except (RayError, RayServeException) as error:
            raise brought_home(error, "a replica answered with an error", ServingError) from error
    raise AssertionError("the last attempt returns or raises")
