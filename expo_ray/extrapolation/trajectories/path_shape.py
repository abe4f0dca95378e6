"""The shape of a training's path, from the scalar products of its changes alone.

Distances are Frobenius norms over the tensors that are summed. Nothing is read here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from expo_ray.extrapolation.arithmetic.path_sums import PathSums
from expo_ray.extrapolation.trajectories.fits import Weights, line_weights

NUM_DIRECTIONS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class PathShape:
    """How straight a path is, and in how few directions it runs."""

    path_length: float
    """Sum of the distances between neighbouring checkpoints."""
    distance: float
    """From the first checkpoint to the last."""
    r2_line: float | None
    """Share of the variance over the checkpoints that straight lines over the steps explain."""
    direction_shares: tuple[float, ...]
    """Shares of the first directions in the squared changes to the first checkpoint."""
    share_moved: float | None
    """Mean share of the values that differ between neighbouring checkpoints."""
    share_rounding: float | None
    """Share of the squared steps between neighbours that rounding to the dtype explains."""
    share_rounding_whole: float | None
    """The same of the squared change from the first checkpoint to the last."""

    @property
    def straightness(self) -> float | None:
        """Distance over length: 1 for a straight line, near 0 for a walk that goes nowhere."""
        return self.distance / self.path_length if self.path_length else None

    def as_dict(self) -> dict[str, Any]:
        """Return the fields, JSON-able."""
        return {
            "path_length": self.path_length,
            "distance": self.distance,
            "straightness": self.straightness,
            "r2_line": self.r2_line,
            "direction_shares": list(self.direction_shares),
            "share_moved": self.share_moved,
            "share_rounding": self.share_rounding,
            "share_rounding_whole": self.share_rounding_whole,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """From one checkpoint to the next."""

    start: float
    end: float
    length: float
    cosine_to_next: float | None
    """Between this step and the one after it; None of the last, and where one has no length."""
    share_moved: float
    """Of the values."""
    share_rounding: float | None
    """Of the squared length, what rounding explains; None where nothing moved."""

    def as_dict(self) -> dict[str, Any]:
        """Return the fields, JSON-able."""
        return {
            "start": self.start,
            "end": self.end,
            "length": self.length,
            "cosine_to_next": self.cosine_to_next,
            "share_moved": self.share_moved,
            "share_rounding": self.share_rounding,
        }


def total_of(tensors: Iterable[PathSums]) -> PathSums | None:
    """Return the sums over several tensors, None of none."""
    total: PathSums | None = None
    for sums in tensors:
        total = total or PathSums(len(sums.gram))
        total.add(sums)
    return total


def squared_distance(sums: PathSums, first: int, second: int) -> float:
    """Return the squared distance between two checkpoints."""
    gram = sums.gram
    return max(0.0, float(gram[first, first] + gram[second, second] - 2 * gram[first, second]))


def rounding_share(sums: PathSums, first: int, second: int) -> float | None:
    """Return which share of a squared change rounding explains; None where nothing moved.

    Two rounded numbers differ by their rounding errors besides what they differ by. Where steps
    are so small that most values keep their bits, the expected error exceeds the change that is
    seen: all of it is rounding then.
    """
    squared = squared_distance(sums, first, second)
    if not squared:
        return None
    return min(1.0, float(sums.rounding[first] + sums.rounding[second]) / squared)


def path_shape(sums: PathSums, steps: Sequence[float]) -> PathShape:
    """Describe a path.

    Args:
        sums: Over the tensors that count.
        steps: Of the checkpoints.
    """
    last = len(steps) - 1
    neighbours = [(i, i + 1) for i in range(last)]
    squares = [squared_distance(sums, *pair) for pair in neighbours]
    shares = [rounding_share(sums, *pair) for pair in neighbours]
    explained = sum(s * (share or 0.0) for s, share in zip(squares, shares, strict=True))
    return PathShape(
        path_length=float(np.sqrt(squares).sum()),
        distance=squared_distance(sums, 0, last) ** 0.5,
        r2_line=_r2_line(sums.gram, np.asarray(steps, dtype=np.float64)),
        direction_shares=direction_shares(sums.gram),
        share_moved=float(sums.num_moved.mean() / sums.num_elements) if sums.num_elements else None,
        share_rounding=explained / sum(squares) if sum(squares) else None,
        share_rounding_whole=rounding_share(sums, 0, last),
    )


def path_steps(sums: PathSums, steps: Sequence[float]) -> tuple[Step, ...]:
    """Return the steps between neighbouring checkpoints."""
    found = []
    for i in range(len(steps) - 1):
        found.append(
            Step(
                start=float(steps[i]),
                end=float(steps[i + 1]),
                length=squared_distance(sums, i, i + 1) ** 0.5,
                cosine_to_next=_cosine_to_next(sums, i) if i + 2 < len(steps) else None,
                share_moved=float(sums.num_moved[i] / max(1, sums.num_elements)),
                share_rounding=rounding_share(sums, i, i + 1),
            )
        )
    return tuple(found)


def direction_shares(gram: Weights) -> tuple[float, ...]:
    """Return the shares of the first directions in the squared changes, the largest first."""
    eigenvalues = np.maximum(np.linalg.eigvalsh(gram[1:, 1:])[::-1], 0.0)
    total = eigenvalues.sum()
    return tuple((eigenvalues[:NUM_DIRECTIONS] / total).tolist()) if total else ()


def coordinates(gram: Weights, num_directions: int = NUM_DIRECTIONS) -> Weights:
    """Return where the checkpoints lie in the first directions of the changes, [N, directions].

    The first checkpoint is the origin; each direction points to the side on which the last lies.
    """
    eigenvalues, vectors = np.linalg.eigh(gram[1:, 1:])
    order = np.argsort(eigenvalues)[::-1][:num_directions]
    found = np.zeros((len(gram), len(order)))
    found[1:] = vectors[:, order] * np.sqrt(np.maximum(eigenvalues[order], 0.0))
    found *= np.where(found[-1] < 0, -1.0, 1.0)
    return found


def _r2_line(gram: Weights, axis: Weights) -> float | None:
    """Return R^2 of the least squares line of every value over the steps, all values together."""
    if len(axis) < 3:
        return None
    number = len(axis)
    centring = np.eye(number) - 1.0 / number
    residual = np.eye(number) - np.array([line_weights(axis, float(at)) for at in axis])
    total = float(np.sum((centring @ gram) * centring))
    left = float(np.sum((residual @ gram) * residual))
    return 1.0 - max(0.0, left) / total if total > 0 else None


def _cosine_to_next(sums: PathSums, index: int) -> float | None:
    change = np.zeros((2, len(sums.gram)))
    change[0, index : index + 2] = -1.0, 1.0
    change[1, index + 1 : index + 3] = -1.0, 1.0
    (first, product), (_, second) = change @ sums.gram @ change.T
    if first <= 0 or second <= 0:
        return None
    return float(np.clip(product / np.sqrt(first * second), -1.0, 1.0))
