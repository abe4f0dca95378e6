"""The formula and its statistics for bfloat16 in one pass, compiled by numba where it is installed.

An accelerator, never another arithmetic: a kernel is used only after it gave the bits of
`formula.Workspace` on a probe of all kinds of values, and it hands back every chunk that holds
anything out of the ordinary (NaN, infinity, overflow), which then takes the plain path.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from expo_ray.extrapolation.arithmetic.formula import BLOCK_ELEMENTS, Workspace
from expo_ray.extrapolation.arithmetic.statistics import DeltaSums, OutputSums
from expo_ray.extras import install_command

RUN_ELEMENTS = 4096
_INFINITY = 0x7F80

Bits = npt.NDArray[np.uint16]
Kernel = Callable[[Bits, Bits, Bits, np.float32, npt.NDArray[np.float64]], None]
_logger = logging.getLogger(__name__)
_lock = threading.Lock()


class FusedKernel:
    """Works on runs of bfloat16 values given as their bits, without the interpreter's lock."""

    def __init__(self, measure: Kernel, measure_and_write: Kernel, write: Kernel) -> None:
        self._measure = measure
        self._measure_and_write = measure_and_write
        self._write = write

    def run(
        self,
        initial: Bits,
        aligned: Bits,
        targets: Sequence[Bits],
        alphas: Sequence[float],
        *,
        measures: bool = True,
    ) -> DeltaSums | None:
        """Fill the targets and return the statistics; None where the plain path must do it.

        Args:
            initial: Any number of values.
            aligned: As many.
            targets: One per alpha, as many each.
            alphas: Rounded to float32.
            measures: Whether the inputs are measured; an input that is not finite shows in the
                outputs either way.
        """
        inputs = np.empty(7, dtype=np.float64)
        sums = DeltaSums(num_elements=aligned.size)
        if not targets:
            self._measure(initial, aligned, aligned, np.float32(0), inputs)
        for index, (target, alpha) in enumerate(zip(targets, alphas, strict=True)):
            found = np.empty_like(inputs) if index else inputs
            kernel = self._measure_and_write if measures and not index else self._write
            kernel(initial, aligned, target, np.float32(alpha), found)
            if found[5] >= _INFINITY:
                return None
            max_abs = float(np.array([int(found[5]) << 16], np.uint32).view(np.float32)[0])
            sums.outputs.append(OutputSums(max_abs=max_abs, num_changed=int(found[6])))
        if not np.isfinite(inputs[:4]).all():
            return None
        sums.initial_squares, sums.aligned_squares, sums.delta_squares = map(float, inputs[:3])
        sums.max_delta = float(inputs[3])
        sums.num_moved = int(inputs[4])
        return sums


def fused_kernel(num_outputs: int, *, measures: bool = True) -> FusedKernel | None:
    """Return the kernel of this process; None where numba is missing or gives other bits.

    Args:
        num_outputs: How many targets it will fill.
        measures: Whether it will measure the inputs. A variant that is not asked for is not
            compiled: each takes a worker a third of a second.
    """
    with _lock:
        return _build(min(num_outputs, 2), measures)


@functools.cache
def _build(num_targets: int, measures: bool) -> FusedKernel | None:
    try:
        kernel = FusedKernel(
            measure=_compile(measures=True, writes=False),
            measure_and_write=_compile(measures=True, writes=True),
            write=_compile(measures=False, writes=True),
        )
    except ImportError:
        _logger.info("the plain arithmetic is used without numba: %s", install_command("fast"))
        return None
    if num_targets and _gives_other_bits(kernel, num_targets, measures):
        _logger.warning("the compiled arithmetic differs on this processor and is not used")
        return None
    return kernel


