"""Receipts of finished shards: what a later run, and the assembly, may trust.

A receipt speaks of one version of its file (time of change, or ETag). Where another one lies there,
its bytes decide, hashed anew: a file may have been moved, or somebody may have written into it.
"""

from __future__ import annotations

from expo_ray.checkpoints.digests import hash_weight_file
from expo_ray.checkpoints.opening import open_storage
from expo_ray.checkpoints.storages.remote_path import AnyPath
from expo_ray.checkpoints.storages.storage import WORK_FOLDER, FileFacts
from expo_ray.errors import CheckpointError
from expo_ray.extrapolation.shards.tasks import ShardReceipt, pack_tensors
from expo_ray.json_text import parse_json

RECEIPT_FOLDER = "receipts"


def receipt_path(folder: AnyPath, name: str) -> AnyPath:
    """Return where the receipt of a finished shard lies while a run is not complete."""
    return folder / WORK_FOLDER / RECEIPT_FOLDER / f"{name}.json"


def version_of(folder: AnyPath, name: str) -> str:
    """Return the version of a file that was just published.

    Raises:
        CheckpointError: It cannot be seen.
    """
    with open_storage(str(folder)).open(name) as reader:
        return _version(reader.facts)


def read_receipt(folder: AnyPath, name: str, plan_digest: str) -> ShardReceipt | None:
    """Return the receipt of a finished shard, None where the shard must be written (again)."""
    try:
        table = parse_json(receipt_path(folder, name).read_text(encoding="utf-8"))
        receipt = ShardReceipt(
            name=table["name"],
            plan_digest=table["plan_digest"],
            num_bytes=table["bytes"],
            digest=table["digest"],
            version=table.get("version", ""),
            packed_tensors=pack_tensors(table["tensors"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if receipt.name != name or receipt.plan_digest != plan_digest:
        return None
    return receipt if is_as_written(folder, receipt) else None


def is_as_written(folder: AnyPath, receipt: ShardReceipt, facts: FileFacts | None = None) -> bool:
    """Tell whether the file of a receipt still holds what was written.

    Args:
        folder: The output folder.
        receipt: Its receipt.
        facts: What is known of the file as it lies there now; looked up where left out.
    """
    try:
        if facts is not None and _fits(receipt, facts):
            return True
        with open_storage(str(folder)).open(receipt.name) as reader:
            if _fits(receipt, reader.facts):
                return True
            if reader.facts.num_bytes != receipt.num_bytes:
                return False
            return hash_weight_file(reader)[0] == receipt.digest
    except (CheckpointError, EOFError, OSError):
        return False


def _fits(receipt: ShardReceipt, facts: FileFacts) -> bool:
    return facts.num_bytes == receipt.num_bytes and _version(facts) == receipt.version


def _version(facts: FileFacts) -> str:
    return f"{facts.version_kind} {facts.version}"
