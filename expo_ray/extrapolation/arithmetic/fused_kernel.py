"""The formula and its statistics in one pass, or in two, compiled by numba where it is installed.

For bfloat16, float16 and float32 in any mixture, one kernel for each mixture that occurs. An
accelerator, never another arithmetic: a kernel is used only after it gave the bits of
`formula.Workspace` on a probe of all kinds of values, and it hands back every chunk that holds
anything out of the ordinary (NaN, infinity, overflow), which then takes the plain path.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from enum import Enum, auto
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from expo_ray.compiling import bit_casts, trusted
from expo_ray.extrapolation.arithmetic.compiled_casts import (
    BITS,
    INFINITY,
    Bits,
    are_fused,
    bits_of,
    max_abs_of,
    reader_of,
    values_of,
    writer_of,
)
from expo_ray.extrapolation.arithmetic.formula import BLOCK_ELEMENTS, Workspace
from expo_ray.extrapolation.arithmetic.statistics import DeltaSums, OutputSums

RUN_ELEMENTS = 4096
# Whose results for the alphas of the probe fit float16.
_PROBE_LIMIT_HALF = 3000.0

Kernel = Callable[[Bits, Bits, Bits, np.float32, npt.NDArray[np.float64]], None]
_lock = threading.Lock()


class Dtypes(NamedTuple):
    """The mixture that a kernel is compiled for."""

    initial: torch.dtype
    aligned: torch.dtype
    target: torch.dtype


class Steps(Enum):
    """What of the formula a kernel does: two passes let others change delta in between."""

    ALL = auto()
    DELTA = auto()
    """The target, float32, is aligned - initial."""
    OUTPUT = auto()
    """Delta, float32, stands in the place of initial, and the base in that of aligned."""


class FusedKernel:
    """Works on runs of values given as tensors, without the interpreter's lock."""

    def __init__(self, measure: Kernel, measure_and_write: Kernel, write: Kernel) -> None:
        self._measure = measure
        self._measure_and_write = measure_and_write
        self._write = write

    def run(
        self,
        initial: torch.Tensor,
        aligned: torch.Tensor,
        targets: Sequence[torch.Tensor],
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
        inputs = np.empty(8, dtype=np.float64)
        sums = DeltaSums(num_elements=aligned.numel())
        before, after = bits_of(initial), bits_of(aligned)
        if not targets:
            self._measure(before, after, after, np.float32(0), inputs)
        for index, (target, alpha) in enumerate(zip(targets, alphas, strict=True)):
            found = np.empty_like(inputs) if index else inputs
            kernel = self._measure_and_write if measures and not index else self._write
            kernel(before, after, bits_of(target), np.float32(alpha), found)
            if found[5] >= INFINITY[target.dtype] or found[7] >= INFINITY[torch.float32]:
                return None
            max_abs = max_abs_of(found[5], target.dtype)
            sums.outputs.append(OutputSums(max_abs=max_abs, num_changed=int(found[6])))
        if not np.isfinite(inputs[:4]).all():
            return None
        sums.initial_squares, sums.aligned_squares, sums.delta_squares = map(float, inputs[:3])
        sums.max_delta = float(inputs[3])
        sums.num_moved = int(inputs[4])
        return sums


def fused_kernel(
    dtypes: Dtypes, num_outputs: int, *, measures: bool = True, steps: Steps = Steps.ALL
) -> FusedKernel | None:
    """Return the kernel of this process; None where there is none, or it gives other bits.

    Args:
        dtypes: What it reads and writes.
        num_outputs: How many targets it will fill.
        measures: Whether it will measure the inputs. A variant that is not asked for is not
            compiled: each takes a worker a third of a second.
        steps: What it does.
    """
    with _lock:
        return _build(dtypes, min(num_outputs, 2), measures, steps)


@functools.cache
def _build(
    dtypes: Dtypes, num_targets: int, measures: bool, steps: Steps = Steps.ALL
) -> FusedKernel | None:
    if not are_fused(*dtypes):
        return None

    def make() -> FusedKernel:
        return FusedKernel(
            measure=_compile(dtypes, steps, measures=True, writes=False),
            measure_and_write=_compile(dtypes, steps, measures=True, writes=True),
            write=_compile(dtypes, steps, measures=False, writes=True),
        )

    def gives_other_bits(kernel: FusedKernel) -> bool:
        return bool(num_targets) and _gives_other_bits(kernel, dtypes, num_targets, measures, steps)

    return trusted("the formula", make, gives_other_bits)


def _gives_other_bits(
    kernel: FusedKernel, dtypes: Dtypes, num_targets: int, measures: bool, steps: Steps
) -> bool:
    for before, after in _probes(dtypes):
        for alpha in (0.3, -1.0, 7.7):
            targets = [torch.empty(after.numel(), dtype=dtypes.target) for _ in range(num_targets)]
            alphas = [alpha] * num_targets
            if kernel.run(before, after, targets, alphas, measures=measures) is None:
                return True
            block = Workspace(torch.float32).load(before, after)
            if steps is Steps.OUTPUT:
                block.delta.copy_(before)
            expected = torch.empty_like(targets[0])
            if steps is Steps.DELTA:
                expected.copy_(block.delta)
            else:
                block.write(float(np.float32(alpha)), expected)
            bits = bits_of(expected)
            if not all(np.array_equal(bits, bits_of(target)) for target in targets):
                return True
    return False


def _probes(dtypes: Dtypes) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return pairs of all kinds of values: apart from each other, and as near as real pairs are."""
    generator = np.random.Generator(np.random.PCG64(0))
    aligned = _probe(dtypes.aligned, dtypes)
    apart = generator.permutation(_probe(dtypes.initial, dtypes))
    close = values_of(aligned, dtypes.aligned).to(dtypes.initial)
    near = bits_of(close) + generator.integers(0, 3, aligned.size).astype(BITS[dtypes.initial])
    after = values_of(aligned, dtypes.aligned)
    return [(values_of(before, dtypes.initial), after) for before in (apart, near)]


def _probe(dtype: torch.dtype, dtypes: Dtypes) -> Bits:
    """Return bits of BLOCK_ELEMENTS values of every kind and sign.

    All that a dtype of 16 bits has, up to 1e16: the sum of squares of all larger ones overflows.
    """
    if dtype == torch.float32:
        step = (1 << 32) // BLOCK_ELEMENTS
        jitter = np.random.Generator(np.random.PCG64(1)).integers(0, step, BLOCK_ELEMENTS)
        every = (np.arange(BLOCK_ELEMENTS) * step + jitter).astype(np.uint32)
    else:
        every = np.arange(BLOCK_ELEMENTS).astype(np.uint16)
    sizes = values_of(every, dtype).float().abs()
    limit = _PROBE_LIMIT_HALF if torch.float16 in dtypes else 1e16
    return np.resize(every[(sizes < limit).numpy()], BLOCK_ELEMENTS)


def _compile(dtypes: Dtypes, steps: Steps, *, measures: bool, writes: bool) -> Kernel:
    """Build one kernel; sums may be reordered to use vectors, the formula may not."""
    import numba

    u32, f32 = np.uint32, np.float32
    as_float, as_bits, add = bit_casts()
    read_initial, read_aligned = reader_of(dtypes.initial), reader_of(dtypes.aligned)
    write = writer_of(dtypes.target)
    unsigned = u32(0x7FFFFFFF if dtypes.target == torch.float32 else 0x7FFF)
    are_one_dtype = dtypes.initial == dtypes.aligned
    is_kept = dtypes.aligned == dtypes.target
    takes_delta, gives_delta = steps is Steps.OUTPUT, steps is Steps.DELTA
    # Rounding could turn a NaN with a long payload into a number.
    may_hold_payloads = dtypes[:2] != (torch.bfloat16, torch.bfloat16)

    @numba.njit(nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
    def kernel(initial: Any, aligned: Any, target: Any, alpha: Any, found: Any) -> None:
        max_delta = max_output = max_exact = num_moved = num_changed = u32(0)
        found[:] = 0
        for start in range(0, aligned.size, RUN_ELEMENTS):
            # Sums of few values in float32, sums of sums in float64.
            initial_squares = aligned_squares = delta_squares = f32(0)
            stop = start + RUN_ELEMENTS
            # Slices, because an index that might be negative keeps the loop from using vectors.
            initial_run, aligned_run = initial[start:stop], aligned[start:stop]
            target_run = target[start:stop]
            for k in range(aligned_run.size):
                first, second = initial_run[k], aligned_run[k]
                before, after = read_initial(first), read_aligned(second)
                delta = before if takes_delta else after - before
                if measures:
                    initial_squares = add(initial_squares, before * before)
                    aligned_squares = add(aligned_squares, after * after)
                    delta_squares = add(delta_squares, delta * delta)
                    size = u32(as_bits(delta) & u32(0x7FFFFFFF))
                    max_delta = size if size > max_delta else max_delta
                    has_moved = first != second if are_one_dtype else size != u32(0)
                    num_moved = u32(num_moved + u32(has_moved))
                if writes:
                    exact = delta if gives_delta else alpha * delta + after
                    result = write(exact)
                    target_run[k] = result
                    size = u32(u32(result) & unsigned)
                    max_output = size if size > max_output else max_output
                    if may_hold_payloads:
                        size = u32(as_bits(exact) & u32(0x7FFFFFFF))
                        max_exact = size if size > max_exact else max_exact
                    if not gives_delta:
                        reference = second if is_kept else write(after)
                        num_changed = u32(num_changed + u32(result != reference))
            found[0] += initial_squares
            found[1] += aligned_squares
            found[2] += delta_squares
        found[3] = as_float(max_delta)
        found[4] = num_moved
        found[5] = max_output
        found[6] = num_changed
        found[7] = max_exact

    compiled: Kernel = kernel
    return compiled
