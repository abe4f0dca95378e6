"""What takes the place of delta in a trajectory: a sum over the changes of its checkpoints.

    direction = sum_i weight_i * (checkpoint_i.float() - first.float())

The weights of a direction have the sum 0, so that the weight of the first checkpoint says nothing
more. Of models that differ by a thousandth of themselves the changes are small: they are taken
first, as the formula takes delta, and summed in float32. Over 100 checkpoints that is off by 1e-7
of the direction (one rounding to float32 is 3e-8 of it); a sum of the models themselves in float32
by 5e-5. What never moved stays where it is. Products and sums are rounded apart, in the order of
the steps: the bits are the same on every processor. Where files are float64, so is the sum.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a driver plans without it: torch takes 200 MB and seconds
    import torch

# Blocks that fit the processor's cache, large enough not to wait for the interpreter.
SUM_BLOCK_ELEMENTS = 65_536


@dataclass(frozen=True, kw_only=True, slots=True)
class Direction:
    """The weights of the checkpoints of a trajectory, in the order of their steps."""

    weights: tuple[float, ...] = ()
    """The same for all tensors; empty where each tensor has its own."""
    by_tensor: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def of(self, name: str) -> tuple[float, ...]:
        """Return the weights of one tensor."""
        return self.weights or self.by_tensor[name]

    def among(self, names: Iterable[str]) -> Direction:
        """Return the direction of some tensors, such as those of one file."""
        if self.weights:
            return self
        return Direction(by_tensor={n: self.by_tensor[n] for n in names if n in self.by_tensor})


class DirectionSums:
    """The sums of one chunk, one per direction; its buffers are used again for the next one."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[torch.dtype, int], torch.Tensor] = {}

    def begin(
        self, first: torch.Tensor, num_directions: int, dtype: torch.dtype
    ) -> list[torch.Tensor]:
        """Return the sums, at zero, and remember the first checkpoint.

        Args:
            first: Its values, in the dtype of the file.
            num_directions: How many sums.
            dtype: Of the arithmetic.
        """
        n = first.numel()
        self._first = self._buffer(dtype, 0, n).copy_(first)
        self._block = self._buffer(dtype, 1, SUM_BLOCK_ELEMENTS)
        self._product = self._buffer(dtype, 2, SUM_BLOCK_ELEMENTS)
        return [self._buffer(dtype, 3 + i, n).zero_() for i in range(num_directions)]

    def add(
        self, sums: Sequence[torch.Tensor], values: torch.Tensor, weights: Sequence[float]
    ) -> None:
        """Add the change of one checkpoint to the sums, with one weight for each of them.

        Args:
            sums: As `begin` returned them.
            values: As many, in the dtype of the file.
            weights: Of this checkpoint in each direction; rounded to float32 before, where the
                arithmetic is float32.
        """
        import torch

        for start in range(0, values.numel(), SUM_BLOCK_ELEMENTS):
            part = slice(start, start + SUM_BLOCK_ELEMENTS)
            raw, first = values[part], self._first[part]
            change, product = self._block[: raw.numel()], self._product[: raw.numel()]
            change.copy_(raw)
            change.sub_(first)
            for total, weight in zip(sums, weights, strict=True):
                torch.mul(change, weight, out=product)
                total[part].add_(product)

    def _buffer(self, dtype: torch.dtype, number: int, num_elements: int) -> torch.Tensor:
        import torch

        found = self._buffers.get((dtype, number))
        if found is None or found.numel() < num_elements:
            found = self._buffers[dtype, number] = torch.empty(num_elements, dtype=dtype)
        return found[:num_elements]
