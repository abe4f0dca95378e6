"""Digests of files and of weights.

`weights_digest` is the sha256 over one line per tensor, sorted by name:
`name dtype shape sha256(tensor bytes)` and a line feed, with the dtype as safetensors writes it and
the shape as `[32,64]`. It does not depend on the shard layout.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

from expo_ray.checkpoints.checkpoint import Checkpoint
from expo_ray.errors import CheckpointError
from expo_ray.progress import NullProgress, Progress

if TYPE_CHECKING:
    import torch

BUFFER_BYTES = 4 * 1024 * 1024


class WeightsDigest:
    """Gathers tensors in any order and gives the digest of all of them."""

    def __init__(self) -> None:
        self._lines: dict[str, str] = {}

    def add(
        self, name: str, data: torch.Tensor | bytes | memoryview, dtype: str, shape: Iterable[int]
    ) -> None:
        """Add one tensor by its values.

        Args:
            name: Its name in the checkpoint.
            data: The tensor, or its bytes in row-major order.
            dtype: As safetensors writes it: BF16, F32, ...
            shape: Its sizes.
        """
        raw = data if isinstance(data, bytes | memoryview) else _tensor_view(data)
        self.add_sha256(name, hashlib.sha256(raw).hexdigest(), dtype, shape)

    def add_sha256(self, name: str, sha256: str, dtype: str, shape: Iterable[int]) -> None:
        """Add one tensor whose bytes were hashed before.

        Raises:
            ValueError: The name was added before.
        """
        if name in self._lines:
            raise ValueError(f"tensor {name!r} was added twice")
        sizes = ",".join(str(size) for size in shape)
        self._lines[name] = f"{name} {dtype} [{sizes}] {sha256}\n"

    def hexdigest(self) -> str:
        """Return the digest of all tensors added so far."""
        digest = hashlib.sha256()
        for name in sorted(self._lines):
            digest.update(self._lines[name].encode("utf-8"))
        return digest.hexdigest()


def weights_digest(checkpoint: Checkpoint, progress: Progress | None = None) -> str:
    """Read all weights of a checkpoint in small pieces and return their digest.

    Raises:
        CheckpointError: A file cannot be read to its end.
    """
    result = WeightsDigest()
    buffer = memoryview(bytearray(BUFFER_BYTES))
    bar = (progress or NullProgress()).start("Hashing weights", checkpoint.num_bytes, "B")
    try:
        for file in checkpoint.files:
            with checkpoint.storage.open(file) as reader:
                for ref in checkpoint.tensors.values():
                    if ref.file != file:
                        continue
                    digest = hashlib.sha256()
                    for start in range(0, ref.num_bytes, BUFFER_BYTES):
                        part = buffer[: min(BUFFER_BYTES, ref.num_bytes - start)]
                        reader.read_into(ref.offset_bytes + start, part)
                        digest.update(part)
                        bar.advance(len(part))
                    result.add_sha256(ref.name, digest.hexdigest(), ref.dtype, ref.shape)
    except (EOFError, OSError) as error:
        raise CheckpointError(
            "the weights cannot be read", where=checkpoint.uri, got=error
        ) from error
    finally:
        bar.close()
    return result.hexdigest()


def _tensor_view(tensor: torch.Tensor) -> memoryview:
    import torch

    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data
