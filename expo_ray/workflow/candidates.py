"""The candidates of a run as checkpoints: beyond a pair, or along a fit through a trajectory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from expo_ray.checkpoints import Checkpoint, open_checkpoint
from expo_ray.checkpoints.opening import open_aligned
from expo_ray.extrapolation import ExtrapolationResult, extrapolate, extrapolate_trajectory
from expo_ray.extrapolation.trajectories.trajectory import label_of, open_trajectory
from expo_ray.extrapolation.trajectories.trajectory_file import TrajectoryPoint, read_trajectory
from expo_ray.workflow.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Inputs:
    """Where the checkpoints lie that candidates are made from."""

    addresses: tuple[str, ...] = ()
    """Of initial and aligned, or of all checkpoints of a trajectory in their order."""
    steps: tuple[float, ...] = ()
    """Of a trajectory."""

    @classmethod
    def of(cls, recipe: Recipe) -> Inputs:
        """Return what a recipe names.

        Raises:
            ConfigError: Its trajectory cannot be read, or its steps do not increase.
        """
        if recipe.trajectory is None:
            return cls((str(recipe.initial), str(recipe.aligned)))
        points = read_trajectory(recipe.trajectory.file)
        return cls(tuple(p.checkpoint for p in points), tuple(float(p.step) for p in points))

    @property
    def names(self) -> tuple[str, ...]:
        """What each of them is called in records: `initial`, `step 200`, `aligned`."""
        return ("initial", *map(label_of, self.steps[1:-1]), "aligned")

    @property
    def points(self) -> list[TrajectoryPoint]:
        """The checkpoints of a trajectory with their steps."""
        rows = zip(self.steps, self.addresses, strict=True)
        return [TrajectoryPoint(step=step, checkpoint=place) for step, place in rows]

    def open(self) -> dict[str, Checkpoint]:
        """Read the headers of all of them, by their names.

        Raises:
            RequestError: One is missing or malformed, or they do not belong together.
        """
        if self.steps:
            return dict(zip(self.names, open_trajectory(self.points).checkpoints, strict=True))
        initial = open_checkpoint(self.addresses[0])
        return {"initial": initial, "aligned": open_aligned(self.addresses[1], initial)}


def extrapolate_candidates(
    recipe: Recipe, inputs: Inputs, output: str, alphas: Sequence[float], **how: Any
) -> ExtrapolationResult:
    """Write candidates, or plan them, from one read of the inputs.

    Args:
        recipe: The recipe.
        inputs: Where its checkpoints lie.
        output: As for `extrapolate`.
        alphas: One output for each.
        how: Further arguments that `extrapolate` and `extrapolate_trajectory` share.

    Raises:
        RequestError: The recipe was wrong; nothing was written.
        WorkError: The work failed; starting it again continues.
    """
    settings = recipe.extrapolation
    how |= {
        "alpha": alphas,
        "output_dtype": settings.output_dtype,
        "max_shard_size": settings.max_shard_size,
        "extra_tensors": settings.extra_tensors,
    }
    if recipe.trajectory is None:
        initial, aligned = inputs.addresses
        return extrapolate(initial, aligned, output, vocab_policy=settings.vocab_policy, **how)
    fit, weights = recipe.trajectory.fit, recipe.trajectory.weights
    return extrapolate_trajectory(inputs.points, output, fit=fit, weights=weights, **how)
