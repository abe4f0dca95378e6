"""What is learnt about a tensor on its way through N checkpoints, while their bytes pass by.

Shape legend: N checkpoints, B elements of a block. Changes to the first checkpoint are taken in
float32 (float64 where the files are), their scalar products are summed in float64.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from expo_ray.extrapolation.arithmetic.statistics import count_different, count_nonfinite

_BLOCK_VALUES = 1 << 20
_MIN_BLOCK, _MAX_BLOCK = 2048, 65_536
# Bits behind the leading one: neighbours of x lie 2 ** (exponent of x - bits) apart.
_FRACTION_BITS = {torch.bfloat16: 7, torch.float16: 10, torch.float32: 23, torch.float64: 52}
_EXPONENT_MASK = 0x7F80_0000
# Values of a block that the expected rounding error is estimated from.
_ROUNDING_SAMPLES = 4096


class NonFiniteCheckpoint(ValueError):  # noqa: N818  its name says what was found
    """A checkpoint holds NaN or infinity."""

    def __init__(self, index: int, count: int) -> None:
        super().__init__(f"checkpoint {index}: {count} values that are not finite")
        self.index = index
        self.count = count


class PathSums:
    """Sums over the elements of one tensor, or over a part of them."""

    def __init__(self, num_checkpoints: int) -> None:
        self.num_elements = 0
        self.gram = np.zeros((num_checkpoints, num_checkpoints))
        """[N, N], scalar products of the changes to the first checkpoint."""
        self.rounding = np.zeros(num_checkpoints)
        """[N], the squared error that is expected where exact values were rounded to the dtype of
        the files: a twelfth of the squared distance between neighbouring numbers."""
        self.num_moved = np.zeros(num_checkpoints - 1, dtype=np.int64)
        """[N - 1], elements whose bits differ from those of the checkpoint before."""

    def add(self, other: PathSums) -> None:
        """Add the sums of another part of the same tensor."""
        self.num_elements += other.num_elements
        self.gram += other.gram
        self.rounding += other.rounding
        self.num_moved += other.num_moved

    def packed(self) -> dict[str, Any]:
        """Return small arrays that travel between processes: of the Gram matrix one triangle."""
        return {
            "num_elements": self.num_elements,
            "gram": self.gram[np.triu_indices(len(self.gram))],
            "rounding": self.rounding,
            "num_moved": self.num_moved,
        }

    @classmethod
    def unpacked(cls, table: dict[str, Any]) -> PathSums:
        """Return what `packed` made small."""
        found = cls(len(table["rounding"]))
        found.num_elements = table["num_elements"]
        upper = np.zeros_like(found.gram)
        upper[np.triu_indices(len(upper))] = table["gram"]
        found.gram = upper + np.triu(upper, 1).T
        found.rounding = table["rounding"]
        found.num_moved = table["num_moved"]
        return found


def measure_path(values: Sequence[torch.Tensor]) -> PathSums:
    """Measure a run of elements in all checkpoints, in blocks that fit the processor's cache.

    Args:
        values: N flat tensors of one length and dtype, as they are stored.

    Raises:
        NonFiniteCheckpoint: One of them holds NaN or infinity.
    """
    sums = PathSums(len(values))
    step = max(_MIN_BLOCK, min(_MAX_BLOCK, _BLOCK_VALUES // len(values)))
    step = min(step, max(1, values[0].numel()))
    dtype = torch.float64 if values[0].dtype == torch.float64 else torch.float32
    rows = torch.empty(2, step, dtype=dtype)
    # Made once: fresh pages for each block would take longer than the arithmetic.
    changes = torch.empty(len(values), step, dtype=torch.float64)
    for start in range(0, values[0].numel(), step):
        stored = [side[start : start + step] for side in values]
        number = stored[0].numel()
        _add_block(sums, stored, rows[:, :number], changes[:, :number])
    return sums


def _add_block(
    sums: PathSums, stored: Sequence[torch.Tensor], rows: torch.Tensor, changes_nb: torch.Tensor
) -> None:
    first, change = rows
    first.copy_(stored[0])
    for index, side in enumerate(stored):
        change.copy_(side)
        change.sub_(first)
        changes_nb[index].copy_(change)
    gram = (changes_nb @ changes_nb.T).numpy()
    if not np.isfinite(gram).all():
        _refuse_nonfinite(stored)
    sums.gram += gram
    sums.num_elements += stored[0].numel()
    sums.rounding += _rounding(stored)
    for index, (before, after) in enumerate(itertools.pairwise(stored)):
        sums.num_moved[index] += count_different(before, after)


def _rounding(stored: Sequence[torch.Tensor]) -> np.ndarray[Any, np.dtype[Any]]:
    number = stored[0].numel()
    stride = max(1, number // _ROUNDING_SAMPLES)
    values_nb = torch.stack([side[::stride] for side in stored]).float()
    powers_nb = (values_nb.view(torch.int32) & _EXPONENT_MASK).view(torch.float32).double()
    scale = 2.0 ** (-2 * _FRACTION_BITS[stored[0].dtype]) / 12 * number
    squares: np.ndarray[Any, np.dtype[Any]] = powers_nb.square_().mean(dim=1).mul_(scale).numpy()
    return squares


def _refuse_nonfinite(stored: Sequence[torch.Tensor]) -> None:
    for index, row in enumerate(stored):
        count = count_nonfinite(row)
        if count:
            raise NonFiniteCheckpoint(index, count)
