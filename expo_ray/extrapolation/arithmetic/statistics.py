"""What is learnt about a tensor while its bytes pass by: norms, cosine, lost updates, bad values.

Sums are gathered per block in float32, where the values are in cache anyway, and added in float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from expo_ray.extrapolation.arithmetic.formula import Block

_INTEGERS = {1: np.int8, 2: np.int16, 4: np.int32, 8: np.int64}
_TORCH_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(kw_only=True, slots=True)
class OutputSums:
    """What is counted for one alpha."""

    max_abs: float = 0.0
    num_changed: int = 0
    """Elements that differ from aligned rounded to the output dtype."""
    num_nonfinite: int = 0
    rounding: list[float] = field(default_factory=list)
    """Of FP8 blocks: sums of squares of rounding error, exact values and update."""
    direction: tuple[float, int] | None = None
    """Of a trajectory: sum of the squares of what took the place of delta, and its elements that
    are not zero."""

    def add(self, other: OutputSums) -> None:
        """Add the counts of another part of the same tensor."""
        self.max_abs = max(self.max_abs, other.max_abs)
        self.num_changed += other.num_changed
        self.num_nonfinite += other.num_nonfinite
        if other.rounding:
            before = self.rounding or [0.0] * len(other.rounding)
            self.rounding = [a + b for a, b in zip(before, other.rounding, strict=True)]
        if other.direction is not None:
            squares, num_moved = self.direction or (0.0, 0)
            self.direction = squares + other.direction[0], num_moved + other.direction[1]


@dataclass(kw_only=True, slots=True)
class DeltaSums:
    """Sums over the extrapolated part of one tensor."""

    num_elements: int = 0
    initial_squares: float = 0.0
    aligned_squares: float = 0.0
    delta_squares: float = 0.0
    max_delta: float = 0.0
    num_moved: int = 0
    """Elements in which aligned differs from initial."""
    num_nonfinite: int = 0
    """Input elements that are not finite."""
    num_kept: int | None = None
    """Elements of delta that transforms left different from zero; None without transforms."""
    outputs: list[OutputSums] = field(default_factory=list)

    def add(self, other: DeltaSums) -> None:
        """Add the sums of another part of the same tensor."""
        self.num_elements += other.num_elements
        self.initial_squares += other.initial_squares
        self.aligned_squares += other.aligned_squares
        self.delta_squares += other.delta_squares
        self.max_delta = max(self.max_delta, other.max_delta)
        self.num_moved += other.num_moved
        self.num_nonfinite += other.num_nonfinite
        if other.num_kept is not None:
            self.num_kept = (self.num_kept or 0) + other.num_kept
        for i, output in enumerate(other.outputs):
            if i == len(self.outputs):
                self.outputs.append(OutputSums())
            self.outputs[i].add(output)

    def as_dict(self) -> dict[str, Any]:
        """Return the statistics that do not depend on alpha, JSON-able."""
        initial, aligned, delta = (
            math.sqrt(s) if math.isfinite(s) else None
            for s in (self.initial_squares, self.aligned_squares, self.delta_squares)
        )
        return {
            "num_elements": self.num_elements,
            "initial_norm": initial,
            "aligned_norm": aligned,
            "delta_norm": delta,
            "cosine": _cosine(initial, aligned, delta),
            "max_abs_delta": self.max_delta if math.isfinite(self.max_delta) else None,
            "identical": self.num_moved == 0,
            "num_moved": self.num_moved,
            "num_nonfinite": self.num_nonfinite,
            **({} if self.num_kept is None else {"num_kept_by_transforms": self.num_kept}),
        }

    def output_dict(self, index: int) -> dict[str, Any]:
        """Return the statistics of one output, JSON-able."""
        output = self.outputs[index] if index < len(self.outputs) else OutputSums()
        # An aligned -0.0 comes out as +0.0 and counts as changed: hence the floor at zero.
        num_moved = self.num_moved if self.num_kept is None else self.num_kept
        if output.direction is not None:
            num_moved = output.direction[1]
        lost = max(0, num_moved - output.num_changed)
        found: dict[str, Any] = {
            "max_abs_output": output.max_abs if math.isfinite(output.max_abs) else None,
            "share_lost_to_rounding": lost / self.num_elements if self.num_elements else 0.0,
            "num_nonfinite_output": output.num_nonfinite,
        }
        if output.direction is not None:
            squares = output.direction[0]
            found["direction_norm"] = math.sqrt(squares) if math.isfinite(squares) else None
        if output.rounding:
            keys = ("error_norm", "output_norm", "update_norm")
            norms = map(math.sqrt, output.rounding)
            found["requantization"] = dict(zip(keys, norms, strict=True))
        return found


def measure_inputs(block: Block, initial: torch.Tensor, aligned: torch.Tensor) -> DeltaSums:
    """Measure one loaded block.

    Args:
        block: The values in the compute dtype.
        initial: The same values in the dtype of the file.
        aligned: The same values in the dtype of the file.
    """
    sums = DeltaSums(num_elements=aligned.numel())
    sums.initial_squares = _squares(block.initial)
    sums.aligned_squares = _squares(block.aligned)
    sums.delta_squares = _squares(block.delta)
    if not math.isfinite(sums.initial_squares + sums.aligned_squares):
        bad = ~(torch.isfinite(block.initial) & torch.isfinite(block.aligned))
        sums.num_nonfinite = _count(bad)
    sums.max_delta = _max_abs(block.delta)
    if initial.dtype == aligned.dtype:
        sums.num_moved = count_different(initial, aligned)
    else:
        sums.num_moved = int(np.count_nonzero(block.delta.numpy()))
    return sums


def measure_direction(delta: torch.Tensor) -> tuple[float, int]:
    """Return the squares of what took the place of delta, and its elements that are not zero."""
    return _squares(delta), int(np.count_nonzero(delta.numpy()))


def measure_output(target: torch.Tensor, base: torch.Tensor) -> OutputSums:
    """Measure one computed block right after `Block.write`.

    Args:
        target: The rounded output.
        base: What delta was added to, in the dtype of the file.
    """
    sums = OutputSums(max_abs=_max_abs_by_bits(target))
    if not math.isfinite(sums.max_abs):
        sums.num_nonfinite = count_nonfinite(target)
    reference = base if base.dtype == target.dtype else base.to(target.dtype)
    sums.num_changed = count_different(reference, target)
    return sums


def count_overflows(block: Block, target: torch.Tensor) -> int:
    """Count written values that are not finite though all inputs are."""
    finite = torch.isfinite(block.initial) & torch.isfinite(block.aligned)
    finite &= torch.isfinite(block.base)
    return _count(finite & ~torch.isfinite(target))


def count_nonfinite(values: torch.Tensor) -> int:
    """Count NaN and infinities."""
    return _count(torch.isfinite(values).logical_not_())


def count_different(first: torch.Tensor, second: torch.Tensor) -> int:
    """Count elements of two tensors of one dtype whose bits differ."""
    integer = _INTEGERS[first.element_size()]
    one = first.view(torch.uint8).numpy().view(integer)
    two = second.view(torch.uint8).numpy().view(integer)
    return int(np.count_nonzero(one != two))


def _count(flags: torch.Tensor) -> int:
    # Numpy counts ten times as fast as torch.
    return int(np.count_nonzero(flags.numpy()))


def _squares(values: torch.Tensor) -> float:
    # Of rows, the products are summed pairwise. `dot` adds up rounding errors of 2e-6 on some
    # processors (AMD's, of values with the few digits of float16).
    total = float(torch.linalg.vecdot(values[None], values[None]))
    if not math.isfinite(total):
        # Values above 1e19 overflow the float32 sum without being wrong themselves.
        wide = values.double()
        total = float(torch.dot(wide, wide))
    return total


def _max_abs(values: torch.Tensor) -> float:
    view = values.numpy()
    # numpy's reductions carry NaN along; Python's max() would lose it.
    return float(np.maximum(view.max(), -view.min())) if view.size else 0.0


def _max_abs_by_bits(values: torch.Tensor) -> float:
    """Return the largest magnitude, infinite where a value is infinite or NaN.

    Floats without their sign are ordered like integers. Read as signed, the largest integer is the
    largest positive float; read as unsigned, it is the negative float farthest from zero.
    """
    if not values.numel():
        return 0.0
    integer = _INTEGERS[values.element_size()]
    signed = values.view(torch.uint8).numpy().view(integer)
    sign_bit = 1 << (8 * values.element_size() - 1)
    positive = max(0, int(signed.max()))
    farthest = int(signed.view(f"u{values.element_size()}").max())
    magnitude = max(positive, farthest - sign_bit)
    found = torch.tensor(magnitude, dtype=_TORCH_INTEGERS[values.element_size()])
    largest = float(found.view(values.dtype))
    return largest if math.isfinite(largest) else math.inf


def _cosine(initial: float | None, aligned: float | None, delta: float | None) -> float | None:
    if not initial or not aligned or delta is None:
        return None
    # From the difference and not from the dot product: 1 - cosine is near 1e-6 for real pairs.
    gap = (delta * delta - (initial - aligned) ** 2) / (2 * initial * aligned)
    return max(-1.0, min(1.0, 1.0 - gap))
