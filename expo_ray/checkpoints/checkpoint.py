"""A checkpoint as its headers describe it: nothing of the weights is read."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from expo_ray.checkpoints.adapters import ADAPTER_CONFIG, base_address_of
from expo_ray.checkpoints.fp8_format import BlockFormat
from expo_ray.checkpoints.header import TensorRef, parse_config
from expo_ray.checkpoints.index import collect_tensors, read_file_headers, weight_files
from expo_ray.checkpoints.layouts import INDEX_NAME
from expo_ray.checkpoints.lfs_pointers import refuse_pointers
from expo_ray.checkpoints.remote_path import any_path
from expo_ray.checkpoints.sidecars import sort_files
from expo_ray.checkpoints.storage import (
    DEQUANTIZED_MARK,
    RECORD_NAME,
    WORK_FOLDER,
    FileFacts,
    LocalStorage,
    Storage,
    open_storage,
    split_address,
)
from expo_ray.errors import CheckpointError

CONFIG_NAME = "config.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightFile:
    """One file of weights and what identifies it."""

    facts: FileFacts
    header_sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A folder of safetensors weights, their config and the files beside them."""

    uri: str
    """Absolute path (or URI) of the folder."""
    tensors: Mapping[str, TensorRef]
    """By name, sorted."""
    config: dict[str, Any]
    """config.json."""
    weight_files: Mapping[str, WeightFile]
    """By file name, sorted."""
    sidecars: tuple[str, ...]
    """Files that belong to the model beside weights and config: tokenizer, templates, code."""
    other_files: tuple[str, ...]
    """Everything else in the folder: other weights, optimizer state, logs."""
    storage: Storage = field(repr=False)
    links: Mapping[str, str] = field(default_factory=dict)
    """Of config and sidecars: symbolic links that leave the folder, and where they lead."""
    auto_dtypes: Mapping[str, str] = field(default_factory=dict)
    """Where a tensor is computed in float32 from a narrower one: the dtype to write it in."""
    block_formats: Mapping[str, BlockFormat] = field(default_factory=dict)
    """Of tensors that are read from FP8 codes with block scales: how they are stored."""

    @classmethod
    def open(
        cls,
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
            from expo_ray.checkpoints.block_fp8 import dequantized

            return dequantized(cls.open(str(uri).removesuffix(DEQUANTIZED_MARK)))
        address, base_address = split_address(str(uri))
        storage = open_storage(address)
        facts = storage.list_files()
        if ADAPTER_CONFIG in facts:
            from expo_ray.checkpoints.merged_storage import open_merged

            if base_address:
                base = cls.open(base_address)
            return open_merged(storage, facts, base or cls.open(base_address_of(storage)))
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
        return cls(
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

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the weight files, sorted."""
        return tuple(self.weight_files)

    @property
    def num_parameters(self) -> int:
        """Elements of all tensors, integer buffers included."""
        return sum(ref.num_elements for ref in self.tensors.values())

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(ref.num_bytes for ref in self.tensors.values())

    def tensors_by_file(self) -> dict[str, list[TensorRef]]:
        """Return the tensors of every weight file."""
        found: dict[str, list[TensorRef]] = {file: [] for file in self.weight_files}
        for ref in self.tensors.values():
            found[ref.file].append(ref)
        return found

    def identity(self) -> list[dict[str, str | int]]:
        """Return what tells this version of the weights from another, one entry per file."""
        return [
            {
                "uri": f"{self.uri}/{name}",
                "bytes": file.facts.num_bytes,
                "header_sha256": file.header_sha256,
                file.facts.version_kind: file.facts.version,
            }
            for name, file in self.weight_files.items()
        ]


def links_of(facts: Mapping[str, FileFacts], names: Iterable[str]) -> dict[str, str]:
    """Return which of these files are links that leave the folder, and where they lead."""
    found = ((name, facts[name].leads_to) for name in names)
    return {name: target for name, target in found if target is not None}


def open_aligned(aligned: str | Path, initial: Checkpoint) -> Checkpoint:
    """Open aligned; an adapter whose address names no base belongs to initial, or to its base.

    Raises:
        CheckpointError: A file is missing, malformed or of a kind that is not supported.
    """
    base = split_address(initial.uri)[1]
    return Checkpoint.open(aligned, base=Checkpoint.open(base) if base else initial)


def _missing_config(uri: str, names: Collection[str]) -> CheckpointError:
    hint = "fetch it, too; where a trainer saved weights alone, copy that of the model before"
    if "params.json" in names:
        hint = "params.json is of Mistral's or Meta's own format: give the version for transformers"
    return CheckpointError("config.json is missing", where=uri, hint=hint)


def _refuse_unfinished(storage: Storage) -> None:
    if storage.uri.startswith("hf://"):
        return
    if (any_path(storage.uri) / WORK_FOLDER).exists():
        raise CheckpointError(
            "the checkpoint is unfinished: an extrapolation into this folder did not end",
            where=storage.uri,
            hint="run the same extrapolation again, it continues",
        )
