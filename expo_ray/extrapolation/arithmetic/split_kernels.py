"""The formula in two compiled passes, for what happens to delta in between.

That is transforms or another base. As of `fused_kernel`: the bits of
`formula.Workspace`, or no answer.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from expo_ray.compiling import bit_casts
from expo_ray.extrapolation.arithmetic.compiled_casts import (
    INFINITY,
    are_fused,
    bits_of,
    max_abs_of,
    reader_of,
    tell_of_numba,
    writer_of,
)
from expo_ray.extrapolation.arithmetic.formula import Workspace
from expo_ray.extrapolation.arithmetic.fused_kernel import RUN_ELEMENTS, Dtypes, probes_of
from expo_ray.extrapolation.arithmetic.statistics import DeltaSums, OutputSums

_logger = logging.getLogger(__name__)
_lock = threading.Lock()


class DeltaKernel:
    """Subtracts runs of values, without the interpreter's lock."""

    def __init__(self, fill: Callable[..., None]) -> None:
        self._fill = fill

    def subtract(self, initial: torch.Tensor, aligned: torch.Tensor, delta: torch.Tensor) -> bool:
        """Fill delta, float32, and tell whether all of it is finite."""
        return bool(np.isfinite(self._run(initial, aligned, delta)[3]))

    def measure(
        self, initial: torch.Tensor, aligned: torch.Tensor, delta: torch.Tensor
    ) -> DeltaSums | None:
        """Fill delta, float32, and return the sums; None where the plain path must do it.

        Only of a kernel that was asked to measure.
        """
        found = self._run(initial, aligned, delta)
        if not np.isfinite(found).all():
            return None
        return DeltaSums(
            num_elements=aligned.numel(),
            initial_squares=float(found[0]),
            aligned_squares=float(found[1]),
            delta_squares=float(found[2]),
            max_delta=float(found[3]),
            num_moved=int(found[4]),
        )

    def _run(
        self, initial: torch.Tensor, aligned: torch.Tensor, delta: torch.Tensor
    ) -> npt.NDArray[np.float64]:
        found = np.empty(5, dtype=np.float64)
        self._fill(bits_of(initial), bits_of(aligned), delta.numpy(), found)
        return found


class OutputKernel:
    """Adds a delta to a base and rounds, without the interpreter's lock."""

    def __init__(self, write: Callable[..., None]) -> None:
        self._write = write

    def write(
        self, delta: torch.Tensor, base: torch.Tensor, target: torch.Tensor, alpha: float
    ) -> OutputSums | None:
        """Fill the target and return its counts; None where the plain path must do it.

        Args:
            delta: Float32.
            base: As many values, in the dtype of the file.
            target: As many, in the output dtype.
            alpha: Rounded to float32.
        """
        found = np.empty(3, dtype=np.float64)
        self._write(delta.numpy(), bits_of(base), bits_of(target), np.float32(alpha), found)
        if found[0] >= INFINITY[target.dtype] or found[2] >= INFINITY[torch.float32]:
            return None
        max_abs = max_abs_of(found[0], target.dtype)
        return OutputSums(max_abs=max_abs, num_changed=int(found[1]))


def delta_kernel(
    initial: torch.dtype, aligned: torch.dtype, *, measures: bool
) -> DeltaKernel | None:
    """Return the kernel of this process; None where there is none, or it gives other bits.

    Args:
        initial: What it reads.
        aligned: What it reads.
        measures: Whether it measures the inputs, too.
    """
    with _lock:
        return _build_delta(initial, aligned, measures)


def output_kernel(base: torch.dtype, target: torch.dtype) -> OutputKernel | None:
    """Return the kernel of this process; None where there is none, or it gives other bits."""
    with _lock:
        return _build_output(base, target)


@functools.cache
def _build_delta(initial: torch.dtype, aligned: torch.dtype, measures: bool) -> DeltaKernel | None:
    try:
        if not are_fused(initial, aligned):
            return None
        kernel = DeltaKernel(_compile_delta(initial, aligned, measures))
    except ImportError:
        tell_of_numba()
        return None
    for before, after in probes_of(Dtypes(initial, aligned, aligned)):
        expected = Workspace(torch.float32).load(before, after).delta
        delta = torch.empty(after.numel())
        fill = kernel.measure if measures else kernel.subtract
        if not fill(before, after, delta) or not _same_bits(delta, expected):
            _warn()
            return None
    return kernel


