"""What happened when: requests in flight, the steady part of a point, gaps, a growing backlog.

All from recorded timestamps. Requests of the ramp and the cool-down count here as load; whether
they count as measured is the matter of `metrics`.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from expo_ray.loadtests.records import RequestRecord


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """A span of seconds."""

    start_seconds: float
    end_seconds: float

    @property
    def duration(self) -> float:
        """Its length in seconds."""
        return self.end_seconds - self.start_seconds


def in_flight(records: Sequence[RequestRecord]) -> list[tuple[float, int]]:
    """Return (second, requests in flight from then on), ascending.

    A request is in flight from when it was due: one that waits in the client waits.
    """
    changes: dict[float, int] = {}
    for record in records:
        changes[record.intended_seconds] = changes.get(record.intended_seconds, 0) + 1
        changes[record.done_seconds] = changes.get(record.done_seconds, 0) - 1
    steps, number = [], 0
    for second in sorted(changes):
        number += changes[second]
        steps.append((second, number))
    return steps


def mean_in_flight(records: Sequence[RequestRecord]) -> float | None:
    """Return the mean number in flight (Little's law); None for an instant."""
    start = min(r.intended_seconds for r in records)
    duration = max(r.done_seconds for r in records) - start
    busy = sum(r.done_seconds - r.intended_seconds for r in records)
    return busy / duration if duration > 0 else None


def steady_window(records: Sequence[RequestRecord], *, ramp_seconds: float = 0.0) -> Window | None:
    """Return the span in which load is on and neither the start nor the drain distorts it.

    It begins with the first completion after the ramp and ends when the last request is due:
    afterwards the service only empties. None where nothing is left.
    """
    last_due = max(r.intended_seconds for r in records)
    ended = [r.done_seconds for r in records if r.done_seconds >= ramp_seconds]
    if not ended or min(ended) >= last_due:
        return None
    return Window(start_seconds=min(ended), end_seconds=last_due)


def completions(records: Sequence[RequestRecord], window: Window) -> int:
    """Return how many requests completed within a window, its start excluded."""
    return sum(
        r.error is None and window.start_seconds < r.done_seconds <= window.end_seconds
        for r in records
    )


def tokens_within(records: Sequence[RequestRecord], window: Window) -> float | None:
    """Return the output tokens that arrived within a window, its start excluded.

    A chunk counts as an equal share of its answer's tokens. None without usage.
    """
    good = [r for r in records if r.error is None]
    if any(r.output_tokens is None for r in good):
        return None
    return math.fsum(
        (r.output_tokens or 0)
        * sum(window.start_seconds < t <= window.end_seconds for t in r.token_seconds)
        / len(r.token_seconds)
        for r in good
    )


def silences(records: Sequence[RequestRecord]) -> list[Window]:
    """Return the spans between texts, whosoever they are for, while requests were in flight."""
    texts = sorted(t for r in records for t in r.token_seconds)
    gaps = []
    start = None
    for second, number in in_flight(records):
        if start is None:
            start = second
        elif number == 0:
            inside = texts[bisect_left(texts, start) : bisect_right(texts, second)]
            marks = [start, *inside, second]
            gaps += [Window(start_seconds=a, end_seconds=b) for a, b in pairwise(marks)]
            start = None
    return gaps


def longest_gap(records: Sequence[RequestRecord]) -> Window | None:
    """Return the longest span in which requests were in flight and no text arrived for any.

    A replica that dies under load, or a service that stalls, shows here. None without any text.
    """
    if not any(r.token_seconds for r in records):
        return None
    return max(silences(records), key=lambda gap: gap.duration, default=None)


def keeps_up(records: Sequence[RequestRecord]) -> bool:
    """Say whether an open loop's completions kept pace with its arrivals.

    Over the second half of the arrivals, as many requests must complete as arrive, but for a
    tenth and for the chance of the arrivals (one standard deviation of a Poisson count).
    """
    due = [r.intended_seconds for r in records]
    middle = (min(due) + max(due)) / 2
    window = Window(start_seconds=middle, end_seconds=max(due))
    arrived = sum(window.start_seconds < t <= window.end_seconds for t in due)
    ended = sum(window.start_seconds < r.done_seconds <= window.end_seconds for r in records)
    return arrived - ended <= 0.1 * arrived + math.sqrt(arrived)
