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
from statistics import median, quantiles

from expo_ray.loadtests.records import RequestRecord

_MIN_SPANS = 3


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


def steady_window(
    records: Sequence[RequestRecord], *, ramp_seconds: float = 0.0, concurrency: int | None = None
) -> Window | None:
    """Return the span in which load is on and neither the start nor the drain distorts it.

    It begins with the first completion after the ramp and ends when the last request is due:
    afterwards the service only empties. A closed loop's ends sooner where one of its clients was
    through with its share before the others: the rest had fewer in flight. None where nothing is
    left.
    """
    end = max(r.intended_seconds for r in records)
    if concurrency is not None:
        steps = in_flight(records)
        full = [after for (_, number), (after, _) in pairwise(steps) if number >= concurrency]
        end = min([end, *full[-1:]])
    ended = [r.done_seconds for r in records if r.done_seconds >= ramp_seconds]
    if not ended or min(ended) >= end:
        return None
    return Window(start_seconds=min(ended), end_seconds=end)


def completions(records: Sequence[RequestRecord], window: Window) -> int:
    """Return how many requests completed within a window, its start excluded."""
    return sum(
        r.error is None and window.start_seconds < r.done_seconds <= window.end_seconds
        for r in records
    )


def tokens_within(records: Sequence[RequestRecord], window: Window) -> float | None:
    """Return the output tokens that were sent within a window, its start excluded.

    A chunk counts as an equal share of its answer's tokens. None where their number is
    not known.
    """
    good = [r for r in records if r.error is None]
    if any(r.streamed_tokens is None for r in good):
        return None
    return math.fsum(
        (r.streamed_tokens or 0)
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


def keeps_up(records: Sequence[RequestRecord]) -> bool | None:
    """Say whether an open loop's completions kept pace with its arrivals, or None: too short.

    A backlog of constant size is what every service has whose answers take time: only one that
    grows has fallen behind. Over the second half of the arrivals, as many requests must complete
    as arrive, but for a tenth and for the chance of the arrivals (one standard deviation of a
    Poisson count). Where arrivals lasted less than three times what the first requests took, the
    second half is still the start: then only times that grow far apart can tell.
    """
    arriving = sorted(records, key=lambda r: r.intended_seconds)
    due = [r.intended_seconds for r in arriving]
    taken = [r.done_seconds - r.intended_seconds for r in arriving]
    span = due[-1] - due[0]
    if span < _MIN_SPANS * median(taken[: math.ceil(len(taken) / 10)]):
        return False if _grew_apart(taken, span) else None
    window = Window(start_seconds=due[0] + span / 2, end_seconds=due[-1])
    arrived = sum(window.start_seconds < t <= window.end_seconds for t in due)
    ended = sum(window.start_seconds < r.done_seconds <= window.end_seconds for r in records)
    return arrived - ended <= 0.1 * arrived + math.sqrt(arrived)


def _grew_apart(taken: Sequence[float], span: float) -> bool:
    """Say whether late requests took longer than early ones by about as long as arrivals lasted.

    Of a service at half the pace of the arrivals they do. Quartiles of the first and the last
    quarter: answers of all lengths alone differ as much from the start.
    """
    size = len(taken) // 4
    if size < 2:
        return False
    early, late = quantiles(taken[:size], n=4)[2], quantiles(taken[-size:], n=4)[0]
    return late - early > span / 2
