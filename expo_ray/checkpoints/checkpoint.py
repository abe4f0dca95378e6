"""A checkpoint as its headers describe it: nothing of the weights is read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from expo_ray.checkpoints.formats.fp8_format import BlockFormat
from expo_ray.checkpoints.formats.header import TensorRef
from expo_ray.checkpoints.storages.storage import (
    FileFacts,
    Storage,
)

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

    def version(self) -> dict[str, str]:
        """Return what tells these weights, config, tokenizer and templates from others, by file."""
        facts = self.storage.list_files()
        return {
            name: f"{facts[name].num_bytes} bytes, {facts[name].version_kind} {facts[name].version}"
            for name in (*self.weight_files, CONFIG_NAME, *self.sidecars)
            if name in facts
        }

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
