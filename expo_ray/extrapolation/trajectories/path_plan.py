"""From a fit through a trajectory to the plan of what is computed along it."""

from __future__ import annotations

from dataclasses import replace

from expo_ray.errors import first_names
from expo_ray.extrapolation.arithmetic.directions import Direction
from expo_ray.extrapolation.pairing.tensor_pair import Pair
from expo_ray.extrapolation.planning.path import FITTED, FittedPath, step_name
from expo_ray.extrapolation.planning.plan import Plan, lay_out
from expo_ray.extrapolation.trajectories.asked import Asked
from expo_ray.extrapolation.trajectories.directions import (
    Fitting,
    narrowed,
    narrowed_direction,
    same_for_all,
    used,
)


def known_directions(fitting: Fitting, asked: Asked) -> dict[float | None, Direction]:
    """Return what is known before the weights are read, by the step of fitted models."""
    if fitting.needs_gram or fitting.is_pair(asked.start):
        return {}
    keys = asked.at_steps if asked.start == FITTED else (None,)
    return {key: same_for_all(fitting, key) for key in keys}


def plan_path(
    pair: Pair,
    fitting: Fitting,
    asked: Asked,
    directions: dict[float | None, Direction],
    copied: tuple[str, ...],
    max_shard_bytes: int,
) -> Plan:
    """Return the plan; `directions` lose the weights of checkpoints that are not read."""
    steps = fitting.steps
    kept = used(list(directions.values()), len(steps))
    unread = [step_name(step) for i, step in enumerate(steps) if i not in kept]
    notes = (*pair.notes, *asked.notes)
    if unread:
        notes += (f"not read, as their weight is 0: the checkpoints of step {first_names(unread)}",)
    for key, direction in directions.items():
        directions[key] = narrowed_direction(direction, kept)
    pair = replace(narrowed(pair, kept), notes=notes)
    return Plan(
        pair=pair,
        shards=lay_out(pair.tensors, max_shard_bytes),
        output_dtype="auto",
        max_shard_bytes=max_shard_bytes,
        vocab_policy="refuse",
        path=FittedPath(
            fit=fitting.fit.value,
            steps=steps,
            read=tuple(steps[i] for i in kept),
            start=asked.start,
            options=fitting.options.model_dump(mode="json", exclude_defaults=True),
            copied=copied,
            has_gram_pass=fitting.needs_gram,
        ),
    )
