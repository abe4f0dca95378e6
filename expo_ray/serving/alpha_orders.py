"""What the board and the replicas of a service tell each other about alpha. Light: no ray."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from expo_ray.errors import ExpoError, ServingError
from expo_ray.serving.alpha_setting import AlphaSetting


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """What every replica shall hold."""

    sequence: int
    """Grows with every order."""
    phase: Literal["prepare", "steady"]
    generation: int
    """Grows with every change of alpha."""
    alpha: AlphaSetting
    drain_seconds: float = 0.0
    """How long requests inside may take to finish."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What a replica holds, in answer to an order."""

    sequence: int
    generation: int
    alpha: AlphaSetting
    weights_digest: str | None
    error: ExpoError | None = None
    has_drained: bool = True


def problem_of(reports: dict[str, Report]) -> ExpoError | None:
    """Return why a prepared change must not be made; a single failed replica is no reason.

    Args:
        reports: By name of the replica.
    """
    if not reports:
        return ServingError("no replica is left", hint="they are being replaced: try again")
    for report in reports.values():
        if report.error is not None and not report.has_drained:
            return report.error
    good = [report for report in reports.values() if report.error is None]
    if not good:
        return next(iter(reports.values())).error
    digests = {report.weights_digest for report in good}
    if len(digests) > 1:
        return ServingError("replicas report different weights", got=sorted(map(str, digests)))
    return None
