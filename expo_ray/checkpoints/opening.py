"""From an address to a storage or a checkpoint: the one place that knows every kind of them.

A path, s3://, gs://, hf://owner/name[@revision] or a bare Hub id; ADAPTER#base=BASE for a LoRA
adapter on its base, ...#dequantized for FP8 blocks read as float32. What computes tensors needs
torch, which takes seconds to import: it is imported where an address asks for it.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from expo_ray.checkpoints.checkpoint import CONFIG_NAME, Checkpoint, WeightFile, links_of
from expo_ray.checkpoints.computed.adapters import ADAPTER_CONFIG, BASE_HINT, read_adapter
from expo_ray.checkpoints.formats.header import parse_config
from expo_ray.checkpoints.formats.index import collect_tensors, read_file_headers, weight_files
from expo_ray.checkpoints.formats.layouts import INDEX_NAME
from expo_ray.checkpoints.quantization import block_size_of
from expo_ray.checkpoints.sidecars import sort_files
from expo_ray.checkpoints.storages.hub_storage import SCHEME, HubStorage, is_hub_address
from expo_ray.checkpoints.storages.lfs_pointers import refuse_pointers
from expo_ray.checkpoints.storages.local import LocalStorage, unreadable
from expo_ray.checkpoints.storages.remote_path import RemotePath, any_path, is_remote
from expo_ray.checkpoints.storages.remote_storage import RemoteStorage
from expo_ray.checkpoints.storages.storage import (
    BASE_MARK,
    DEQUANTIZED_MARK,
    RECORD_NAME,
    WORK_FOLDER,
    Storage,
    split_address,
)
from expo_ray.errors import CheckpointError


def open_checkpoint(
    uri: str | Path,
    *,
    allow_unfinished: bool = False,
    base: Checkpoint | None = None,
) -> Checkpoint:
    """Read the headers of a checkpoint.

    Args:
        uri: A local folder, s3://, gs://, hf://owner/name[@revision] or a bare Hub id; the
            folder of a LoRA adapter stands for the model it makes of its base, which
            ADAPTER#base=BASE names.
        allow_unfinished: Accept an output folder whose extrapolation has not ended.
        base: What an adapter belongs to where its address does not say; without it, what
            its config names.

    Raises:
        CheckpointError: A file is missing, malformed or of a kind that is not supported.
    """
    if str(uri).endswith(DEQUANTIZED_MARK):
        from expo_ray.checkpoints.computed.block_fp8 import dequantized

        return dequantized(open_checkpoint(str(uri).removesuffix(DEQUANTIZED_MARK)))
    address, base_address = split_address(str(uri))
    storage = open_storage(address)
    facts = storage.list_files()
    if ADAPTER_CONFIG in facts:
        from expo_ray.checkpoints.computed.merged_storage import merged

        if base_address:
            base = open_checkpoint(base_address)
        return merged(storage, facts, base or open_checkpoint(base_address_of(storage)))
    if base_address:
        raise CheckpointError(
            "only the address of an adapter has a base",
            where=storage.uri,
            expected=f"{ADAPTER_CONFIG} in the folder",
        )
    if not allow_unfinished and RECORD_NAME not in facts:
        _refuse_unfinished(storage)
    claims, files = weight_files(storage, facts)
    headers = read_file_headers(storage, files)
    tensors = collect_tensors(storage.uri, claims, headers)
    if CONFIG_NAME not in facts:
        raise _missing_config(storage.uri, facts)
    config = parse_config(storage.read_bytes(CONFIG_NAME), file=f"{storage.uri}/{CONFIG_NAME}")
    carried, others = sort_files(set(facts) - {*files, INDEX_NAME})
    if isinstance(storage, LocalStorage):  # others are read when they are needed
        refuse_pointers(storage, facts, carried)
    return Checkpoint(
        uri=storage.uri,
        tensors=tensors,
        config=config,
        weight_files={
            file: WeightFile(facts=facts[file], header_sha256=headers[file].sha256)
            for file in files
        },
        sidecars=carried,
        other_files=others,
        storage=storage,
        links=links_of(facts, (CONFIG_NAME, *carried)),
    )


def open_aligned(aligned: str | Path, initial: Checkpoint) -> Checkpoint:
    """Open aligned; an adapter whose address names no base belongs to initial, or to its base.

    Raises:
        CheckpointError: A file is missing, malformed or of a kind that is not supported.
    """
    base = split_address(initial.uri)[1]
    return open_checkpoint(aligned, base=open_checkpoint(base) if base else initial)


def without_block_scales(checkpoint: Checkpoint) -> Checkpoint:
    """Return FP8 weights with block scales as the float32 they stand for, others as they are.

    Raises:
        CheckpointError: The scales do not fit the weights.
    """
    if block_size_of(checkpoint.config) is None or split_address(checkpoint.uri)[1]:
        return checkpoint
    from expo_ray.checkpoints.computed.block_fp8 import dequantized

    return dequantized(checkpoint)


def open_storage(uri: str | Path) -> Storage:
    """Return the storage behind a path, a URI or a Hub id.

    A local folder wins over a Hub id of the same name.

    Raises:
        CheckpointError: There is no such checkpoint, or the scheme is not supported.
    """
    text = str(uri)
    if BASE_MARK in text:
        return _open_merged_storage(text)
    if text.endswith(DEQUANTIZED_MARK):
        from expo_ray.checkpoints.computed.block_fp8 import DequantizedStorage

        return DequantizedStorage(open_storage(text.removesuffix(DEQUANTIZED_MARK)))
    if is_remote(text):
        return RemoteStorage(RemotePath(text))
    if text.startswith(SCHEME):
        return HubStorage(text)
    path = Path(str(any_path(text)))
    try:
        is_file, is_folder = path.is_file(), path.is_dir()
    except OSError as error:  # a folder above is closed to us, or the name is too long
        raise unreadable(path, error) from error
    if is_file:
        raise _a_file(path)
    if is_folder:
        return LocalStorage(path)
    if is_hub_address(text):
        return HubStorage(text)
    raise CheckpointError(
        "no such checkpoint folder", where=path, expected="a folder", hint="check the path"
    )


def address_from(folder: Path, address: str) -> str:
    """Return an address that a file in a folder names: paths in it are relative to the folder.

    A local folder wins over a Hub id of the same name.
    """
    place, base = split_address(address)
    if base:
        mark = DEQUANTIZED_MARK if address.endswith(DEQUANTIZED_MARK) else ""
        return f"{address_from(folder, place)}{BASE_MARK}{address_from(folder, base)}{mark}"
    if ":" in address:
        return address
    expanded = Path(address).expanduser()
    local = expanded if expanded.is_absolute() else folder / expanded
    if not local.exists() and is_hub_address(address):
        return address
    return os.path.normpath(local)


def absolute_address(address: str) -> str:
    """Return an existing local path absolute, as other processes need it; all else as it is."""
    if "://" in address or not Path(address).exists():
        return address
    return str(Path(address).absolute())


def is_same_address(one: str, other: str) -> bool:
    """Return whether two addresses name one checkpoint, in whatever spelling of a local path."""
    spelled = [
        [part if "://" in part else os.path.realpath(part) for part in split_address(address)]
        for address in (one, other)
    ]
    return spelled[0] == spelled[1]


def base_address_of(storage: Storage) -> str:
    """Return the base that an adapter's config names.

    Raises:
        CheckpointError: It names none that can be found here.
    """
    where = f"{storage.uri}/{ADAPTER_CONFIG}"
    config = parse_config(storage.read_bytes(ADAPTER_CONFIG), file=where)
    name, revision = config.get("base_model_name_or_path"), config.get("revision")
    if not isinstance(name, str) or not name:
        raise CheckpointError(
            "the adapter does not say which model it belongs to", where=where, hint=BASE_HINT
        )
    address = f"{SCHEME}{name}@{revision}" if revision and not Path(name).exists() else name
    try:
        open_storage(address)
    except CheckpointError as error:
        raise CheckpointError(
            "the base that the adapter names cannot be found",
            where=where,
            got=f"{name}: {error.got or error.message}",
            hint=BASE_HINT,
        ) from error
    return address


def _open_merged_storage(uri: str) -> Storage:
    """Return the storage behind ADAPTER#base=BASE, without reading all headers of the base."""
    from expo_ray.checkpoints.computed.merged_storage import MergedStorage

    address, base = split_address(uri)
    storage = open_storage(address)
    return MergedStorage(read_adapter(storage, storage.list_files()), open_storage(base))


def _a_file(path: Path) -> CheckpointError:
    hint = f"give the folder: {path.parent}"
    if path.suffix == ".gguf":
        hint = "GGUF files are not supported: give the original safetensors checkpoint"
    elif path.suffix in (".zip", ".tar", ".gz", ".tgz", ".zst"):
        hint = "unpack it, and give the folder"
    return CheckpointError("a checkpoint is a folder, this is a file", where=path, hint=hint)


def _missing_config(uri: str, names: Collection[str]) -> CheckpointError:
    hint = "fetch it, too; where a trainer saved weights alone, copy that of the model before"
    if "params.json" in names:
        hint = "params.json is of Mistral's or Meta's own format: give the version for transformers"
    return CheckpointError("config.json is missing", where=uri, hint=hint)


def _refuse_unfinished(storage: Storage) -> None:
    if storage.uri.startswith(SCHEME):
        return
    if (any_path(storage.uri) / WORK_FOLDER).exists():
        raise CheckpointError(
            "the checkpoint is unfinished: an extrapolation into this folder did not end",
            where=storage.uri,
            hint="run the same extrapolation again, it continues",
        )
