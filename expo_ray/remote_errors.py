"""What failed in another process, told here: our own errors as they were, others by their cause.

Ray and Serve wrap what a task, an actor or a replica raised, at times as text alone, and an engine
says only that it is dead: the cause stands in a log of its node.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from expo_ray import errors
from expo_ray.cluster import run_on_nodes
from expo_ray.errors import ExpoError
from expo_ray.ray_internals import logs_folder

_MAX_LENGTH = 500
_MAX_LOG_BYTES = 1 << 20
_FIELDS = ("where", "got", "expected", "hint")
_ANSI = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
# "(EngineCore pid=7) ERROR 11-29 08:00:00 [core.py:1] ValueError: why", as vLLM logs it.
_LOG_PREFIX = re.compile(r"^(\([^)]*pid=\d+\)\s*)?((ERROR|CRITICAL) [\d-]+ [\d:.]+ \[[^]]*\] ?)?")
_RAISED = re.compile(r"^(?:\w+\.)*(\w*(?:Error|Exception|Timeout|Interrupt)): (.+)$")
_OUR_ERROR = re.compile(r"expo_ray\.errors\.(\w+): (.*)")
# These only say that something else failed.
_WRAPPERS = ("EngineDeadError", "EngineGenerateError", "RayTaskError", "ActorDiedError")
# How Ray tells why a process ended.
_DEATHS = ("is dead because", "exit detail", "low on memory")
_DEAD = ("EngineDeadError", "Engine core initialization failed", "See stack trace (above)")


def brought_home(
    error: BaseException, message: str, kind: type[ExpoError], **fields: Any
) -> ExpoError:
    """Return the error to raise here for one that another process raised.

    Args:
        error: What Ray or Serve raised.
        message: What could not be done, where it was no error of ours.
        kind: Class of the error then.
        fields: Its `where` and `hint`.
    """
    return our_error(error) or kind(message, got=cause_in_one_line(error), **fields)


def our_error(error: BaseException) -> ExpoError | None:
    """Return the error of ours that is behind one of Ray or Serve; None where there is none."""
    for link in _chain(error):
        if isinstance(link, ExpoError) and type(link).__module__ == errors.__name__:
            return link
    return _parsed(_plain(str(error)))


def cause_in_one_line(error: BaseException) -> str:
    """Return the root cause of an error of another process: `ValueError: why`."""
    root = list(_chain(error))[-1]
    text = _plain(f"{type(error).__name__}: {error}\n{type(root).__name__}: {root}")
    if any(words in text for words in _DEAD):
        found = run_on_nodes(logged_cause, None)
        causes = [cause for cause in found.values() if isinstance(cause, list) and cause]
        if causes:
            return str(max(causes)[1])
    lines = text.splitlines()
    death = next((line for line in lines if any(words in line for words in _DEATHS)), text)
    return (_last_raised(lines) or " ".join(death.split()))[:_MAX_LENGTH]


def logged_cause(_: object, node: str) -> list[Any]:
    """Find the latest failure in the logs of this node's engines.

    Args:
        node: Its name, which the answer does not need.

    Returns:
        When it was written and what it says; nothing where there is none.
    """
    folder = logs_folder()
    logs = [*folder.glob("worker-*"), *folder.glob("serve/*.log")]
    for log in sorted(logs, key=lambda path: -path.stat().st_mtime):
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _MAX_LOG_BYTES))
            lines = _plain(file.read().decode(errors="replace")).splitlines()
        engine = [_LOG_PREFIX.sub("", line) for line in lines if "EngineCore" in line]
        cause = _last_raised(engine)
        if cause is not None:
            return [log.stat().st_mtime, cause[:_MAX_LENGTH]]
    return []


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and what caused it, whatever way that is kept."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        kept = getattr(error, "cause", None)
        error = kept if isinstance(kept, BaseException) else error.__cause__


def _last_raised(lines: list[str]) -> str | None:
    raised = (_RAISED.match(line.strip()) for line in reversed(lines))
    told = (m for m in raised if m is not None and m[1] not in _WRAPPERS)
    return next((f"{m[1]}: {m[2]}" for m in told), None)


def _parsed(text: str) -> ExpoError | None:
    """Return our own error out of a traceback in text, as Serve gives that of a constructor."""
    found = list(_OUR_ERROR.finditer(text))
    kind = getattr(errors, found[-1][1], None) if found else None
    if not isinstance(kind, type) or not issubclass(kind, ExpoError):
        return None
    values: dict[str, str] = {}
    for line in text[found[-1].end() :].splitlines()[1:]:
        name, _, value = line.strip().partition(": ")
        if name not in _FIELDS or not line.startswith("  "):
            break
        values[name] = value
    return kind(found[-1][2], **values)


def _plain(text: str) -> str:
    return _ANSI.sub("", text)