def _gives_other_bits(kernel: FusedKernel, num_targets: int, measures: bool) -> bool:
    generator = np.random.Generator(np.random.PCG64(0))
    # All bit patterns up to 1e16 (the sum of squares of all larger ones overflows), and the
    # neighbourhoods that real pairs have.
    every = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16)
    every = every[(every & 0x7FFF) < 0x5A00]
    near = (every + generator.integers(0, 3, every.size)).astype(np.uint16)
    for initial in (generator.permutation(every), near):
        for alpha in (0.3, -1.0, 7.7):
            targets = [np.empty_like(every) for _ in range(num_targets)]
            alphas = [alpha] * num_targets
            if kernel.run(initial, every, targets, alphas, measures=measures) is None:
                return True
            block = Workspace(torch.float32).load(_bfloat16(initial), _bfloat16(every))
            expected = torch.empty(every.size, dtype=torch.bfloat16)
            block.write(float(np.float32(alpha)), expected)
            bits = expected.view(torch.int16).numpy().view(np.uint16)
            if not all(np.array_equal(bits, target) for target in targets):
                return True
    return every.size > BLOCK_ELEMENTS


def _bfloat16(bits: Bits) -> torch.Tensor:
    return torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16)


def _compile(measures: bool, writes: bool) -> Kernel:
    """Build one kernel; sums may be reordered to use vectors, the formula may not."""
    import numba
    from llvmlite import ir
    from numba.extending import intrinsic

    def reinterpret(source: Any, target: Any, llvm_type: Any) -> Any:
        @intrinsic  # type: ignore[untyped-decorator]
        def cast(typing_context: Any, value: Any) -> Any:
            def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
                return builder.bitcast(arguments[0], llvm_type)

            return target(source), code

        return cast

    as_float = reinterpret(numba.uint32, numba.float32, ir.FloatType())
    as_bits = reinterpret(numba.float32, numba.uint32, ir.IntType(32))
    u32, f32, u16 = np.uint32, np.float32, np.uint16

    # The flags hold for the instructions of this function alone, not for the formula below.
    @numba.njit(fastmath={"reassoc", "nsz"})  # type: ignore[untyped-decorator]
    def add(total: Any, value: Any) -> Any:
        return total + value

    @numba.njit(nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
    def kernel(initial: Any, aligned: Any, target: Any, alpha: Any, found: Any) -> None:
        max_delta = max_output = num_moved = num_changed = u32(0)
        found[:] = 0
        for start in range(0, aligned.size, RUN_ELEMENTS):
            # Sums of few values in float32, sums of sums in float64.
            initial_squares = aligned_squares = delta_squares = f32(0)
            stop = start + RUN_ELEMENTS
            # Slices, because an index that might be negative keeps the loop from using vectors.
            initial_run, aligned_run = initial[start:stop], aligned[start:stop]
            target_run = target[start:stop]
            for k in range(aligned_run.size):
                first, second = u32(initial_run[k]), u32(aligned_run[k])
                before, after = as_float(u32(first << u32(16))), as_float(u32(second << u32(16)))
                delta = after - before
                if measures:
                    initial_squares = add(initial_squares, before * before)
                    aligned_squares = add(aligned_squares, after * after)
                    delta_squares = add(delta_squares, delta * delta)
                    size = u32(as_bits(delta) & u32(0x7FFFFFFF))
                    max_delta = size if size > max_delta else max_delta
                    num_moved = u32(num_moved + u32(first != second))
                if writes:
                    bits = as_bits(alpha * delta + after)
                    # Round to nearest even, as a cast to bfloat16 does for all but NaN.
                    odd = u32(u32(bits >> u32(16)) & u32(1))
                    result = u32(u32(bits + u32(u32(0x7FFF) + odd)) >> u32(16))
                    target_run[k] = u16(result)
                    size = u32(result & u32(0x7FFF))
                    max_output = size if size > max_output else max_output
                    num_changed = u32(num_changed + u32(result != second))
            found[0] += initial_squares
            found[1] += aligned_squares
            found[2] += delta_squares
        found[3] = as_float(max_delta)
        found[4] = num_moved
        found[5] = max_output
        found[6] = num_changed

    compiled: Kernel = kernel
    return compiled
