"""What lies on a disk: headers, tensor index, byte ranges, ranged reads, atomic writes, sidecars.

What does not belong here: arithmetic on tensors, pairs of checkpoints, Ray.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from expo_ray.lazy import lazy_exports

if TYPE_CHECKING:
    from expo_ray.checkpoints.atomic_io import (
        atomic_write_bytes,
        atomic_write_json,
        atomic_write_text,
    )
    from expo_ray.checkpoints.checkpoint import Checkpoint
    from expo_ray.checkpoints.digests import ContentDigest, WeightsDigest, weights_digest
    from expo_ray.checkpoints.header import TensorRef
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
    "read_tensor",
    "weights_digest",
]

__getattr__ = lazy_exports(
    __name__,
    {
        "Checkpoint": "checkpoint",
        "TensorRef": "header",
        "ContentDigest": "digests",
        "WeightsDigest": "digests",
        "atomic_write_bytes": "atomic_io",
        "atomic_write_json": "atomic_io",
        "atomic_write_text": "atomic_io",
        "iter_tensors": "tensors",
        "read_tensor": "tensors",
        "weights_digest": "digests",
    },
)
