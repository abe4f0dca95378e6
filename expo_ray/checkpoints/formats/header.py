"""The safetensors header: a strict reader and a deterministic writer.

Whatever bytes a file holds, `parse_header` returns checked tensors or raises `CheckpointError`.
The format: 8 bytes little-endian length N, N bytes of JSON, then the tensors without gaps.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from expo_ray.checkpoints.names import is_plain_name
from expo_ray.errors import CheckpointError
from expo_ray.json_text import parse_json

MAX_HEADER_BYTES = 100_000_000
MAX_DIMENSIONS = 32
LENGTH_BYTES = 8

DTYPE_BITS = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "U16": 16,
    "I16": 16,
    "U32": 32,
    "I32": 32,
    "U64": 64,
    "I64": 64,
    "F16": 16,
    "BF16": 16,
    "F32": 32,
    "F64": 64,
    "C64": 64,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "F8_E4M3": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2": 8,
    "F8_E5M2FNUZ": 8,
    "F8_E8M0": 8,
}
FLOAT_DTYPES = frozenset({"F16", "BF16", "F32", "F64"})
INTEGER_DTYPES = frozenset({"BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64"})
LOW_PRECISION_DTYPES = frozenset(
    name for name in DTYPE_BITS if name.startswith(("F4", "F6_", "F8_"))
)


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorRef:
    """Where one tensor lies."""

    name: str
    dtype: str
    """As safetensors writes it: BF16, F32, I64, ..."""
    shape: tuple[int, ...]
    file: str
    """Name of the file inside the checkpoint folder."""
    offset_bytes: int
    """First byte, counted from the start of the file."""
    num_bytes: int
    stored_dtype: str | None = None
    """What lies in the file, where the elements are computed while they are read."""

    @property
    def num_elements(self) -> int:
        """Product of the shape; 1 for a scalar."""
        return math.prod(self.shape)

    def input_bytes(self, num_elements: int) -> int:
        """Return the bytes that are read from the file for so many elements."""
        return tensor_bytes(self.stored_dtype or self.dtype, (num_elements,))


@dataclass(frozen=True, kw_only=True, slots=True)
class Header:
    """One parsed header."""

    tensors: tuple[TensorRef, ...]
    """In the order of their bytes."""
    sha256: str
    """Of the length field and the JSON together."""
    data_offset_bytes: int


def parse_length(prefix: bytes, *, file: str, file_bytes: int) -> int:
    """Return the length of the JSON part from the first eight bytes of a file.

    Raises:
        CheckpointError: The file is too short or the length cannot be true.
    """
    if len(prefix) < LENGTH_BYTES:
        raise CheckpointError(
            "the file is too short to be a safetensors file",
            where=file,
            got=f"{file_bytes} bytes",
            expected=f"at least {LENGTH_BYTES} bytes",
        )
    (length,) = struct.unpack("<Q", prefix[:LENGTH_BYTES])
    if length > MAX_HEADER_BYTES:
        raise CheckpointError(
            "the safetensors header is too long",
            where=file,
            got=f"{length} bytes",
            expected=f"at most {MAX_HEADER_BYTES} bytes",
            hint="the file is corrupt or is not a safetensors file",
        )
    if LENGTH_BYTES + length > file_bytes:
        raise CheckpointError(
            "the safetensors header reaches past the end of the file",
            where=file,
            got=f"{file_bytes} bytes",
            expected=f"at least {LENGTH_BYTES + length} bytes",
            hint="the file is truncated: fetch it again",
        )
    return int(length)


def parse_header(
    data: bytes, *, file: str, file_bytes: int, folder_uri: str | None = None
) -> Header:
    """Check a whole header against the format and the size of its file.

    Args:
        data: The length field and the JSON.
        file: Name of the file, for the references.
        file_bytes: Size of the whole file.
        folder_uri: Where the file lies, for messages.

    Returns:
        The tensors, in the order of their bytes.

    Raises:
        CheckpointError: Anything is not as the format demands.
    """
    where = f"{folder_uri}/{file}" if folder_uri else file
    length = parse_length(data[:LENGTH_BYTES], file=where, file_bytes=file_bytes)
    table = _parse_json(data[LENGTH_BYTES : LENGTH_BYTES + length], where)
    _check_metadata(table.pop("__metadata__", {}), where)
    base = LENGTH_BYTES + length
    tensors = [_parse_entry(name, entry, file, where, base) for name, entry in table.items()]
    # A tensor without elements shares its offset with the next one: shorter ranges go first.
    tensors.sort(key=lambda ref: (ref.offset_bytes, ref.num_bytes, ref.name))
    _check_ranges(tensors, where, base, file_bytes)
    digest = hashlib.sha256(data[:base]).hexdigest()
    return Header(tensors=tuple(tensors), sha256=digest, data_offset_bytes=base)


def build_header(entries: Sequence[tuple[str, str, tuple[int, ...]]]) -> bytes:
    """Return the header of a file that holds `(name, dtype, shape)` in this order, without gaps.

    The same entries give the same bytes; the JSON is padded so that the data starts at a multiple
    of eight.
    """
    table: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, dtype, shape in entries:
        end = position + tensor_bytes(dtype, shape)
        table[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def tensor_bytes(dtype: str, shape: Iterable[int]) -> int:
    """Return the number of bytes of a tensor; sub-byte dtypes round up."""
    return (math.prod(shape) * DTYPE_BITS[dtype] + 7) // 8


def parse_strict_json(data: bytes, *, file: str) -> dict[str, object]:
    """Parse a JSON object without repeated keys.

    Raises:
        CheckpointError: The bytes are not such an object.
    """
    return _parse_object(data, file, object_pairs_hook=_unique, parse_constant=_refuse_constant)


def parse_config(data: bytes, *, file: str) -> dict[str, Any]:
    """Parse a JSON object as transformers and PEFT read theirs.

    They write NaN and Infinity too (`time_step_limit` of Mamba 2), and the last of two equal keys
    counts.

    Raises:
        CheckpointError: The bytes are not such an object.
    """
    return _parse_object(data, file)


def _parse_object(data: bytes, file: str, **options: Any) -> dict[str, Any]:
    try:
        table = parse_json(data.decode("utf-8"), **options)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            "the file holds no valid JSON", where=file, got=str(error)[:200], expected="JSON"
        ) from error
    if not isinstance(table, dict):
        raise CheckpointError(
            "the JSON is not an object", where=file, got=type(table).__name__, expected="object"
        )
    return table


def _parse_json(data: bytes, file: str) -> dict[str, object]:
    if not data.startswith(b"{"):
        raise CheckpointError(
            "the safetensors header does not start with '{'", where=file, got=repr(data[:8])
        )
    return parse_strict_json(data, file=f"{file}, header")


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    table = dict(pairs)
    if len(table) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise ValueError(f"key {name[:100]!r} appears twice")
            seen.add(name)
    return table


def _refuse_constant(text: str) -> object:
    raise ValueError(f"{text} is not JSON")


def _check_metadata(metadata: object, file: str) -> None:
    fine = isinstance(metadata, dict) and all(isinstance(v, str) for v in metadata.values())
    if not fine:
        raise CheckpointError(
            "__metadata__ in the safetensors header is not a map of strings", where=file
        )


def _parse_entry(name: str, entry: object, file: str, path: str, base: int) -> TensorRef:
    where = f"{path}, tensor {name[:200]!r}"
    if not is_plain_name(name):
        raise CheckpointError(
            "a tensor name is empty or has control characters", where=where, expected="text"
        )
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(
            "a tensor's entry is malformed",
            where=where,
            got=str(entry)[:200],
            expected="dtype, shape and data_offsets",
        )
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise CheckpointError(
            "unknown dtype", where=where, got=str(dtype)[:100], expected=", ".join(DTYPE_BITS)
        )
    if not _are_sizes(shape) or len(shape) > MAX_DIMENSIONS:
        raise CheckpointError("the shape is not a list of sizes", where=where, got=str(shape)[:200])
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CheckpointError(
            "data_offsets is not an ordered pair", where=where, got=str(offsets)[:200]
        )
    expected, got = tensor_bytes(dtype, shape), offsets[1] - offsets[0]
    if got != expected:
        raise CheckpointError(
            "the byte range does not fit dtype and shape",
            where=where,
            got=f"{got} bytes",
            expected=f"{expected} bytes for {dtype} {shape}"[:200],
        )
    return TensorRef(
        name=sys.intern(name),  # the sides of a pair share it
        dtype=sys.intern(dtype),
        shape=tuple(shape),
        file=file,
        offset_bytes=base + offsets[0],
        num_bytes=got,
    )


def _are_sizes(values: object) -> bool:
    # bool is an int in Python, and 2**63 is more than any file: both are corrupt here.
    return isinstance(values, list) and all(
        type(value) is int and 0 <= value < 2**63 for value in values
    )


def _check_ranges(tensors: list[TensorRef], file: str, base: int, file_bytes: int) -> None:
    position = base
    for ref in tensors:
        where = f"{file}, tensor {ref.name[:200]!r}"
        if ref.offset_bytes + ref.num_bytes > file_bytes:
            raise CheckpointError(
                "the tensor reaches past the end of the file",
                where=where,
                got=f"{file_bytes} bytes in the file",
                expected=f"at least {ref.offset_bytes + ref.num_bytes} bytes",
                hint="the file is truncated: fetch it again",
            )
        if ref.offset_bytes != position:
            relation = "overlaps the one before" if ref.offset_bytes < position else "leaves a gap"
            raise CheckpointError(
                f"the byte range of a tensor {relation}",
                where=where,
                got=f"starts at {ref.offset_bytes - base}",
                expected=f"starts at {position - base}",
            )
        position += ref.num_bytes
    if position != file_bytes:
        raise CheckpointError(
            "bytes after the last tensor belong to none",
            where=file,
            got=f"{file_bytes} bytes in the file",
            expected=f"{position} bytes",
        )