@functools.cache
def _build_output(base: torch.dtype, target: torch.dtype) -> OutputKernel | None:
    try:
        if not are_fused(base, target):
            return None
        kernel = OutputKernel(_compile_output(base, target))
    except ImportError:
        tell_of_numba()
        return None
    for before, after in probes_of(Dtypes(base, base, target)):
        block = Workspace(torch.float32).load(before, after)
        for alpha in (0.3, -1.0, 7.7):
            found, expected = (torch.empty(after.numel(), dtype=target) for _ in range(2))
            block.write(float(np.float32(alpha)), expected)
            counted = kernel.write(block.delta, after, found, alpha)
            if counted is None or not _same_bits(found, expected):
                _warn()
                return None
    return kernel


def _same_bits(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return np.array_equal(bits_of(found), bits_of(expected))


def _warn() -> None:
    _logger.warning("the compiled arithmetic differs on this processor and is not used")


def _compile_delta(initial: torch.dtype, aligned: torch.dtype, measures: bool) -> Any:
    """Build the first half; sums may be reordered to use vectors, the formula may not."""
    import numba

    u32, f32 = np.uint32, np.float32
    as_float, as_bits, add = bit_casts()
    read_initial, read_aligned = reader_of(initial), reader_of(aligned)
    are_one_dtype = initial == aligned

    @numba.njit(nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
    def kernel(initial: Any, aligned: Any, target: Any, found: Any) -> None:
        max_delta = num_moved = u32(0)
        found[:] = 0
        for start in range(0, aligned.size, RUN_ELEMENTS):
            initial_squares = aligned_squares = delta_squares = f32(0)
            stop = start + RUN_ELEMENTS
            initial_run, aligned_run = initial[start:stop], aligned[start:stop]
            target_run = target[start:stop]
            for k in range(aligned_run.size):
                first, second = initial_run[k], aligned_run[k]
                before, after = read_initial(first), read_aligned(second)
                delta = after - before
                target_run[k] = delta
                size = u32(as_bits(delta) & u32(0x7FFFFFFF))
                max_delta = size if size > max_delta else max_delta
                if measures:
                    initial_squares = add(initial_squares, before * before)
                    aligned_squares = add(aligned_squares, after * after)
                    delta_squares = add(delta_squares, delta * delta)
                    has_moved = first != second if are_one_dtype else size != u32(0)
                    num_moved = u32(num_moved + u32(has_moved))
            found[0] += initial_squares
            found[1] += aligned_squares
            found[2] += delta_squares
        found[3] = as_float(max_delta)
        found[4] = num_moved

    return kernel


def _compile_output(base: torch.dtype, target: torch.dtype) -> Any:
    """Build the second half."""
    import numba

    u32 = np.uint32
    as_bits = bit_casts().as_bits
    read, write = reader_of(base), writer_of(target)
    unsigned = u32(0x7FFFFFFF if target == torch.float32 else 0x7FFF)
    is_kept = base == target

    @numba.njit(nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
    def kernel(deltas: Any, bases: Any, targets: Any, alpha: Any, found: Any) -> None:
        max_output = num_changed = max_exact = u32(0)
        for start in range(0, bases.size, RUN_ELEMENTS):
            stop = start + RUN_ELEMENTS
            delta_run, base_run = deltas[start:stop], bases[start:stop]
            target_run = targets[start:stop]
            for k in range(base_run.size):
                stored = base_run[k]
                before = read(stored)
                exact = alpha * delta_run[k] + before
                result = write(exact)
                target_run[k] = result
                size = u32(u32(result) & unsigned)
                max_output = size if size > max_output else max_output
                # Rounding could turn a NaN with a long payload into a number.
                size = u32(as_bits(exact) & u32(0x7FFFFFFF))
                max_exact = size if size > max_exact else max_exact
                reference = stored if is_kept else write(before)
                num_changed = u32(num_changed + u32(result != reference))
        found[0] = max_output
        found[1] = num_changed
        found[2] = max_exact

    return kernel
