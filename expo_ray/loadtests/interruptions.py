"""What broke off amid a point: silence, failures, a replica that stopped answering.

A killed replica shows in all three ways, or in one alone: others go on answering, so that the
throughput of a whole point may hide it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import pairwise
from statistics import median
from typing import Any

from expo_ray.loadtests.records import RequestRecord
from expo_ray.loadtests.windows import Window, silences

_MIN_SECONDS = 1.0
_TIMES_USUAL = 3.0
"""A wait is an interruption where it is longer than both: a second, and so many usual waits."""


def find_interruptions(records: Sequence[RequestRecord]) -> list[dict[str, Any]]:
    """Return what broke off, in order of time.

    Args:
        records: All requests of a point but its warm-up.

    Returns:
        `{"kind", "start_seconds", "end_seconds", "text"}` each; kind is `silence` (requests in
        flight, and no text for any), `failures` (from the first to the last that the service
        failed) or `replica_lost` (until another began to answer; then end_seconds, else None).
    """
    found = [*_silences(records), *_failures(records), *_lost_replicas(records)]
    return sorted(found, key=lambda one: float(one["start_seconds"]))


def _silences(records: Sequence[RequestRecord]) -> list[dict[str, Any]]:
    waits = [_longest_wait((r.intended_seconds, *r.token_seconds)) for r in records]
    limit = _limit(median(waits) if waits else 0.0)
    return [
        _interruption(
            "silence",
            window.start_seconds,
            window.end_seconds,
            f"no text for any request during {window.duration:.1f} s, {_from_to(window)}",
        )
        for window in silences(records)
        if window.duration > limit
    ]


def _failures(records: Sequence[RequestRecord]) -> list[dict[str, Any]]:
    # An answer without text is the model's doing.
    failed = [r for r in records if r.error not in (None, "empty")]
    if not failed:
        return []
    start, end = (f(r.done_seconds for r in failed) for f in (min, max))
    counts = sorted(Counter(str(r.error) for r in failed).items())
    kinds = ", ".join(f"{kind} {number}" for kind, number in counts)
    number = "1 request" if len(failed) == 1 else f"{len(failed)} requests"
    first, last = f"{start:.1f} s", f"{end:.1f} s"
    when = f"at {first}" if first == last else f"from {first} to {last}"
    return [_interruption("failures", start, end, f"{number} failed {when}: {kinds}")]


def _lost_replicas(records: Sequence[RequestRecord]) -> list[dict[str, Any]]:
    texts: dict[str, list[float]] = defaultdict(list)
    for record in records:
        if record.replica and record.token_seconds:
            texts[record.replica] += record.token_seconds
    last_due = max(r.intended_seconds for r in records)
    began = sorted((min(times), name) for name, times in texts.items())
    found = []
    for last, name in sorted((max(times), name) for name, times in texts.items()):
        if last_due - last <= _limit(_longest_wait(sorted(texts[name]))):
            continue
        successor = next(((first, other) for first, other in began if first > last), None)
        text = f"replica {name} answered no more after {last:.1f} s; "
        if successor is None:
            text += "no other took its place"
        else:
            began.remove(successor)
            text += f"{successor[1]} took its place {successor[0] - last:.1f} s later"
        found.append(_interruption("replica_lost", last, successor and successor[0], text))
    return found


def _interruption(kind: str, start: float, end: float | None, text: str) -> dict[str, Any]:
    return {"kind": kind, "start_seconds": start, "end_seconds": end, "text": text}


def _longest_wait(times: Sequence[float]) -> float:
    return max((later - sooner for sooner, later in pairwise(times)), default=0.0)


def _limit(usual: float) -> float:
    return max(_MIN_SECONDS, _TIMES_USUAL * usual)


def _from_to(window: Window) -> str:
    return f"from {window.start_seconds:.1f} s to {window.end_seconds:.1f} s"
