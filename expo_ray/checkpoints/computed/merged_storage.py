"""A base and a LoRA adapter, read as one checkpoint: the sum is computed while it is read.

    aligned[i, j] = base.float()[i, j] + scaling * (((B[i,0]*A[0,j]) + B[i,1]*A[1,j]) + ...)

in float32, every operation rounded by itself and the terms added in this order, so that the bits
depend on neither the place nor the length of a read, nor on a matrix library. Each file of the
base appears under its own name with the changed tensors, as F32, behind its last byte. Nothing is
written.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from expo_ray.checkpoints.checkpoint import CONFIG_NAME, Checkpoint, WeightFile, links_of
from expo_ray.checkpoints.computed.adapter_fit import check_against_base
from expo_ray.checkpoints.computed.adapters import (
    ADAPTER_CONFIG,
    Adapter,
    LoraTensor,
    read_adapter,
)
from expo_ray.checkpoints.computed.computed_file import (
    ComputedReader,
    ComputedTensor,
    lay_out_behind,
)
from expo_ray.checkpoints.formats.header import TensorRef
from expo_ray.checkpoints.formats.index import read_file_header
from expo_ray.checkpoints.quantization import QUANTIZED_BASE_HINT, refuse_quantized
from expo_ray.checkpoints.sidecars import belongs_to_tokenizer, sort_files
from expo_ray.checkpoints.storages.lfs_pointers import refuse_pointers
from expo_ray.checkpoints.storages.local import LocalStorage
from expo_ray.checkpoints.storages.storage import (
    BASE_MARK,
    FileFacts,
    RangeReader,
    Storage,
    split_address,
)
from expo_ray.checkpoints.tensors import read_tensor
from expo_ray.errors import CheckpointError

MergedTensor = ComputedTensor[LoraTensor]


def merged(storage: Storage, files: Mapping[str, FileFacts], base: Checkpoint) -> Checkpoint:
    """Return an adapter on its base as a checkpoint.

    Config and sidecars are the base's where the adapter folder has none of its own.

    Args:
        storage: The adapter folder.
        files: Its files.
        base: The model that the adapter was trained on.

    Raises:
        CheckpointError: The adapter is not supported, or does not belong to this base.
    """
    if split_address(base.uri)[1]:
        raise CheckpointError(
            "an adapter on an adapter is not supported", where=storage.uri, got=base.uri
        )
    adapter = read_adapter(storage, files)
    if adapter.file in base.weight_files:
        raise CheckpointError("a weight file of the base is named like an adapter", where=base.uri)
    try:
        check_against_base(adapter, base.tensors, base.config)
    except CheckpointError:
        refuse_quantized(base, hint=QUANTIZED_BASE_HINT)  # whose shapes and names are others
        raise
    tensors = dict(base.tensors)
    tensors.update({n: replace(ref, name=n) for n, ref in adapter.replaced.items()})
    weight_files = {}
    for file, refs in base.tensors_by_file().items():
        known = base.weight_files[file]
        merged = lay_out(adapter, refs, known.facts.num_bytes)
        tensors.update({m.ref.name: m.ref for m in merged})
        digest = hashlib.sha256(f"{known.header_sha256} {adapter.digest}".encode())
        weight_files[file] = WeightFile(
            facts=_facts(known.facts, adapter, merged), header_sha256=digest.hexdigest()
        )
    weight_files[adapter.file] = WeightFile(facts=adapter.facts, header_sha256=adapter.digest)
    merged_storage = MergedStorage(adapter, base.storage)
    sidecars = sort_files(merged_storage.sidecars())[0]
    own = set(files).intersection(sidecars)
    inherited = {CONFIG_NAME, *sidecars} - own
    if isinstance(storage, LocalStorage):
        refuse_pointers(storage, files, own)
    return Checkpoint(
        uri=merged_storage.uri,
        tensors=dict(sorted(tensors.items())),
        config=base.config,
        weight_files=dict(sorted(weight_files.items())),
        sidecars=sidecars,
        other_files=tuple(sorted(set(files) - {*sidecars, adapter.file, ADAPTER_CONFIG})),
        auto_dtypes={n: base.tensors[n].dtype for n in tensors if tensors[n] != base.tensors[n]},
        storage=merged_storage,
        links={**links_of(files, own), **{n: base.links[n] for n in inherited & {*base.links}}},
    )


def lay_out(
    adapter: Adapter, refs: Sequence[TensorRef], base_bytes: int
) -> tuple[MergedTensor, ...]:
    """Return the changed tensors of one base file and where they appear behind its bytes."""
    changes = ((ref, adapter.change_of(ref)) for ref in refs)
    return lay_out_behind([(ref, c) for ref, c in changes if c is not None], base_bytes)


class MergedStorage:
    """The folder of an adapter and that of its base as one."""

    def __init__(self, adapter: Adapter, base: Storage) -> None:
        self._adapter = adapter
        self._base = base
        self.uri = f"{adapter.storage.uri}{BASE_MARK}{base.uri}"

    def list_files(self) -> dict[str, FileFacts]:
        """Return the files of both; those of the adapter win."""
        return {**self._base.list_files(), **self._adapter.files}

    def sidecars(self) -> set[str]:
        """Return the names of all files, without the base's tokenizer if the adapter has one."""
        own, others = set(self._adapter.files), set(self._base.list_files())
        if any(name.startswith("tokenizer") for name in own):
            others = {name for name in others if not belongs_to_tokenizer(name)}
        return own | others

    def read_bytes(self, name: str) -> bytes:
        """Return the content of a small file, the adapter's own first."""
        is_own = name != "config.json" and name in self._adapter.files
        return (self._adapter.storage if is_own else self._base).read_bytes(name)

    def open(self, name: str) -> RangeReader:
        """Open a weight file of the base with the changed tensors behind it, or the adapter's."""
        if name == self._adapter.file:
            return self._adapter.storage.open(name)
        header = read_file_header(self._base, name)
        base = self._base.open(name)
        merged = lay_out(self._adapter, header.tensors, base.facts.num_bytes)
        return MergedReader(base, self._adapter, merged)


