"""Reading `expo_ray.json`, the record that makes a checkpoint complete, and sealing it.

Its last field is the digest of its own text, with zeros in the place of the hex: so a flipped bit
shows in the record too. Records of schema 1, whose digests are SHA-256, are read as well. The facts
of all tensors, one a line, pass by one after the other: of a model with 90,000 tensors they take
60 MB as text and several times that as objects.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from expo_ray.checkpoints.digests import ALGORITHM, SHA256, ContentDigest, digest_of
from expo_ray.checkpoints.formats.header import parse_strict_json
from expo_ray.checkpoints.storages.remote_path import AnyPath, any_path
from expo_ray.checkpoints.storages.storage import RECORD_NAME, WORK_FOLDER
from expo_ray.errors import CheckpointError

SCHEMA_VERSION = 2
_ALGORITHMS = {1: SHA256, SCHEMA_VERSION: ALGORITHM}
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
    seal, prefix = _seal(record)
    others = {key: value for key, value in record.items() if key not in (_TENSORS, seal)}
    digest = ContentDigest(digest_algorithm(record))
    separator = _json(others, indent=2).removesuffix("\n}") + f',\n  "{_TENSORS}": {{'
    for name, facts in tensors:
        part = f"{separator}\n    {_json(name)}: {_json(facts)}".encode()
        digest.update(part)
        yield part
        separator = ","
    head = f'{"" if separator == "," else separator}\n  }},\n  "{seal}": "{prefix}'.encode()
    tail = b'"\n}\n'
    digest.update(head + _BLANK.encode() + tail)
    yield head + _hex(digest.written()) + tail


def _json(value: object, indent: int | None = None) -> str:
    return json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)


def is_as_sealed(data: bytes, record: Mapping[str, Any]) -> bool:
    """Tell whether the content of a record file is what was written.

    Args:
        data: The content.
        record: What it says.
    """
    value = _hex(str(record.get(_seal(record)[0])))
    head, _, tail = data.rpartition(value or b"none")
    return value == _hex(digest_of(head + _BLANK.encode() + tail, digest_algorithm(record)))


def digest_algorithm(record: Mapping[str, Any]) -> str:
    """Return the algorithm of all digests of a record."""
    return _ALGORITHMS.get(_schema(record) or SCHEMA_VERSION, ALGORITHM)


def _schema(record: Mapping[str, Any]) -> int | None:
    version = record.get("schema_version")
    return version if type(version) is int and version in _ALGORITHMS else None


def _seal(record: Mapping[str, Any]) -> tuple[str, str]:
    """Return the name of the last field, and what stands there before the hex."""
    algorithm = digest_algorithm(record)
    return ("record_sha256", "") if algorithm == SHA256 else ("record_digest", f"{algorithm}:")


def _hex(digest: str) -> bytes:
    return digest.rpartition(":")[2].encode()


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
        if isinstance(path, Path) and path.exists() and not path.is_file():
            raise OSError(errno.EINVAL, "it is no regular file")  # a pipe is waited for for ever
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
    """Return the names of the complete outputs of a run over several alphas, or steps."""
    names = ("alpha-*", "step-*")
    return sorted(p.parent.name for name in names for p in folder.glob(f"{name}/{RECORD_NAME}"))


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
    if missing or _schema(record) is None:
        raise CheckpointError(
            "the record has another schema",
            where=where,
            got=f"schema_version {record.get('schema_version')}, without {missing}",
            expected=f"schema_version {' or '.join(map(str, _ALGORITHMS))}",
        )
    return _with_named_digests(record) if digest_algorithm(record) == SHA256 else record


def _with_named_digests(record: dict[str, Any]) -> dict[str, Any]:
    """Return a record of schema 1 with its digests as they are written since."""

    def named(facts: Mapping[str, Any]) -> dict[str, Any]:
        others = {key: value for key, value in facts.items() if key != SHA256}
        return {**others, "digest": f"{SHA256}:{facts.get(SHA256)}"}

    return {
        **record,
        "weights_digest": f"{SHA256}:{record['weights_digest']}",
        "files": [named(entry) for entry in record["files"]],
        "tensors": {name: named(facts) for name, facts in record["tensors"].items()},
    }
