"""What lies on a disk: headers, tensor index, byte ranges, ranged reads, atomic writes, sidecars.

What does not belong here: arithmetic on tensors, pairs of checkpoints, Ray.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from expo_ray.lazy import lazy_exports

if TYPE_CHECKING:
    from expo_ray.checkpoints.checkpoint import Checkpoint
    from expo_ray.checkpoints.digests import ContentDigest, WeightsDigest, weights_digest
    from expo_ray.checkpoints.formats.header import TensorRef
    from expo_ray.checkpoints.opening import open_checkpoint
    from expo_ray.checkpoints.storages.atomic_io import (
        atomic_write_bytes,
        atomic_write_json,
        atomic_write_text,
    )
    from expo_ray.checkpoints.tensors import iter_tensors, read_tensor

__all__ = [
    "Checkpoint",
    "ContentDigest",
    "TensorRef",
    "WeightsDigest",
    "atomic_write_bytes",
    "atomic_write_json",
    "atomic_write_text",
    "iter_tensors",
    "open_checkpoint",
    "read_tensor",
    "weights_digest",
]

__getattr__ = lazy_exports(
    __name__,
    {
        "Checkpoint": "checkpoint",
        "TensorRef": "formats.header",
        "ContentDigest": "digests",
        "WeightsDigest": "digests",
        "atomic_write_bytes": "storages.atomic_io",
        "atomic_write_json": "storages.atomic_io",
        "atomic_write_text": "storages.atomic_io",
        "iter_tensors": "tensors",
        "open_checkpoint": "opening",
        "read_tensor": "tensors",
        "weights_digest": "digests",
    },
)
