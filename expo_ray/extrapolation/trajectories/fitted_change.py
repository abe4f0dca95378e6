"""A fit through a trajectory in the place of initial, where weights are computed while they load.

    weights = last + alpha * (the fitted change over the whole span)

The plan is that of `extrapolate --trajectory --from last`, and so are the bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from expo_ray.checkpoints.opening import absolute_address
from expo_ray.extrapolation.arithmetic.directions import Direction
from expo_ray.extrapolation.planning.path import LAST
from expo_ray.extrapolation.planning.plan import DEFAULT_SHARD_SIZE, Plan, parse_size
from expo_ray.extrapolation.trajectories.asked import Asked
from expo_ray.extrapolation.trajectories.diagnosis_file import identity_of
from expo_ray.extrapolation.trajectories.directions import Fitting, by_tensor
from expo_ray.extrapolation.trajectories.fit_text import parse_fit, require_fit
from expo_ray.extrapolation.trajectories.fits import Weights
from expo_ray.extrapolation.trajectories.path_plan import known_directions, plan_path
from expo_ray.extrapolation.trajectories.trajectory import Trajectory, open_trajectory
from expo_ray.extrapolation.trajectories.trajectory_file import (
    TrajectoryPoint,
    TrajectorySource,
    read_trajectory,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class FittedChange:
    """The checkpoints of one training, and the fit whose change over their span is delta."""

    points: tuple[tuple[float, str], ...]
    """Step and checkpoint, in the order of the training."""
    fit: str = "line"
    weights: tuple[float, ...] = ()
    """Of the fit `weights`."""

    def __post_init__(self) -> None:
        # Plain values that crossed to another process come back as lists.
        object.__setattr__(self, "points", tuple((step, place) for step, place in self.points))
        object.__setattr__(self, "weights", tuple(self.weights))

    @classmethod
    def of(
        cls, trajectory: TrajectorySource, fit: str = "line", weights: Sequence[float] = ()
    ) -> FittedChange:
        """Return the fitted change of a trajectory, checked as far as the steps tell.

        Args:
            trajectory: As for `extrapolate_trajectory`.
            fit: As for `extrapolate_trajectory`.
            weights: As for `extrapolate_trajectory`.

        Raises:
            ConfigError: The trajectory cannot be read, or the fit cannot use its steps.
        """
        points = tuple(
            (float(p.step), absolute_address(p.checkpoint)) for p in read_trajectory(trajectory)
        )
        found = cls(points=points, fit=fit, weights=tuple(weights))
        fitting = found._fitting()
        require_fit(fitting.fit, fitting.steps, fitting.options)
        return found

    @property
    def first(self) -> str:
        """Where the first checkpoint lies."""
        return self.points[0][1]

    @property
    def last(self) -> str:
        """Where the last checkpoint lies: what alpha 0 is."""
        return self.points[-1][1]

    @property
    def needs_gram(self) -> bool:
        """Whether its weights come from a pass of their own over all checkpoints."""
        return self._fitting().needs_gram

    def pinned(self) -> FittedChange:
        """Return the same with addresses that mean the same on every node, now and later.

        Raises:
            RequestError: A checkpoint is missing or malformed, or of another model.
        """
        found = self._open(())
        uris = [checkpoint.uri for checkpoint in found.checkpoints]
        return replace(self, points=tuple(zip(found.steps, uris, strict=True)))

    def plan(self, extra_tensors: Sequence[str] = ()) -> tuple[Plan, tuple[Direction, ...]]:
        """Return what is computed, and what takes the place of delta.

        The latter is empty where it is known only after `measured`, or is that of a pair.

        Args:
            extra_tensors: As for `extrapolate`.

        Raises:
            RequestError: As for `pinned`.
        """
        return self._planned(self._open(extra_tensors))

    def _planned(self, opened: Trajectory) -> tuple[Plan, tuple[Direction, ...]]:
        fitting = self._fitting()
        asked = Asked(start=LAST, alphas=(), at_steps=(), notes=())
        directions = known_directions(fitting, asked)
        copied = tuple(tensor.name for tensor in opened.pair.tensors if tensor.initial is None)
        size = parse_size(DEFAULT_SHARD_SIZE)
        plan = plan_path(opened.pair, fitting, asked, directions, copied, size)
        return plan, tuple(directions.values())

    def measured(self, extra_tensors: Sequence[str] = ()) -> tuple[Plan, tuple[Direction, ...]]:
        """Return the same as `plan`, with the weights of a fit by tensor.

        Their pass over all checkpoints is made once in each process.

        Args:
            extra_tensors: As for `extrapolate`.

        Raises:
            RequestError: As for `pinned`.
            ShardError: A checkpoint is not finite.
        """
        opened = self._open(extra_tensors)
        plan, directions = self._planned(opened)
        if self.needs_gram:
            identity = tuple(map(identity_of, opened.checkpoints))
            grams = _grams(self, tuple(extra_tensors), identity)
            directions = (by_tensor(self._fitting(), None, grams),)
        return plan, directions

    def _open(self, extra_tensors: Sequence[str]) -> Trajectory:
        points = [TrajectoryPoint(step=step, checkpoint=place) for step, place in self.points]
        return open_trajectory(points, extra_tensors=extra_tensors)

    def _fitting(self) -> Fitting:
        named, options = parse_fit(self.fit, self.weights)
        return Fitting(fit=named, options=options, steps=tuple(step for step, _ in self.points))


# The identity is in the key: a checkpoint that was written anew is measured anew.
@lru_cache(maxsize=2)
def _grams(
    change: FittedChange, extra_tensors: tuple[str, ...], identity: tuple[str, ...]
) -> dict[str, Weights]:
    from expo_ray.extrapolation.trajectories.gram import measure_gram

    return measure_gram(change._open(extra_tensors), address="inline")
