"""Reading `expo_ray.json`, the record that makes a checkpoint complete."""

from __future__ import annotations

from typing import Any

from expo_ray.checkpoints.header import parse_strict_json
from expo_ray.checkpoints.remote_path import AnyPath, any_path
from expo_ray.checkpoints.storage import RECORD_NAME, WORK_FOLDER
from expo_ray.errors import CheckpointError

_NEEDED = ("alpha", "weights_digest", "initial", "aligned", "options", "files", "tensors")


def read_record(folder: str | AnyPath) -> dict[str, Any]:
    """Return the record of a complete output.

    Raises:
        CheckpointError: There is none, or it is not one of ours.
    """
    path = any_path(folder) / RECORD_NAME
    try:
        data = path.read_bytes()
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        raise CheckpointError(
            "the folder is not a complete output of expo_ray",
            where=folder,
            got=f"no {RECORD_NAME}" if missing else error.strerror,
            hint=_why_no_record(path.parent) if missing else None,
        ) from error
    return parse_record(data, where=str(path))


def _why_no_record(folder: AnyPath) -> str:
    if not folder.exists():
        return "there is no such folder: check the path"
    outputs = sorted(path.parent.name for path in folder.glob(f"alpha-*/{RECORD_NAME}"))
    if outputs:
        return f"it holds one checkpoint per alpha: give one of {', '.join(outputs)}"
    if (folder / WORK_FOLDER).exists():
        return "the extrapolation was interrupted: run it again, it continues"
    return "give a checkpoint that `expo-ray extrapolate` wrote"


def parse_record(data: bytes, *, where: str) -> dict[str, Any]:
    """Return the record from the content of its file.

    Raises:
        CheckpointError: It is not one of ours.
    """
    record = parse_strict_json(data, file=where)
    missing = [key for key in _NEEDED if key not in record]
    if missing or record.get("schema_version") != 1:
        raise CheckpointError(
            "the record has another schema",
            where=where,
            got=f"schema_version {record.get('schema_version')}, without {missing}",
            expected="schema_version 1",
        )
    return record
