"""FP8 weights with block scales (DeepSeek V3, Qwen3-FP8), read as the float32 they stand for.

    value[i, j] = weight[i, j].float() * weight_scale_inv[i // block_rows, j // block_columns]

Each file appears with the dequantized tensors, as F32, behind its last byte; codes and scales are
hidden, and config.json comes without its quantization. Scales may lie in another file than their
codes. How they were stored is remembered, for those who write FP8 again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from expo_ray.checkpoints.checkpoint import CONFIG_NAME, Checkpoint, WeightFile
from expo_ray.checkpoints.computed.computed_file import (
    ComputedReader,
    ComputedTensor,
    lay_out_behind,
)
from expo_ray.checkpoints.computed.fused_fp8 import fused_fp8
from expo_ray.checkpoints.formats.fp8_format import CODE_DTYPE, SCALE_SUFFIX, BlockFormat
from expo_ray.checkpoints.formats.header import FLOAT_DTYPES, TensorRef, parse_config
from expo_ray.checkpoints.formats.index import read_file_header, weight_files
from expo_ray.checkpoints.quantization import block_size_of
from expo_ray.checkpoints.storages.storage import (
    DEQUANTIZED_MARK,
    FileFacts,
    RangeReader,
    Storage,
)
from expo_ray.checkpoints.tensors import read_tensor
from expo_ray.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class BlockScales:
    """Where the scales of one weight lie, and the size of its blocks."""

    ref: TensorRef
    block_rows: int
    block_columns: int


DequantizedTensor = ComputedTensor[BlockScales]


def dequantized(checkpoint: Checkpoint) -> Checkpoint:
    """Return a checkpoint with FP8 block scales as one of plain float32 values.

    Raises:
        CheckpointError: A tensor is quantized in another way, or its scales do not fit.
    """
    tensors = dict(checkpoint.tensors)
    files = {}
    formats = {}
    block = block_size_of(checkpoint.config)
    for file, refs in checkpoint.tensors_by_file().items():
        known = checkpoint.weight_files[file]
        items = lay_out(
            checkpoint.config, refs, checkpoint.tensors, known.facts.num_bytes, checkpoint.uri
        )
        others = [checkpoint.weight_files[other] for other in _other_files(items)]
        for item in items:
            del tensors[item.source.ref.name]
            tensors[item.ref.name] = item.ref
            formats[item.ref.name] = _format(checkpoint.config, item.source)
        headers = " ".join([known.header_sha256, *(other.header_sha256 for other in others)])
        files[file] = WeightFile(
            facts=_facts(known.facts, items, [other.facts for other in others]),
            header_sha256=hashlib.sha256(f"{headers} {block}".encode()).hexdigest(),
        )
    storage = DequantizedStorage(checkpoint.storage)
    return Checkpoint(
        uri=storage.uri,
        tensors=tensors,
        config=_plain_config(checkpoint.config),
        weight_files=files,
        sidecars=checkpoint.sidecars,
        other_files=checkpoint.other_files,
        storage=storage,
        links=checkpoint.links,
        block_formats=formats,
    )


def _format(config: Mapping[str, Any], source: BlockScales) -> BlockFormat:
    return BlockFormat(
        block_rows=source.block_rows,
        block_columns=source.block_columns,
        # Half precision is too narrow for scales, double no use.
        scale_dtype="BF16" if source.ref.dtype == "BF16" else "F32",
        has_power_scales=config["quantization_config"].get("scale_fmt") == "ue8m0",
    )


def lay_out(
    config: Mapping[str, Any],
    refs: Iterable[TensorRef],
    known: Mapping[str, TensorRef],
    file_bytes: int,
    uri: str,
) -> tuple[DequantizedTensor, ...]:
    """Return the dequantized tensors of one file and where they appear behind its bytes.

    Args:
        config: config.json.
        refs: The tensors of the file.
        known: Tensors by name, with all scales that belong to the file's codes.
        file_bytes: Size of the file.
        uri: Of the checkpoint, for messages.

    Raises:
        CheckpointError: Scales are missing, or do not fit the blocks of the config.
    """
    block = block_size_of(config) or (0, 0)
    items = []
    for ref in refs:
        if ref.dtype != CODE_DTYPE:
            continue
        scales = known.get(f"{ref.name}{SCALE_SUFFIX}")
        expected = tuple(-(-size // step) for size, step in zip(ref.shape, block, strict=False))
        fits = scales is not None and len(ref.shape) == 2 and scales.shape == expected
        if scales is None or not fits or scales.dtype not in FLOAT_DTYPES:
            raise CheckpointError(
                "the block scales of an FP8 weight do not fit it",
                where=f"{uri}/{ref.file}, tensor {ref.name!r}",
                got=f"{scales.dtype} {list(scales.shape)}" if scales else "none",
                expected=f"floating-point {list(expected)} for blocks of {list(block)}",
                hint="give the checkpoint before quantization",
            )
        items.append((ref, BlockScales(scales, *block)))
    return lay_out_behind(items, file_bytes)


class DequantizedStorage:
    """A folder whose FP8 weights are read as float32."""

    def __init__(self, base: Storage) -> None:
        self._base = base
        self.uri = f"{base.uri}{DEQUANTIZED_MARK}"

    def list_files(self) -> dict[str, FileFacts]:
        """Return the stored files."""
        return self._base.list_files()

    def read_bytes(self, name: str) -> bytes:
        """Return the content of a small file; config.json without its quantization."""
        data = self._base.read_bytes(name)
        if name != CONFIG_NAME:
            return data
        config = _plain_config(parse_config(data, file=f"{self._base.uri}/{name}"))
        return (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode("utf-8")

    def open(self, name: str) -> RangeReader:
        """Open a weight file with the dequantized tensors behind it."""
        where = f"{self._base.uri}/{CONFIG_NAME}"
        config = parse_config(self._base.read_bytes(CONFIG_NAME), file=where)
        header = read_file_header(self._base, name)
        known = {ref.name: ref for ref in header.tensors} | self._scales_elsewhere(header.tensors)
        base = self._base.open(name)
        items = lay_out(config, header.tensors, known, base.facts.num_bytes, self._base.uri)
        others = {other: self._base.open(other) for other in _other_files(items)}
        return DequantizingReader(base, items, others)

    def _scales_elsewhere(self, refs: Iterable[TensorRef]) -> dict[str, TensorRef]:
        """Return the scales of a file's codes that the index places in other files."""
        names = {ref.name for ref in refs}
        wanted = {f"{ref.name}{SCALE_SUFFIX}" for ref in refs if ref.dtype == CODE_DTYPE} - names
        if not wanted:
            return {}
        claims, files = weight_files(self._base, self._base.list_files())
        if claims:  # without an index any file may hold them
            files = sorted({claims[name] for name in wanted if name in claims})
        found = (ref for file in files for ref in read_file_header(self._base, file).tensors)
        return {ref.name: ref for ref in found if ref.name in wanted}


