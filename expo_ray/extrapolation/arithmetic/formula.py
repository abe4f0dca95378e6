"""The arithmetic, on blocks that fit the processor's cache.

    output = (base.float() + alpha * (aligned.float() - initial.float())).to(output_dtype)

The base is aligned itself, or another checkpoint of the family (`--onto`).

Three separately rounded operations and one cast. `torch.lerp` and `add(alpha=)` may fuse the
product with the sum, which changes bits; so does arithmetic in bfloat16. Casts round to nearest,
ties to even. Where a side is float64, so is the arithmetic. Large tensors of 16 or 32 bits take
one compiled pass in `fused_kernel`, or two where delta is changed in between, which are compared
with this file bit for bit before they are used.
"""

from __future__ import annotations

import torch

BLOCK_ELEMENTS = 65_536


class Workspace:
    """Preallocated blocks of one compute dtype; one per thread."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.initial = torch.empty(BLOCK_ELEMENTS, dtype=dtype)
        self.aligned = torch.empty(BLOCK_ELEMENTS, dtype=dtype)
        self.delta = torch.empty(BLOCK_ELEMENTS, dtype=dtype)
        self.output = torch.empty(BLOCK_ELEMENTS, dtype=dtype)
        self.onto = torch.empty(BLOCK_ELEMENTS, dtype=dtype)

    def load(
        self, initial: torch.Tensor, aligned: torch.Tensor, onto: torch.Tensor | None = None
    ) -> Block:
        """Bring one block of all sides into the compute dtype and subtract.

        Args:
            initial: At most BLOCK_ELEMENTS values in the dtype of the file.
            aligned: As many.
            onto: As many, of what delta is added to; None where that is aligned.
        """
        n = aligned.numel()
        block = Block(self.initial[:n], self.aligned[:n], self.delta[:n], self.output[:n])
        if onto is not None:
            block.base = self.onto[:n]
            block.base.copy_(onto)
        block.initial.copy_(initial)
        block.aligned.copy_(aligned)
        torch.sub(block.aligned, block.initial, out=block.delta)
        return block


class Block:
    """Views of a workspace that hold one block."""

    __slots__ = ("aligned", "base", "delta", "initial", "output")

    def __init__(
        self,
        initial: torch.Tensor,
        aligned: torch.Tensor,
        delta: torch.Tensor,
        output: torch.Tensor,
    ) -> None:
        self.initial = initial
        self.aligned = aligned
        self.base = aligned
        self.delta = delta
        self.output = output

    def write(self, alpha: float, target: torch.Tensor) -> None:
        """Compute the output for one alpha and round it once into the target's dtype.

        Args:
            alpha: Rounded to float32 before, where the compute dtype is float32.
            target: As many values as the block, in the output dtype.
        """
        torch.mul(self.delta, alpha, out=self.output)
        self.output.add_(self.base)
        target.copy_(self.output)
