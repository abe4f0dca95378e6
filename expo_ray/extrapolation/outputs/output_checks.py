"""What an output holds as it lies there, against its record; the inputs are not looked at."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from typing import Any

from expo_ray.checkpoints.digests import BUFFER_BYTES, digest_of, hash_weight_file
from expo_ray.checkpoints.opening import open_checkpoint, open_storage
from expo_ray.checkpoints.storages.remote_path import AnyPath
from expo_ray.errors import CheckpointError
from expo_ray.extrapolation.outputs.record import digest_algorithm
from expo_ray.extrapolation.outputs.work_folder import names_found_by_loaders
from expo_ray.extrapolation.shards.tasks import Problem, ShardReceipt, pack_tensors
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
            found = digest_of(path.read_bytes(), digest_algorithm(record))
            if found != entry["digest"]:
                problems.append(
                    file_problem(entry["name"], "the content differs", found, entry["digest"])
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
        checkpoint = open_checkpoint(str(folder))
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
    receipts = []
    storage, algorithm = open_storage(str(folder)), digest_algorithm(record)
    bar = progress.start("Hashing weights", sum(entry["bytes"] for entry in present), "B")
    for entry in present:
        digest = "not a whole safetensors file"
        facts: dict[str, dict[str, Any]] = {}
        # What is wrong with a header was told before; here it tells which file it is.
        with contextlib.suppress(CheckpointError, EOFError), storage.open(entry["name"]) as reader:
            digest, facts = hash_weight_file(reader, algorithm=algorithm, on_bytes=bar.advance)
        receipts.append(
            ShardReceipt(
                name=entry["name"],
                plan_digest="",
                num_bytes=entry["bytes"],
                digest=digest,
                packed_tensors=pack_tensors(facts),
            )
        )
    bar.close()
    return receipts


def sha256_of_files(folder: AnyPath, record: dict[str, Any], progress: Progress) -> dict[str, str]:
    """Return what `sha256sum` prints for every recorded file, by name."""
    found = {}
    bar = progress.start("SHA-256", sum(entry["bytes"] for entry in record["files"]), "B")
    for entry in record["files"]:
        digest = hashlib.sha256()
        with (folder / entry["name"]).open("rb") as file:
            while data := file.read(BUFFER_BYTES):
                digest.update(data)
                bar.advance(len(data))
        found[entry["name"]] = digest.hexdigest()
    bar.close()
    return found


def file_problem(file: str, message: str, got: str, expected: str) -> Problem:
    """Return a problem that concerns a whole file."""
    return Problem(file=file, tensor=None, message=message, got=got, expected=expected)
