"""The two halves of the formula on a block, plain or compiled; delta lies between them."""

from __future__ import annotations

from typing import Protocol

import torch

from expo_ray.extrapolation.arithmetic.formula import BLOCK_ELEMENTS, Block, Workspace
from expo_ray.extrapolation.arithmetic.fused_kernel import FusedKernel
from expo_ray.extrapolation.arithmetic.statistics import (
    DeltaSums,
    OutputSums,
    count_nonfinite,
    count_overflows,
    measure_inputs,
    measure_output,
)


class Halves(Protocol):
    """What a thread works with, a block at a time; None says that another must do the block."""

    delta: torch.Tensor
    """Of the block, in the compute dtype; what changes it changes the output."""

    def load(
        self, initial: torch.Tensor, aligned: torch.Tensor, base: torch.Tensor
    ) -> DeltaSums | None:
        """Subtract and measure.

        Args:
            initial: At most BLOCK_ELEMENTS values in the dtype of the file.
            aligned: As many.
            base: As many, of what delta is added to; aligned itself where nothing else is.
        """

    def write(self, alpha: float, target: torch.Tensor) -> OutputSums | None:
        """Add alpha * delta to the base, round into the target and count."""

    def count_overflows(self, target: torch.Tensor) -> int:
        """Count written values that are not finite though all inputs are."""


class PlainHalves:
    """Torch, an operation after the other; does every block."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._space = Workspace(dtype)
        self._block: Block = self._space.load(*[torch.empty(0, dtype=dtype)] * 2)
        self._base = self.delta = self._block.delta

    def load(self, initial: torch.Tensor, aligned: torch.Tensor, base: torch.Tensor) -> DeltaSums:
        """Subtract and measure."""
        onto = None if base is aligned else base
        self._block = self._space.load(initial, aligned, onto)
        self._base, self.delta = base, self._block.delta
        sums = measure_inputs(self._block, initial, aligned)
        if onto is not None:
            sums.num_nonfinite += count_nonfinite(onto)
        return sums

    def subtract(self, initial: torch.Tensor, aligned: torch.Tensor) -> torch.Tensor:
        """Return delta, in a buffer that the next block takes."""
        return self._space.load(initial, aligned).delta

    def write(self, alpha: float, target: torch.Tensor) -> OutputSums:
        """Add alpha * delta to the base, round into the target and count."""
        self._block.write(alpha, target)
        return measure_output(target, self._base)

    def count_overflows(self, target: torch.Tensor) -> int:
        """Count written values that are not finite though all inputs are."""
        return count_overflows(self._block, target)


class CompiledHalves:
    """One compiled pass each; hands back what is not finite.

    Args:
        first: Of `Steps.DELTA`.
        second: Of `Steps.OUTPUT`; None where nothing is written.
    """

    def __init__(self, first: FusedKernel, second: FusedKernel | None) -> None:
        self._first, self._second = first, second
        self._deltas = torch.empty(BLOCK_ELEMENTS)
        self._base = self.delta = self._deltas[:0]

    def load(
        self, initial: torch.Tensor, aligned: torch.Tensor, base: torch.Tensor
    ) -> DeltaSums | None:
        """Subtract and measure."""
        self._base, self.delta = base, self._deltas[: aligned.numel()]
        return self._first.run(initial, aligned, [self.delta], [1.0])

    def write(self, alpha: float, target: torch.Tensor) -> OutputSums | None:
        """Add alpha * delta to the base, round into the target and count."""
        if self._second is None:
            return None
        sums = self._second.run(self.delta, self._base, [target], [alpha], measures=False)
        return None if sums is None else sums.outputs[0]

    def count_overflows(self, target: torch.Tensor) -> int:
        """Return 0: what is not finite is handed back."""
        return 0
