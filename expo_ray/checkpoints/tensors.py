"""Whole tensors by ranged reads, for rooms that need values and not plans."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from expo_ray.checkpoints.checkpoint import Checkpoint
from expo_ray.checkpoints.formats.header import TensorRef
from expo_ray.checkpoints.storages.storage import RangeReader
from expo_ray.errors import CheckpointError

TORCH_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "U16": torch.uint16,
    "I16": torch.int16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
}
DTYPE_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}


def read_tensor(reader: RangeReader, ref: TensorRef) -> torch.Tensor:
    """Read one tensor into memory of its own.

    Raises:
        CheckpointError: The file ended early, or torch has no such dtype.
    """
    if ref.dtype not in TORCH_DTYPES:
        raise CheckpointError(
            "torch cannot hold this dtype", where=f"{ref.file}, tensor {ref.name!r}", got=ref.dtype
        )
    raw = torch.empty(ref.num_bytes, dtype=torch.uint8)
    try:
        reader.read_into(ref.offset_bytes, raw.numpy().data)
    except (EOFError, OSError) as error:
        raise CheckpointError(
            "the file cannot be read", where=f"{ref.file}, tensor {ref.name!r}", got=error
        ) from error
    return raw.view(TORCH_DTYPES[ref.dtype]).reshape(ref.shape)


def iter_tensors(checkpoint: Checkpoint) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every tensor of a checkpoint, sorted by name, one at a time in memory.

    Raises:
        CheckpointError: A file cannot be read.
    """
    readers: dict[str, RangeReader] = {}
    try:
        for name, ref in checkpoint.tensors.items():
            if ref.file not in readers:
                readers[ref.file] = checkpoint.storage.open(ref.file)
            yield name, read_tensor(readers[ref.file], ref)
    finally:
        for reader in readers.values():
            reader.close()
