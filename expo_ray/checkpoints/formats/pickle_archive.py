"""`pytorch_model.bin`: a zip of one pickle and of storages, which lie there as plain bytes.

The pickle says which tensor is which part of which storage; the zip directory says where a storage
lies. With both, a tensor can be read by ranges as from safetensors, and the file is never loaded.
"""

from __future__ import annotations

import hashlib
import io
import math
import struct
import zipfile
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from expo_ray.checkpoints.formats.header import (
    DTYPE_BITS,
    MAX_HEADER_BYTES,
    Header,
    TensorRef,
)
from expo_ray.checkpoints.formats.state_pickle import CONVERT_HINT, StoredTensor, read_state
from expo_ray.checkpoints.names import is_plain_name
from expo_ray.checkpoints.storages.storage import RangeReader
from expo_ray.errors import CheckpointError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_ZIP_MAGIC = b"PK\x03\x04"
_LOCAL_HEADER = struct.Struct("<4s22xHH")
_ENCRYPTED = 0x1
_NUM_THREADS = 8


def read_archive_header(reader: RangeReader, *, where: str) -> Header:
    """Return where the tensors of an archive lie, without reading them.

    Args:
        reader: The open file.
        where: Its path, for messages.

    Returns:
        The tensors by place; `sha256` covers the pickle and the zip directory, checksums included.

    Raises:
        CheckpointError: It is no such archive, or holds something that cannot be read by ranges.
    """
    try:
        stream = io.BufferedReader(_ReaderStream(reader), 64 * 1024)
        if stream.read(4) != _ZIP_MAGIC:
            raise CheckpointError(
                "the file is no zip archive: weights of this old format cannot be read by ranges",
                where=where,
                hint=CONVERT_HINT,
            )
        with zipfile.ZipFile(stream) as archive:
            return _read(archive, reader, where)
    except (zipfile.BadZipFile, EOFError, OSError, ValueError, NotImplementedError) as error:
        raise CheckpointError(
            "the zip archive cannot be read",
            where=where,
            got=str(error)[:200],
            hint="the file is truncated or corrupt: fetch it again",
        ) from error


