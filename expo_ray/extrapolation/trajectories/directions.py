"""From a fit and the steps to the directions of the outputs, and to what of a path is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from expo_ray.extrapolation.arithmetic.directions import Direction
from expo_ray.extrapolation.pairing.tensor_pair import Pair, TensorPair
from expo_ray.extrapolation.planning.path import LAST
from expo_ray.extrapolation.trajectories.fits import (
    Fit,
    FitOptions,
    Weights,
    direction_weights,
    needs_gram,
    rank1_weights,
    step_weights,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Fitting:
    """A fit over the steps of a trajectory."""

    fit: Fit
    options: FitOptions
    steps: tuple[float, ...]

    @property
    def needs_gram(self) -> bool:
        """Whether every tensor has weights of its own, from its Gram matrix."""
        return needs_gram(self.fit)

    def is_pair(self, start: str) -> bool:
        """Whether what comes out is the formula of a pair, to the bit and without any sums."""
        return self.fit is Fit.LINE and len(self.steps) == 2 and start == LAST

    def change(self, gram: Weights | None = None) -> Weights:
        """Return the weights of the fitted change over the whole span, with sum 0."""
        return direction_weights(self.fit, self.steps, gram, options=self.options)

    def to_fitted(self, target: float, gram: Weights | None = None) -> Weights:
        """Return the weights of what leads from the last checkpoint to the fitted model.

        Args:
            target: The step of the fitted model.
            gram: Where weights differ by tensor, its Gram matrix.
        """
        if gram is None:
            found = step_weights(self.fit, self.steps, target, options=self.options)
        else:
            found = rank1_weights(gram, self.steps, target, options=self.options)
        found[-1] -= 1.0
        return found


def same_for_all(fitting: Fitting, at_step: float | None) -> Direction:
    """Return a direction whose weights are the same for all tensors.

    Args:
        fitting: Of a fit that needs no Gram matrix.
        at_step: Of a fitted model its step; None for the change over the whole span.
    """
    found = fitting.change() if at_step is None else fitting.to_fitted(at_step)
    return Direction(weights=tuple(found.tolist()))


def by_tensor(fitting: Fitting, at_step: float | None, grams: Mapping[str, Weights]) -> Direction:
    """Return a direction whose weights are of each tensor.

    Args:
        fitting: Of a fit that needs the Gram matrices.
        at_step: As for `same_for_all`.
        grams: By tensor.
    """
    rows = {}
    for name, gram in grams.items():
        found = fitting.change(gram) if at_step is None else fitting.to_fitted(at_step, gram)
        rows[name] = tuple(found.tolist())
    return Direction(by_tensor=rows)


def used(directions: Sequence[Direction], num_checkpoints: int) -> list[int]:
    """Return which checkpoints are read: the two ends, and those with a weight, if known."""
    inner = range(1, num_checkpoints - 1)
    weighty = [i for i in inner if not directions or any(d.weights[i] for d in directions)]
    return [0, *weighty, num_checkpoints - 1]


def narrowed(pair: Pair, kept: Sequence[int]) -> Pair:
    """Return the pair of a trajectory with some of its checkpoints between.

    Args:
        pair: Of all checkpoints.
        kept: Numbers of checkpoints, the first and the last among them.
    """
    inner = [index - 1 for index in kept[1:-1]]
    labels = list(pair.between)

    def of(tensor: TensorPair) -> TensorPair:
        if not tensor.between:
            return tensor
        return replace(tensor, between=tuple(tensor.between[i] for i in inner))

    return replace(
        pair,
        between={labels[i]: pair.between[labels[i]] for i in inner},
        tensors=tuple(map(of, pair.tensors)),
    )


def narrowed_direction(direction: Direction, kept: Sequence[int]) -> Direction:
    """Return a direction with the weights of some checkpoints; the others have 0."""
    return Direction(weights=tuple(direction.weights[i] for i in kept))
