"""What is offered at a point: so many requests in flight, so many a second, or a trace."""

from __future__ import annotations

from dataclasses import dataclass

from expo_ray.loadtests.trace import TraceRequest


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """One point: exactly one of the three is given."""

    concurrency: int | None = None
    rate: float | None = None
    trace: tuple[TraceRequest, ...] = ()

    def __str__(self) -> str:
        if self.trace:
            return f"a trace of {len(self.trace)} requests"
        return f"{self.rate:g} requests/s" if self.rate else f"{self.concurrency} in flight"

    @property
    def offered_rate(self) -> float | None:
        """Requests per second; of a trace the mean, None for a closed loop."""
        if not self.trace:
            return self.rate
        span = self.trace[-1].due_seconds - self.trace[0].due_seconds
        return (len(self.trace) - 1) / span if span > 0 else float(len(self.trace))

    def times(self, factor: float) -> Load:
        """Return more of the same: so many times the requests in flight or a second."""
        if self.concurrency is not None:
            return Load(concurrency=max(self.concurrency + 1, round(self.concurrency * factor)))
        return Load(rate=(self.rate or 0.0) * factor)
