"""A trajectory's diagnosis on disk, and what it says of steps that are asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from expo_ray.checkpoints.checkpoint import Checkpoint
from expo_ray.checkpoints.digests import digest_of
from expo_ray.checkpoints.storages.atomic_io import atomic_write_json
from expo_ray.errors import ConfigError, argument, first_names
from expo_ray.extrapolation.trajectories.trajectory_file import step_name
from expo_ray.json_text import parse_json

DIAGNOSIS_NAME = "trajectory_diagnosis.json"
_WHERE = argument("diagnosis")
# Steps are decimals that went through JSON and a product.
_TOLERANCE = 1e-9


def write_diagnosis(folder: Path, found: Mapping[str, Any]) -> Path:
    """Write a diagnosis into a folder, made where it is missing; return the file."""
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write_json(folder / DIAGNOSIS_NAME, dict(found))
    return folder / DIAGNOSIS_NAME


def identity_of(checkpoint: Checkpoint) -> str:
    """Return a digest that tells this version of a checkpoint's weights from another."""
    return digest_of(json.dumps(checkpoint.identity()).encode())


def read_diagnosis(
    path: str | Path, *, checkpoints: Sequence[tuple[float, str, str]]
) -> dict[str, Any]:
    """Return a diagnosis of these very checkpoints.

    Args:
        path: The file, or the folder that it was written into.
        checkpoints: Of the trajectory that it has to be of: steps, places and identities.

    Raises:
        ConfigError: It is missing, malformed, or of another trajectory.
    """
    file = Path(path) / DIAGNOSIS_NAME if Path(path).is_dir() else Path(path)
    try:
        found = parse_json(file.read_text(encoding="utf-8"))
        told = [
            (float(point["step"]), str(point["checkpoint"]), str(point["identity"]))
            for point in found["checkpoints"]
        ]
        reach = {str(name): float(horizon) for name, horizon in found["verdict"]["reach"].items()}
        tested = {str(score["forecast"]) for score in found["scores"]}
        if not told:
            raise ValueError("it is of no checkpoints")
    except (OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        why = (isinstance(error, OSError) and error.strerror) or error
        raise _malformed(file, why) from error
    if [point[:2] for point in told] != [(float(step), place) for step, place, _ in checkpoints]:
        raise ConfigError(
            "the diagnosis is of another trajectory",
            where=_WHERE,
            got=f"{len(told)} checkpoints, steps {step_name(told[0][0])} to "
            f"{step_name(told[-1][0])}",
            expected="the steps and checkpoints of this trajectory",
            hint="diagnose this trajectory: `expo-ray diagnose --trajectory FILE --output DIR`",
        )
    changed = [
        step_name(before[0])
        for before, now in zip(told, checkpoints, strict=True)
        if before[2] != now[2]
    ]
    if changed:
        raise ConfigError(
            "the diagnosis is of other weights in the same places",
            where=_WHERE,
            got=f"other checkpoints of step {first_names(changed)}",
            expected="checkpoints as they were when they were diagnosed",
            hint="diagnose this trajectory anew: `expo-ray diagnose --trajectory FILE "
            "--output DIR`",
        )
    if not reach.keys() <= tested:
        raise _malformed(file, f"verdict on {sorted(reach.keys() - tested)} without a score")
    found["verdict"]["reach"] = reach
    return dict(found)


def _malformed(file: Path, why: object) -> ConfigError:
    return ConfigError(
        "the diagnosis of the trajectory cannot be read",
        where=_WHERE,
        got=f"{file}: {why}",
        expected=f"{DIAGNOSIS_NAME}, or the folder that holds it",
        hint="`expo-ray diagnose --trajectory FILE --output DIR` writes it",
    )


def beyond_horizon(
    diagnosis: Mapping[str, Any],
    *,
    fit: str,
    start: str,
    horizons: Sequence[float],
    changed_by: str = "",
) -> list[str]:
    """Return warnings about horizons that a fit was not found to be trusted up to.

    Args:
        diagnosis: As `read_diagnosis` returns it.
        fit: The fit that is used.
        start: `last` or `fitted`.
        horizons: What is asked for: (step - first) / (last - first), or 1 + alpha.
        changed_by: What makes of the fit something else than the back-test knew, such as
            "with transforms".

    Example:
        >>> told = {"verdict": {"reach": {"line": 1.5}}, "scores": [{"forecast": "line"}]}
        >>> beyond_horizon(told, fit="line", start="fitted", horizons=[1.5])
        []
        >>> [text] = beyond_horizon(told, fit="line", start="fitted", horizons=[3])
        >>> text.removeprefix("warning: 3 times the span lies beyond what the back-test supports: ")
        'line beat no change up to 1.5 times'
    """
    name = fit if start == "fitted" else f"{fit} from last"
    reach = diagnosis["verdict"]["reach"].get(name)
    if changed_by or name not in {score["forecast"] for score in diagnosis["scores"]}:
        why = f"{name} was not tested {changed_by}".rstrip()
        reach = None
    elif diagnosis["verdict"].get("decision") == "unknown":
        why = "nothing could be tested on this run"
    elif reach is None:
        why = f"{name} never beat no change on this run"
    else:
        why = f"{name} beat no change up to {reach:g} times"
    return [
        f"warning: {horizon:.3g} times the span lies beyond what the back-test supports: {why}"
        for horizon in horizons
        if horizon > 1 + _TOLERANCE and (reach is None or horizon > reach + _TOLERANCE)
    ]
