"""A trajectory's diagnosis on disk, and what it says of steps that are asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from expo_ray.checkpoints.storages.atomic_io import atomic_write_json
from expo_ray.errors import ConfigError, argument
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


def read_diagnosis(path: str | Path, *, checkpoints: Sequence[tuple[float, str]]) -> dict[str, Any]:
    """Return a diagnosis of these very checkpoints.

    Args:
        path: The file, or the folder that it was written into.
        checkpoints: Steps and places of the trajectory that it has to be of.

    Raises:
        ConfigError: It is missing, malformed, or of another trajectory.
    """
    file = Path(path) / DIAGNOSIS_NAME if Path(path).is_dir() else Path(path)
    try:
        found = parse_json(file.read_text(encoding="utf-8"))
        told = [(float(point["step"]), str(point["checkpoint"])) for point in found["checkpoints"]]
        reach = {str(name): float(horizon) for name, horizon in found["verdict"]["reach"].items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ConfigError(
            "the diagnosis of the trajectory cannot be read",
            where=_WHERE,
            got=f"{file}: {(isinstance(error, OSError) and error.strerror) or error}",
            expected=f"{DIAGNOSIS_NAME}, or the folder that holds it",
            hint="`expo-ray diagnose --trajectory FILE --output DIR` writes it",
        ) from error
    if told != [(float(step), place) for step, place in checkpoints]:
        raise ConfigError(
            "the diagnosis is of another trajectory",
            where=_WHERE,
            got=f"{len(told)} checkpoints, steps {step_name(told[0][0])} to "
            f"{step_name(told[-1][0])}",
            expected="the steps and checkpoints of this trajectory",
            hint="diagnose this trajectory: `expo-ray diagnose --trajectory FILE --output DIR`",
        )
    found["verdict"]["reach"] = reach
    return dict(found)


def beyond_horizon(
    diagnosis: Mapping[str, Any], *, fit: str, start: str, horizons: Sequence[float]
) -> list[str]:
    """Return warnings about horizons that a fit was not found to be trusted up to.

    Args:
        diagnosis: As `read_diagnosis` returns it.
        fit: The fit that is used.
        start: `last` or `fitted`.
        horizons: What is asked for: (step - first) / (last - first), or 1 + alpha.

    Example:
        >>> told = {"verdict": {"reach": {"line": 1.5}}}
        >>> beyond_horizon(told, fit="line", start="fitted", horizons=[1.5])
        []
        >>> [text] = beyond_horizon(told, fit="line", start="fitted", horizons=[3])
        >>> text.removeprefix("warning: 3 times the span lies beyond what the back-test supports: ")
        'line beat no change up to 1.5 times'
    """
    name = fit if start == "fitted" else f"{fit} from last"
    reach = diagnosis["verdict"]["reach"].get(name)
    warnings = []
    for horizon in horizons:
        if horizon <= 1 + _TOLERANCE or (reach is not None and horizon <= reach + _TOLERANCE):
            continue
        supported = (
            f"{name} never beat no change on this run"
            if reach is None
            else f"{name} beat no change up to {reach:g} times"
        )
        warnings.append(
            f"warning: {horizon:.3g} times the span lies beyond what the back-test supports: "
            f"{supported}"
        )
    return warnings
