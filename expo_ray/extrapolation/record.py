"""Reading `expo_ray.json`, the record that makes a checkpoint complete."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from expo_ray.checkpoints.header import parse_strict_json
from expo_ray.checkpoints.storage import RECORD_NAME
from expo_ray.errors import CheckpointError

_NEEDED = ("alpha", "weights_digest", "initial", "aligned", "options", "files", "tensors")


def read_record(folder: str | Path) -> dict[str, Any]:
    """Return the record of a complete output.

    Raises:
        CheckpointError: There is none, or it is not one of ours.
    """
    path = Path(folder) / RECORD_NAME
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(
            "the folder is not a complete output of expo_ray",
            where=folder,
            got=f"no {RECORD_NAME}" if isinstance(error, FileNotFoundError) else error.strerror,
            hint="an interrupted extrapolation continues when it is run again",
        ) from error
    record = parse_strict_json(data, file=str(path))
    missing = [key for key in _NEEDED if key not in record]
    if missing or record.get("schema_version") != 1:
        raise CheckpointError(
            "the record has another schema",
            where=path,
            got=f"schema_version {record.get('schema_version')}, without {missing}",
            expected="schema_version 1",
        )
    return record