class DequantizingReader(ComputedReader[BlockScales, torch.Tensor]):
    """Ranged reads of a stored file and of dequantized tensors."""

    def __init__(
        self,
        base: RangeReader,
        items: Sequence[DequantizedTensor],
        others: Mapping[str, RangeReader],
    ) -> None:
        self._others = others
        super().__init__(base, items)

    def describe(self, base: FileFacts) -> FileFacts:
        """Return the facts of the stored file, longer by what is computed."""
        return _facts(base, self._items, [other.refresh() for other in self._others.values()])

    def close(self) -> None:
        """Release all files."""
        super().close()
        for other in self._others.values():
            other.close()

    def load_parts(self, item: DequantizedTensor) -> torch.Tensor:
        """Return the scales in float32."""
        ref = item.source.ref
        return read_tensor(self._others.get(ref.file, self._base), ref).float()

    def compute(
        self, rows: torch.Tensor, first: int, parts: torch.Tensor, source: BlockScales
    ) -> torch.Tensor:
        """Return code * scale."""
        fused = fused_fp8() if self.may_compile else None
        if fused is not None:
            return fused.values_of(rows, parts, first, (source.block_rows, source.block_columns))
        by_row = parts[torch.arange(first, first + len(rows)) // source.block_rows]
        by_element = by_row.repeat_interleave(source.block_columns, dim=1)
        return rows.float().mul_(by_element[:, : rows.shape[1]])


def _other_files(items: Iterable[DequantizedTensor]) -> list[str]:
    return sorted({i.source.ref.file for i in items if i.source.ref.file != i.base.file})


def _facts(
    base: FileFacts, items: Sequence[DequantizedTensor], others: Sequence[FileFacts]
) -> FileFacts:
    return FileFacts(
        name=base.name,
        num_bytes=base.num_bytes + sum(item.ref.num_bytes for item in items),
        version_kind=base.version_kind,
        version=" + ".join([base.version, *(other.version for other in others)]),
    )


def _plain_config(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key != "quantization_config"}
