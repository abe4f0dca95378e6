"""From the record of an output back to the trajectory it was written along, and its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from expo_ray.checkpoints.opening import open_checkpoint, without_block_scales
from expo_ray.checkpoints.storages.storage import RECORD_NAME
from expo_ray.errors import ConfigError, VerifyError, argument
from expo_ray.extrapolation.arithmetic.directions import Direction
from expo_ray.extrapolation.arithmetic.transforms import parse_transforms
from expo_ray.extrapolation.pairing.extra_tensors import parse_extra_tensors
from expo_ray.extrapolation.pairing.onto import add_onto
from expo_ray.extrapolation.planning.path import FITTED, FITTED_ALPHA, FittedPath, step_name
from expo_ray.extrapolation.planning.plan import Plan, lay_out
from expo_ray.extrapolation.trajectories.asked import alpha_of
from expo_ray.extrapolation.trajectories.directions import Fitting, same_for_all
from expo_ray.extrapolation.trajectories.fits import Fit, FitOptions, needs_gram
from expo_ray.extrapolation.trajectories.trajectory import open_trajectory
from expo_ray.extrapolation.trajectories.trajectory_file import TrajectorySource, read_trajectory

_TOLERANCE = 1e-9


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
    copied = frozenset(path.get("copied", ()))
    opened = open_trajectory(points, output_dtype=dtype, extra_tensors=extra, copied=copied)
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
            copied=tuple(path.get("copied", ())),
            start=path["from"],
            options=path["options"],
        ),
    )


def recorded_direction(record: Mapping[str, Any]) -> Direction | None:
    """Return what took the place of delta in an output; None where that is the one of a pair.

    The weights are made again from the fit, its options and the steps, and have to be the recorded
    ones; of a fit by tensor they are those of the record, as `takes_weights_on_trust` says.

    Raises:
        VerifyError: The record's weights, or its alpha, are not those of its fit.
    """
    path = record.get("trajectory")
    if path is None:
        return None
    try:
        fitting = Fitting(
            fit=Fit(path["fit"]),
            options=FitOptions.model_validate(path["options"]),
            steps=tuple(map(float, path["steps"])),
        )
        _check_alpha(record, path, fitting)
        if fitting.needs_gram:
            return _by_tensor(record, path)
        return _same_for_all(path, fitting)
    except (ConfigError, LookupError, TypeError, ValueError) as error:
        raise _not_of_the_fit("fit, options and steps", error, "what a fit can use") from error


def takes_weights_on_trust(record: Mapping[str, Any]) -> bool:
    """Tell whether the weights of a record cannot be made again without its Gram matrices."""
    path = record.get("trajectory")
    return path is not None and needs_gram(path["fit"])


def _same_for_all(path: Mapping[str, Any], fitting: Fitting) -> Direction | None:
    given = tuple(path["weights"] or ())
    if fitting.is_pair(path["from"]):
        if given:
            raise _not_of_the_fit("weights", given, "none: the line through two is a pair")
        return None
    wanted = same_for_all(fitting, path["at_step"] if path["from"] == FITTED else None).weights
    found = dict.fromkeys(fitting.steps, 0.0)
    read = [float(row["step"]) for row in path["checkpoints"]]
    if len(given) != len(read) or not found.keys() >= set(read):
        raise _not_of_the_fit("weights", f"{len(given)} for steps {read}", list(fitting.steps))
    found.update(zip(read, given, strict=True))
    largest = max(map(abs, wanted))
    for step, weight in zip(fitting.steps, wanted, strict=True):
        # Another processor may round the sums of a fit in another order.
        if not abs(found[step] - weight) <= _TOLERANCE * largest:
            raise _not_of_the_fit(f"weight of step {step_name(step)}", found[step], weight)
    return Direction(weights=given)


def _by_tensor(record: Mapping[str, Any], path: Mapping[str, Any]) -> Direction:
    rows = {}
    for name, facts in record["tensors"].items():
        if "weights" not in facts:
            continue
        rows[name] = tuple(map(float, facts["weights"]))
        if len(rows[name]) != len(path["steps"]):
            raise _not_of_the_fit(f"weights of {name}", len(rows[name]), len(path["steps"]))
    return Direction(by_tensor=rows)


def _check_alpha(record: Mapping[str, Any], path: Mapping[str, Any], fitting: Fitting) -> None:
    at_step, alpha = path["at_step"], record["alpha"]
    if path["from"] == FITTED:
        wanted = FITTED_ALPHA
    elif at_step is None:
        return
    else:
        wanted = alpha_of(at_step, fitting.steps)
    if alpha is None or not abs(alpha - wanted) <= _TOLERANCE * max(1.0, abs(wanted)):
        raise _not_of_the_fit("alpha", alpha, wanted)


def _not_of_the_fit(what: str, got: object, expected: object) -> VerifyError:
    return VerifyError(
        "the record of the checkpoint contradicts its own fit",
        where=f"{RECORD_NAME}, trajectory: {what}",
        got=got,
        expected=expected,
        hint=f"do not use it: write it again with extrapolate {argument('overwrite', True)}",
    )
