"""What names the checkpoints of one training: a YAML list, or the output folder of a trainer.

    - {step: 0, checkpoint: ./sft}
    - {step: 200, checkpoint: ./rl/checkpoint-200}
    - {step: 500, checkpoint: hf://owner/name@step_500}

Paths are relative to the file. What does not belong here: opening the checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, StrictFloat, StrictInt, ValidationError

from expo_ray.checkpoints.opening import address_from
from expo_ray.checkpoints.storages.hub_storage import is_hub_address
from expo_ray.checkpoints.storages.remote_path import AnyPath, any_path
from expo_ray.errors import ConfigError, argument
from expo_ray.extrapolation.planning.path import step_name as step_name
from expo_ray.yaml_text import parse_yaml

FLAG = argument("trajectory")
_FORM = "a list of {step: NUMBER, checkpoint: PLACE}"
# As the trainers of transformers, TRL and their kin name what they save.
_SAVED = "checkpoint-"


class TrajectoryPoint(BaseModel):
    """One checkpoint of a training."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: StrictInt | StrictFloat = Field(
        description="When it was saved, in steps of the optimizer (or tokens, or epochs): the axis "
        "of the fits."
    )
    checkpoint: str = Field(
        min_length=1,
        description="Where it lies: a folder, relative to the file, s3://, gs://, "
        "hf://owner/name@revision, a bare Hub id, or a LoRA adapter.",
    )


TrajectorySource = str | Path | Sequence[TrajectoryPoint | Mapping[str, Any]]
"""A YAML file, a folder of `checkpoint-*`, or the points themselves."""


def read_trajectory(source: TrajectorySource) -> tuple[TrajectoryPoint, ...]:
    """Return the points of a trajectory, checked: two or more, each step larger than the last.

    Args:
        source: A YAML file, the output folder of a trainer, or the points themselves, whose paths
            are relative to the working directory.

    Raises:
        ConfigError: The source cannot be read, a key is missing or unknown, or the steps are not
            increasing.
    """
    if not isinstance(source, str | Path):
        return _checked(_points(list(source), where=FLAG), where=FLAG)
    where = argument("trajectory", source)
    path = any_path(str(source))
    if path.is_dir():
        return _checked(_saved_points(path, where), where=where)
    try:
        table = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            "the trajectory cannot be read",
            where=where,
            got=(isinstance(error, OSError) and error.strerror) or error,
            expected=f"a YAML file, {_FORM}, or a folder of {_SAVED}*",
        ) from error
    found = _points(table, where=where)
    found = [p.model_copy(update={"checkpoint": _placed(path, p.checkpoint)}) for p in found]
    return _checked(found, where=where)


def _placed(file: AnyPath, place: str) -> str:
    if isinstance(file, Path):
        return address_from(file.resolve().parent, place)
    if ":" in place or is_hub_address(place):
        return place
    return f"{file.parent}/{place.removeprefix('./')}"


def _saved_points(folder: AnyPath, where: str) -> list[TrajectoryPoint]:
    """Return what a trainer saved in a folder, by the numbers in the names."""
    names = {path.name: str(path) for path in folder.glob(f"{_SAVED}*")}
    steps = {name: name.removeprefix(_SAVED) for name in names}
    found = [
        TrajectoryPoint(step=int(step), checkpoint=names[name])
        for name, step in steps.items()
        if step.isascii() and step.isdigit()
    ]
    if not found:
        raise ConfigError(
            "the folder holds no checkpoints of a training",
            where=where,
            expected=f"{_SAVED}100, {_SAVED}200, ... as trainers save them",
            hint=f"where they have other names, or lie on gs://, list them in a YAML file: {_FORM}",
        )
    return sorted(found, key=lambda point: point.step)


def _points(table: object, *, where: str) -> list[TrajectoryPoint]:
    if not isinstance(table, list) or not table:
        raise ConfigError(
            "the trajectory is no list", where=where, got=type(table).__name__, expected=_FORM
        )
    found = []
    for number, entry in enumerate(table, start=1):
        try:
            found.append(TrajectoryPoint.model_validate(entry))
        except ValidationError as error:
            first = error.errors()[0]
            keys = [str(key) for key in first["loc"] if key not in ("int", "float")]
            raise ConfigError(
                "an entry of the trajectory is malformed",
                where=f"{where}: {', '.join([f'entry {number}', *keys])}",
                got=f"{first['input']!r} ({first['msg']})",
                expected=_FORM,
            ) from error
    return found


def _checked(points: Sequence[TrajectoryPoint], *, where: str) -> tuple[TrajectoryPoint, ...]:
    for point in points:
        try:
            is_finite = math.isfinite(point.step)
        except OverflowError:  # a whole number beyond what a float holds
            is_finite = False
        if not is_finite:
            raise ConfigError("a step is not finite", where=where, got=f"{point.step!s:.20}")
    if len(points) < 2:
        raise ConfigError(
            "a trajectory of one checkpoint has no direction",
            where=where,
            got=f"step {step_name(points[0].step)} alone",
            expected="two checkpoints or more",
            hint="add the model that the training started from, as step 0",
        )
    for before, after in pairwise(points):
        if after.step > before.step:
            continue
        is_twice = after.step == before.step
        raise ConfigError(
            "a step stands twice in the trajectory"
            if is_twice
            else "the steps of the trajectory do not increase",
            where=where,
            got=f"step {step_name(after.step)} ({after.checkpoint}) after step "
            f"{step_name(before.step)} ({before.checkpoint})",
            expected="each step larger than the one before",
            hint="list the checkpoints in the order in which they were saved, each once",
        )
    places: dict[str, TrajectoryPoint] = {}
    for point in points:
        first = places.setdefault(point.checkpoint, point)
        if first is not point:
            raise ConfigError(
                "a checkpoint stands twice in the trajectory",
                where=where,
                got=f"{point.checkpoint} as step {step_name(first.step)} and "
                f"step {step_name(point.step)}",
                hint="check the paths: two steps of a training are two checkpoints",
            )
    return tuple(points)