def _read(archive: zipfile.ZipFile, reader: RangeReader, where: str) -> Header:
    entries = {info.filename: info for info in archive.infolist()}
    if len(entries) != len(archive.infolist()):
        raise CheckpointError("the zip archive lists a file twice", where=where)
    pickles = [name for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        raise CheckpointError(
            "the zip archive is not what torch.save writes",
            where=where,
            got=f"{len(pickles)} files data.pkl",
            expected="one",
        )
    prefix = pickles[0].removesuffix("data.pkl")
    data = _read_small(archive, entries[pickles[0]], where)
    order = entries.get(f"{prefix}byteorder")
    if order is not None and _read_small(archive, order, where).strip() != b"little":
        raise CheckpointError(
            "the archive was written on a big-endian machine", where=where, hint=CONVERT_HINT
        )
    state = read_state(data, where=where)
    places = _Places(entries, prefix, reader, where)
    places.locate_all(tensor.storage_key for tensor in state.values())
    refs = [
        _place(name, tensor, places, where, reader.facts.name) for name, tensor in state.items()
    ]
    refs.sort(key=lambda ref: (ref.offset_bytes, ref.num_bytes, ref.name))
    digest = hashlib.sha256(data)
    for name in sorted(entries):
        info = entries[name]
        digest.update(f"{name} {info.header_offset} {info.file_size} {info.CRC}\n".encode())
    return Header(tensors=tuple(refs), sha256=digest.hexdigest(), data_offset_bytes=0)


class _Places:
    """Where storages start, found once each: tied tensors share one."""

    def __init__(
        self,
        entries: Mapping[str, zipfile.ZipInfo],
        prefix: str,
        reader: RangeReader,
        where: str,
    ) -> None:
        self._entries = entries
        self._prefix = prefix
        self._reader = reader
        self._where = where
        self._found: dict[str, int] = {}

    def locate_all(self, keys: Iterable[str]) -> None:
        """Find the first byte of storages; from a bucket many small reads at a time."""
        wanted = sorted(set(keys))
        with ThreadPoolExecutor(_NUM_THREADS) as pool:
            self._found.update(zip(wanted, pool.map(self._locate, wanted), strict=True))

    def offset_bytes(self, tensor: StoredTensor) -> int:
        """Return the first byte of a tensor's storage in the file."""
        key = tensor.storage_key
        expected = tensor.num_storage_elements * DTYPE_BITS[tensor.dtype] // 8
        size = self._entries[f"{self._prefix}data/{key}"].file_size
        if size != expected:
            raise CheckpointError(
                "the size of a storage does not fit its dtype",
                where=f"{self._where}, data/{key}",
                got=f"{size} bytes",
                expected=f"{expected} bytes",
            )
        return self._found[key]

    def _locate(self, key: str) -> int:
        info = self._entries.get(f"{self._prefix}data/{key}")
        if info is None:
            raise CheckpointError("a storage is missing", where=self._where, got=f"data/{key}")
        where = f"{self._where}, {info.filename}"
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & _ENCRYPTED:
            raise CheckpointError(
                "a storage is compressed or encrypted", where=where, hint=CONVERT_HINT
            )
        raw = bytearray(_LOCAL_HEADER.size)
        self._reader.read_into(info.header_offset, memoryview(raw))
        magic, name_bytes, extra_bytes = _LOCAL_HEADER.unpack(raw)
        start: int = info.header_offset + _LOCAL_HEADER.size + name_bytes + extra_bytes
        if magic != _ZIP_MAGIC or start + info.file_size > self._reader.facts.num_bytes:
            raise CheckpointError(
                "the zip directory points to a place without such a file",
                where=where,
                hint="the file is truncated or corrupt: fetch it again",
            )
        return start


def _place(name: str, tensor: StoredTensor, places: _Places, where: str, file: str) -> TensorRef:
    tensor_where = f"{where}, tensor {name[:200]!r}"
    if not is_plain_name(name):
        raise CheckpointError(
            "a tensor name is empty or has control characters", where=tensor_where, expected="text"
        )
    num_elements = math.prod(tensor.shape)
    if not _is_contiguous(tensor.shape, tensor.stride):
        raise CheckpointError(
            "the tensor is stored as a view with gaps, for example transposed",
            where=tensor_where,
            got=f"shape {list(tensor.shape)}, stride {list(tensor.stride)}",
            expected="contiguous elements",
            hint=CONVERT_HINT,
        )
    if tensor.storage_offset + num_elements > tensor.num_storage_elements:
        raise CheckpointError(
            "the tensor reaches past the end of its storage",
            where=tensor_where,
            got=f"{tensor.num_storage_elements} elements",
            expected=f"at least {tensor.storage_offset + num_elements}",
        )
    item_bytes = DTYPE_BITS[tensor.dtype] // 8
    return TensorRef(
        name=name,
        dtype=tensor.dtype,
        shape=tensor.shape,
        file=file,
        offset_bytes=places.offset_bytes(tensor) + tensor.storage_offset * item_bytes,
        num_bytes=num_elements * item_bytes,
    )


def _is_contiguous(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    if len(shape) != len(stride):
        return False
    expected = 1
    for size, step in zip(reversed(shape), reversed(stride), strict=True):
        if size == 0:
            return True
        if size != 1 and step != expected:
            return False
        expected *= size
    return True


def _read_small(archive: zipfile.ZipFile, info: zipfile.ZipInfo, where: str) -> bytes:
    if info.file_size > MAX_HEADER_BYTES or info.compress_type != zipfile.ZIP_STORED:
        raise CheckpointError(
            "a part of the archive is too long or compressed",
            where=f"{where}, {info.filename}",
            got=f"{info.file_size} bytes",
            expected=f"at most {MAX_HEADER_BYTES} bytes",
        )
    return archive.read(info)


class _ReaderStream(io.RawIOBase):
    """A range reader as the seekable stream that zipfile wants."""

    def __init__(self, reader: RangeReader) -> None:
        self._reader = reader
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position}.get(
            whence, self._reader.facts.num_bytes
        )
        if base + offset < 0:
            raise ValueError("a seek before the start of the file")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        num_bytes = max(0, min(len(view), self._reader.facts.num_bytes - self._position))
        if num_bytes:
            self._reader.read_into(self._position, view[:num_bytes])
            self._position += num_bytes
        return num_bytes
