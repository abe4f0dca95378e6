"""Reading `expo_ray.json`, the record that makes a checkpoint complete, and sealing it.

Its last field is the sha256 of its own text, with zeros in the place of that field: so a flipped
bit shows in the record too. The facts of all tensors, one a line, pass by one after the other: of
a model with 90,000 tensors they take 60 MB as text and several times that as objects.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from expo_ray.checkpoints.header import parse_strict_json
from expo_ray.checkpoints.remote_path import AnyPath, any_path
from expo_ray.checkpoints.storage import RECORD_NAME, WORK_FOLDER
from expo_ray.errors import CheckpointError

_SEAL = "record_sha256"
_TENSORS = "tensors"
_BLANK = "0" * 64
_NEEDED = ("alpha", "weights_digest", "initial", "aligned", "options", "files", "tensors")


def sealed(record: Mapping[str, Any]) -> bytes:
    """Return the content of the file that holds a record.

    Raises:
        ValueError: A number is not finite, which JSON has no word for.
    """
    return b"".join(sealed_parts(record, record["tensors"].items()))


def sealed_parts(
    record: Mapping[str, Any], tensors: Iterable[tuple[str, Mapping[str, Any]]]
) -> Iterator[bytes]:
    """Yield the content of the file that holds a record, in parts.

    Args:
        record: All but the tensors.
        tensors: Name and facts of each.

    Raises:
        ValueError: A number is not finite, which JSON has no word for.
    """
    others = {key: value for key, value in record.items() if key not in (_TENSORS, _SEAL)}
    digest = hashlib.sha256()
    separator = _json(others, indent=2).removesuffix("\n}") + f',\n  "{_TENSORS}": {{'
    for name, facts in tensors:
        part = f"{separator}\n    {_json(name)}: {_json(facts)}".encode()
        digest.update(part)
        yield part
        separator = ","
    head = f'{"" if separator == "," else separator}\n  }},\n  "{_SEAL}": "'.encode()
    tail = b'"\n}\n'
    digest.update(head + _BLANK.encode() + tail)
    yield head + digest.hexdigest().encode() + tail


def _json(value: object, indent: int | None = None) -> str:
    return json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)


def is_as_sealed(data: bytes, record: Mapping[str, Any]) -> bool:
    """Tell whether the content of a record file is what was written.

    Args:
        data: The content.
        record: What it says.
    """
    seal = str(record.get(_SEAL)).encode()
    head, _, tail = data.rpartition(seal or b"none")
    return seal == _seal_of(head, tail)


def _seal_of(head: bytes, tail: bytes) -> bytes:
    return hashlib.sha256(head + _BLANK.encode() + tail).hexdigest().encode()


def read_record(folder: str | AnyPath) -> dict[str, Any]:
    """Return the record of a complete output.

    Raises:
        CheckpointError: There is none, or it is not one of ours.
    """
    return parse_record(read_record_bytes(folder), where=str(any_path(folder) / RECORD_NAME))


def read_record_bytes(folder: str | AnyPath) -> bytes:
    """Return the content of the record of a complete output.

    Raises:
        CheckpointError: There is none.
    """
    path = any_path(folder) / RECORD_NAME
    try:
        return path.read_bytes()
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        raise CheckpointError(
            "the folder is not a complete output of expo_ray",
            where=folder,
            got=f"no {RECORD_NAME}" if missing else error.strerror,
            hint=_why_no_record(path.parent) if missing else None,
        ) from error


def outputs_by_alpha(folder: AnyPath) -> list[str]:
    """Return the names of the complete outputs of a run over several alphas."""
    return sorted(path.parent.name for path in folder.glob(f"alpha-*/{RECORD_NAME}"))


def _why_no_record(folder: AnyPath) -> str:
    if not folder.exists():
        return "there is no such folder: check the path"
    if outputs := outputs_by_alpha(folder):
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