class MergedReader(ComputedReader[LoraTensor, "tuple[torch.Tensor, torch.Tensor]"]):
    """Ranged reads of a base file and of sums."""

    def __init__(self, base: RangeReader, adapter: Adapter, merged: Sequence[MergedTensor]) -> None:
        self._adapter = adapter
        self._own = adapter.storage.open(adapter.file)
        super().__init__(base, merged)

    def describe(self, base: FileFacts) -> FileFacts:
        """Return facts that change with either file."""
        return _facts(base, replace(self._adapter, facts=self._own.refresh()), self._items)

    def close(self) -> None:
        """Release both files."""
        super().close()
        self._own.close()

    def stored(self, item: MergedTensor) -> tuple[RangeReader, TensorRef]:
        """Return the base tensor, or the adapter's own copy of it."""
        copy = item.source.stored
        return (self._base, item.base) if copy is None else (self._own, copy)

    def load_parts(self, item: MergedTensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the factors in float32: (rows, r) and (r, columns)."""
        change = item.source
        a = read_tensor(self._own, change.a).float()
        b = read_tensor(self._own, change.b).float()
        left, right = (a.t(), b.t()) if change.is_transposed else (b, a)
        return left, right.contiguous()

    def compute(
        self,
        rows: torch.Tensor,
        first: int,
        parts: tuple[torch.Tensor, torch.Tensor],
        source: LoraTensor,
    ) -> torch.Tensor:
        """Return base + scaling * (B @ A), one rank after the other."""
        left, right = parts[0][first : first + len(rows)], parts[1]
        delta = left[:, 0, None] * right[0]
        product = torch.empty_like(delta)
        for k in range(1, len(right)):
            torch.mul(left[:, k, None], right[k], out=product)
            delta.add_(product)
        # base + delta = delta + base, bit for bit.
        return delta.mul_(source.scaling).add_(rows.float())


def _facts(base: FileFacts, adapter: Adapter, merged: Sequence[MergedTensor]) -> FileFacts:
    """Tell a version of both files apart from any other."""
    config_version = adapter.files[ADAPTER_CONFIG].version
    return FileFacts(
        name=base.name,
        num_bytes=base.num_bytes + sum(item.ref.num_bytes for item in merged),
        version_kind=base.version_kind,
        version=f"{base.version} + adapter {adapter.facts.version}, {config_version}",
    )
