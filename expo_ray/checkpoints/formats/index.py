"""Which file holds which tensor: the shard index, checked against the headers.

The index is only a claim. Every name in it must be found in the file it names, and every tensor
of those files must be in the index: otherwise a loader would read other weights than we do.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from expo_ray.checkpoints.formats.header import (
    LENGTH_BYTES,
    Header,
    TensorRef,
    parse_header,
    parse_length,
    parse_strict_json,
)
from expo_ray.checkpoints.formats.layouts import (
    INDEX_NAME,
    PICKLE_INDEX_NAME,
    PICKLE_SINGLE_NAME,
    SINGLE_NAME,
    find_layout,
)
from expo_ray.checkpoints.formats.pickle_archive import read_archive_header
from expo_ray.checkpoints.names import is_plain_name
from expo_ray.checkpoints.storages.lfs_pointers import refuse_pointer_file
from expo_ray.checkpoints.storages.storage import MAX_DEPTH, RangeReader, Storage
from expo_ray.errors import CheckpointError

# A header over a network is two or three short answers that are waited for.
NUM_HEADER_READERS = 16


def weight_files(storage: Storage, names: Collection[str]) -> tuple[dict[str, str], list[str]]:
    """Return the claims of the index (empty without one) and the weight files, sorted.

    Args:
        storage: The checkpoint folder.
        names: Its files.

    Raises:
        CheckpointError: No weights that can be read, or an index that cannot be followed.
    """
    # As transformers does: safetensors where both kinds are there.
    for index, single in (
        (INDEX_NAME, SINGLE_NAME),
        (PICKLE_INDEX_NAME, PICKLE_SINGLE_NAME),
    ):
        if index in names:
            return _indexed_files(storage, names, index, single)
        if single in names:
            return {}, [single]
    layout = find_layout(storage.uri, names)
    if layout.index is not None:
        return _indexed_files(storage, names, layout.index, SINGLE_NAME)
    return {}, list(layout.files)


def read_file_headers(storage: Storage, files: Sequence[str]) -> dict[str, Header]:
    """Read and check the headers of several weight files, some at a time.

    Returns:
        The headers in the order of `files`.

    Raises:
        CheckpointError: Of the first file, in their order, that is not well-formed.
    """
    pool = ThreadPoolExecutor(min(NUM_HEADER_READERS, max(1, len(files))))
    try:
        found = pool.map(lambda file: read_file_header(storage, file), files)
        return dict(zip(files, found, strict=True))
    finally:
        pool.shutdown(cancel_futures=True)


def read_file_header(storage: Storage, file: str) -> Header:
    """Read and check the header of one weight file.

    Raises:
        CheckpointError: The file is well-formed neither as safetensors nor as a torch archive.
    """
    where = f"{storage.uri}/{file}"
    with storage.open(file) as reader:
        try:
            refuse_pointer_file(reader, where=where)
            if file.endswith(".bin"):
                return read_archive_header(reader, where=where)
        except (EOFError, OSError) as error:
            raise CheckpointError("the file cannot be read", where=where, got=error) from error
        return parse_file_header(reader, file=file, folder_uri=storage.uri)[1]


def parse_file_header(
    reader: RangeReader, *, file: str, folder_uri: str | None = None
) -> tuple[bytes, Header]:
    """Return the header of an open safetensors file: its bytes, and what they say.

    Raises:
        CheckpointError: The file cannot be read or is not well-formed.
    """
    where = f"{folder_uri}/{file}" if folder_uri else file
    file_bytes = reader.facts.num_bytes
    try:
        prefix = bytearray(min(LENGTH_BYTES, file_bytes))
        reader.read_into(0, memoryview(prefix))
        length = parse_length(bytes(prefix), file=where, file_bytes=file_bytes)
        data = bytearray(LENGTH_BYTES + length)
        reader.read_into(0, memoryview(data))
    except (EOFError, OSError) as error:
        raise CheckpointError("the file cannot be read", where=where, got=error) from error
    raw = bytes(data)
    return raw, parse_header(raw, file=file, file_bytes=file_bytes, folder_uri=folder_uri)


def collect_tensors(
    uri: str, claims: Mapping[str, str], headers: Mapping[str, Header]
) -> dict[str, TensorRef]:
    """Join the headers, and compare them with the index where there is one.

    Returns:
        All tensors by name, sorted.

    Raises:
        CheckpointError: A tensor is in two files, in another file than claimed, or unclaimed.
    """
    found: dict[str, TensorRef] = {}
    for file, header in headers.items():
        for ref in header.tensors:
            if ref.name in found:
                raise CheckpointError(
                    "a tensor is in two files",
                    where=f"{uri}, tensor {ref.name!r}",
                    got=f"{found[ref.name].file} and {file}",
                    expected="one file",
                )
            found[ref.name] = ref
    if claims:
        _compare(uri, claims, found)
    if not found:
        raise CheckpointError("the checkpoint holds no tensors", where=uri)
    return dict(sorted(found.items()))


def _indexed_files(
    storage: Storage, names: Collection[str], index: str, single: str
) -> tuple[dict[str, str], list[str]]:
    claims = _read_claims(storage, index)
    files = sorted(set(claims.values()))
    if single in names and files != [single]:
        raise CheckpointError(
            f"the folder holds an index and {single} besides: which one counts is unclear",
            where=storage.uri,
            expected="one of the two",
            hint="remove the stale one",
        )
    for file in files:
        if file not in names:
            raise CheckpointError(
                "the index names a file that is missing",
                where=f"{storage.uri}/{index}",
                got=file,
                hint="fetch it, too"
                + ("; folders that are links are not followed" if "/" in file else ""),
            )
    return claims, files


def build_index(files: Mapping[str, str], *, total_bytes: int, num_parameters: int) -> bytes:
    """Return the index for `tensor name -> file`, as transformers writes it."""
    table = {
        "metadata": {"total_parameters": num_parameters, "total_size": total_bytes},
        "weight_map": dict(sorted(files.items())),
    }
    return (json.dumps(table, indent=2, ensure_ascii=False) + "\n").encode("utf-8")


def _read_claims(storage: Storage, index: str) -> dict[str, str]:
    where = f"{storage.uri}/{index}"
    suffix = "bin" if ".bin." in index else "safetensors"
    table = parse_strict_json(storage.read_bytes(index), file=where)
    claims = table.get("weight_map")
    if not isinstance(claims, dict) or not claims:
        raise CheckpointError(
            "the index has no weight_map", where=where, expected="tensor name -> file name"
        )
    plain: set[str] = set()
    for name, file in claims.items():
        if not isinstance(file, str):
            raise CheckpointError(
                "the index names a file that is no string", where=f"{where}, tensor {name!r}"
            )
        fault = None if file in plain else _fault_of(file, suffix)
        if fault is not None:
            raise CheckpointError(
                f"the index {fault}",
                where=f"{where}, tensor {name!r}",
                got=file if is_plain_name(file) else ascii(file),
                expected=f"the name of a .{suffix} file in the folder or in one below it",
            )
        plain.add(file)
    return claims


def _fault_of(file: str, suffix: str) -> str | None:
    """Return what is wrong with a path in an index, None for one below the folder."""
    parts = file.split("/")
    if not is_plain_name(file):
        return "names a file by no name, or by one with control characters"
    if ".." in parts or file.startswith("/") or any(c in file for c in "\\:"):
        return "points outside the checkpoint folder"
    if any(not part or part.startswith(".") for part in parts):
        return "names a hidden file, or one by a path that is not plain"
    if len(parts) > MAX_DEPTH + 1:
        return f"names a file more than {MAX_DEPTH} folders deep"
    return None if file.endswith(f".{suffix}") else f"names a file that is no .{suffix} file"


def _compare(uri: str, claims: Mapping[str, str], found: Mapping[str, TensorRef]) -> None:
    for name, file in claims.items():
        if name not in found or found[name].file != file:
            got = found[name].file if name in found else "in none of the files"
            raise CheckpointError(
                "the index lists a tensor in a file that does not hold it",
                where=f"{uri}, tensor {name!r}",
                got=got,
                expected=file,
            )
    for name, ref in found.items():
        if name not in claims:
            raise CheckpointError(
                "a file holds a tensor that the index does not list",
                where=f"{uri}/{ref.file}, tensor {name!r}",
                expected="every tensor in the index",
            )
