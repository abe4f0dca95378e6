"""From the record of an output back to the trajectory it was written along, and its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from expo_ray.checkpoints.opening import open_checkpoint, without_block_scales
from expo_ray.errors import ConfigError, argument
from expo_ray.extrapolation.arithmetic.directions import Direction
from expo_ray.extrapolation.arithmetic.transforms import parse_transforms
from expo_ray.extrapolation.pairing.extra_tensors import parse_extra_tensors
from expo_ray.extrapolation.pairing.onto import add_onto
from expo_ray.extrapolation.planning.path import FittedPath, step_name
from expo_ray.extrapolation.planning.plan import Plan, lay_out
from expo_ray.extrapolation.trajectories.trajectory import open_trajectory
from expo_ray.extrapolation.trajectories.trajectory_file import TrajectorySource, read_trajectory


def recorded_plan(
    record: Mapping[str, Any],
    path: Mapping[str, Any],
    trajectory: TrajectorySource | None,
    *,
    onto: str | Path | None,
) -> Plan:
    """Return the plan of an output that was written along a trajectory.

    Args:
        record: Of the output.
        path: What it says of the trajectory.
        trajectory: Where the checkpoints lie now; None for where the record says.
        onto: Where the base lies now; None for where the record says.

    Raises:
        CheckpointError: An input is missing.
        ConfigError: The trajectory lacks a step that was read.
        PairError: The checkpoints do not belong together.
    """
    options = record["options"]
    points = [{"step": row["step"], "checkpoint": row["uri"]} for row in path["checkpoints"]]
    if trajectory is not None:
        places = {float(p.step): p.checkpoint for p in read_trajectory(trajectory)}
        missing = [row["step"] for row in points if row["step"] not in places]
        if missing:
            raise ConfigError(
                "the trajectory lacks a step that the checkpoint was written from",
                where=argument("trajectory"),
                got=", ".join(map(step_name, places)),
                expected=", ".join(step_name(row["step"]) for row in points),
            )
        points = [{**row, "checkpoint": places[row["step"]]} for row in points]
    dtype, extra = options["output_dtype"], options.get("extra_tensors", ())
    opened = open_trajectory(points, output_dtype=dtype, extra_tensors=extra)
    pair = opened.pair
    if "onto" in record:
        base = without_block_scales(open_checkpoint(onto or record["onto"]["uri"]))
        patterns = parse_extra_tensors(extra)
        pair = add_onto(pair, base, output_dtype=dtype, extra_tensors=patterns)
    return Plan(
        pair=replace(pair, notes=()),
        shards=lay_out(pair.tensors, options["max_shard_bytes"]),
        output_dtype=dtype,
        max_shard_bytes=options["max_shard_bytes"],
        vocab_policy=options["vocab_policy"],
        transforms=parse_transforms(options.get("transforms", ())),
        extra_tensors=tuple(extra),
        path=FittedPath(
            fit=path["fit"],
            steps=tuple(path["steps"]),
            read=opened.steps,
            start=path["from"],
            options=path["options"],
        ),
    )


def recorded_direction(record: Mapping[str, Any]) -> Direction | None:
    """Return what took the place of delta in an output; None where that is the one of a pair."""
    path = record.get("trajectory")
    if path is None:
        return None
    if path["weights"] is not None:
        return Direction(weights=tuple(path["weights"]))
    rows = {
        name: tuple(facts["weights"])
        for name, facts in record["tensors"].items()
        if "weights" in facts
    }
    return Direction(by_tensor=rows) if rows else None
