"""Retries of named I/O errors with back-off: bounded, logged, never of an error of our own.

A server that limits requests says how long to stay away, and is obeyed. What counts as passing: a
connection that broke, a time-out, a server that was busy, a network file system that hiccuped. A
file that is missing, a right that is lacking or a full disk is none.

Reads, writes, lists, moves and removals by pyarrow's file systems, S3 too, are tried five times
here (by `remote_storage` and `remote_path`), beneath which its client tries again by itself. What
boto3 does (copies, parts, aborts of uploads) has the five attempts of its own (`s3_client`). An
extrapolation then tries the whole shard three times (`expo_ray.extrapolation.shards.attempts`). A
read that ends too early is never tried again: the file is another one by now.
"""

from __future__ import annotations

import errno
import logging
import random
import re
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

logger = logging.getLogger(__name__)

ATTEMPTS = 5
FIRST_DELAY_SECONDS = 0.2
LONGEST_DELAY_SECONDS = 8.0
# Where a server limits requests: the Hub counts those of five minutes.
LONGEST_LIMIT_SECONDS = 300.0
UNTOLD_LIMIT_SECONDS = 30.0
TOO_MANY_REQUESTS = 429
_PASSING = frozenset(
    getattr(errno, name)
    for name in (
        "EIO",
        "EAGAIN",
        "ESTALE",
        "ETIMEDOUT",
        "ECONNRESET",
        "ECONNABORTED",
        "ECONNREFUSED",
        "EHOSTUNREACH",
        "ENETDOWN",
        "ENETUNREACH",
        "EPIPE",
        "EREMOTEIO",
    )
    if hasattr(errno, name)
)
# Object stores report as OSError without errno: their words decide, pyarrow's and boto3's.
_FINAL_WORDS = (
    "ACCESS_DENIED",
    "AccessDenied",
    "INVALID_ACCESS_KEY",
    "InvalidAccessKeyId",
    "INVALID_CLIENT_TOKEN",
    "INVALID_SIGNATURE",
    "SIGNATURE_DOES_NOT_MATCH",
    "SignatureDoesNotMatch",
    "NO_SUCH_BUCKET",
    "NoSuchBucket",
    "NO_SUCH_KEY",
    "NoSuchKey",
    "NO_SUCH_UPLOAD",
    "RESOURCE_NOT_FOUND",
    "status 416",
    "past end of file",
)
_T = TypeVar("_T")


def is_passing(error: BaseException) -> bool:
    """Tell whether trying again may help."""
    if isinstance(error, ConnectionError | TimeoutError):
        return True
    if not isinstance(error, OSError):
        return False
    if error.errno is not None:
        return error.errno in _PASSING
    return not any(word in str(error) for word in _FINAL_WORDS)


def retry_io(
    call: Callable[[], _T],
    *,
    what: str,
    attempts: int = ATTEMPTS,
    passing: Callable[[BaseException], bool] = is_passing,
) -> _T:
    """Call until it works, at most `attempts` times, waiting twice as long after each failure.

    Args:
        call: The work; it must be safe to repeat.
        what: A few words for the log.
        attempts: How often in all.
        passing: Which errors are worth another attempt.

    Returns:
        What the call returned.

    Raises:
        OSError: The last failure, or the first one that no repetition can cure.
    """
    delay_seconds = FIRST_DELAY_SECONDS
    limit_seconds = 0.0
    for attempt in range(1, attempts + 1):
        try:
            return call()
        except OSError as error:
            if attempt == attempts or not passing(error):
                raise
            limit_seconds = asked_delay_seconds(error)
            wait = f", waiting for {limit_seconds:.0f} s as it asks" if limit_seconds else ""
            logger.warning(
                "attempt %d of %d to %s failed%s: %s", attempt, attempts, what, wait, error
            )
        # Many workers that failed together must not come back together.
        time.sleep(limit_seconds + delay_seconds * random.uniform(0.5, 1.0))  # noqa: S311
        delay_seconds = min(2 * delay_seconds, LONGEST_DELAY_SECONDS)
    raise AssertionError("unreachable")


def asked_delay_seconds(error: BaseException) -> float:
    """Return how long a server that limits requests asks to wait, 0 where it does not.

    Args:
        error: As a library of HTTP raises it, with the response, or what was raised from it.
    """
    responses = (getattr(e, "response", None) for e in (error, error.__cause__))
    response = next((found for found in responses if found is not None), None)
    headers: Mapping[str, str] = getattr(response, "headers", {})
    is_limit = getattr(response, "status_code", None) == TOO_MANY_REQUESTS
    found = re.fullmatch(r"\s*(\d+)\s*", headers.get("retry-after", ""))
    # The Hub's own header: "api";r=0;t=55 for no more requests in the next 55 seconds.
    found = found or (re.search(r"\bt=(\d+)", headers.get("ratelimit", "")) if is_limit else None)
    if found is None:
        return UNTOLD_LIMIT_SECONDS if is_limit else 0.0
    return min(float(found[1]), LONGEST_LIMIT_SECONDS)
