"""What an output holds as it lies there, against its record; the inputs are not looked at."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, BinaryIO

from expo_ray.checkpoints.checkpoint import Checkpoint
from expo_ray.checkpoints.digests import BUFFER_BYTES
from expo_ray.checkpoints.remote_path import AnyPath
from expo_ray.errors import CheckpointError
from expo_ray.extrapolation.tasks import Problem, ShardReceipt, pack_tensors
from expo_ray.extrapolation.work_folder import names_found_by_loaders
from expo_ray.progress import Progress


def check_files(folder: AnyPath, record: dict[str, Any]) -> list[Problem]:
    """Sizes of all files; contents of those that are no weights; files nobody recorded."""
    problems = []
    for entry in record["files"]:
        path = folder / entry["name"]
        if not path.is_file():
            problems.append(file_problem(entry["name"], "the file is missing", "none", "the file"))
        elif path.stat().st_size != entry["bytes"]:
            size = f"{path.stat().st_size} bytes"
            problems.append(
                file_problem(entry["name"], "the size differs", size, f"{entry['bytes']} bytes")
            )
        elif entry["kind"] != "weights":
            found = hashlib.sha256(path.read_bytes()).hexdigest()
            if found != entry["sha256"]:
                problems.append(
                    file_problem(entry["name"], "the content differs", found, entry["sha256"])
                )
    recorded = {entry["name"] for entry in record["files"]}
    for pattern in ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin"):
        names = sorted(path.name for path in folder.glob(pattern))
        problems += [
            file_problem(name, "weights that nobody recorded", "a file", "none")
            for name in names
            if name not in recorded
        ]
    problems += [
        file_problem(name, "a file that nobody recorded, which loaders take", "a file", "none")
        for name in names_found_by_loaders(folder)
        if name not in recorded
    ]
    return problems


def check_structure(folder: AnyPath, record: dict[str, Any]) -> list[Problem]:
    """What a loader would find: headers and index against the record."""
    try:
        checkpoint = Checkpoint.open(str(folder))
    except CheckpointError as error:
        where = error.where or str(folder)
        loaded, wanted = error.got or "nothing to load", error.expected or "a whole checkpoint"
        return [file_problem(where, error.message, str(loaded), str(wanted))]
    found = {ref.name: [ref.dtype, list(ref.shape)] for ref in checkpoint.tensors.values()}
    expected = {name: [row["dtype"], row["shape"]] for name, row in record["tensors"].items()}
    return [
        Problem(
            file=checkpoint.tensors[name].file if name in found else "none",
            tensor=name,
            message="the header differs from the record",
            got=str(found.get(name)),
            expected=str(expected.get(name)),
        )
        for name in sorted(found.keys() | expected.keys())
        if found.get(name) != expected.get(name)
    ]


def hash_files(
    folder: AnyPath, record: dict[str, Any], present: Sequence[dict[str, Any]], progress: Progress
) -> list[ShardReceipt]:
    """Hash files and tensors as they lie there, without the inputs."""
    try:
        refs = list(Checkpoint.open(str(folder)).tensors.values())
    except CheckpointError:
        refs = []  # reported before; the file digests still tell which file it is
    receipts = []
    bar = progress.start("Hashing weights", sum(entry["bytes"] for entry in present), "B")
    for entry in present:
        with (folder / entry["name"]).open("rb") as file:
            facts = {
                ref.name: {
                    "dtype": ref.dtype,
                    "shape": list(ref.shape),
                    "sha256": _hash_range(file, ref.offset_bytes, ref.num_bytes),
                }
                for ref in refs
                if ref.file == entry["name"]
            }
            receipts.append(
                ShardReceipt(
                    name=entry["name"],
                    plan_digest="",
                    num_bytes=entry["bytes"],
                    sha256=_hash_range(file, 0, entry["bytes"]),
                    packed_tensors=pack_tensors(facts),
                )
            )
        bar.advance(entry["bytes"])
    bar.close()
    return receipts


def file_problem(file: str, message: str, got: str, expected: str) -> Problem:
    """Return a problem that concerns a whole file."""
    return Problem(file=file, tensor=None, message=message, got=got, expected=expected)


def _hash_range(file: BinaryIO, offset_bytes: int, num_bytes: int) -> str:
    """Return the sha256 of a range; of what is there, where the file is shorter."""
    digest = hashlib.sha256()
    file.seek(offset_bytes)
    while num_bytes and (data := file.read(min(num_bytes, BUFFER_BYTES))):
        digest.update(data)
        num_bytes -= len(data)
    return digest.hexdigest()
