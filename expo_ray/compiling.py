"""What compiled arithmetic has in common: it is trusted after a probe, and reads values as bits.

Of numba, which is an extra and is imported when asked.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from expo_ray.extras import install_command

_logger = logging.getLogger(__name__)
Compiled = TypeVar("Compiled")


def trusted(
    what: str, make: Callable[[], Compiled], gives_other_bits: Callable[[Compiled], bool]
) -> Compiled | None:
    """Return compiled code that gave the bits of the plain arithmetic; None where there is none.

    Args:
        what: It computes, for the log.
        make: Builds it; raises ImportError without numba.
        gives_other_bits: Compares it with the plain arithmetic on a probe.
    """
    try:
        made = make()
    except ImportError:
        _logger.info("%s: computed without numba: %s", what, install_command("fast"))
        return None
    if gives_other_bits(made):
        _logger.warning("%s: compiled arithmetic differs on this processor and is not used", what)
        return None
    return made


class BitCasts(NamedTuple):
    """For use in compiled functions."""

    as_float: Any
    """From the 32 bits to the float32 that they are."""
    as_bits: Any
    """From a float32 to its 32 bits."""
    add: Any
    """A sum that may be reordered, so that the loop around it uses vectors."""


def intrinsic_of(source: Any, target: Any, emit: Callable[[Any, Any], Any]) -> Any:
    """Return a compiled function of one value that LLVM instructions make.

    Args:
        source: The numba type of the value.
        target: The numba type of the result.
        emit: Takes the builder and the value, returns the result.
    """
    from numba.extending import intrinsic

    @intrinsic  # type: ignore[untyped-decorator]
    def cast(typing_context: Any, value: Any) -> Any:
        def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return emit(builder, arguments[0])

        return target(source), code

    return cast


@functools.cache
def bit_casts() -> BitCasts:
    """Return what reads float32 values as bits and back.

    Raises:
        ImportError: numba is not installed.
    """
    import numba
    from llvmlite import ir

    single, i32 = ir.FloatType(), ir.IntType(32)

    # The flags hold for the instructions of this function alone, not for those around it.
    @numba.njit(fastmath={"reassoc", "nsz"})  # type: ignore[untyped-decorator]
    def add(total: Any, value: Any) -> Any:
        return total + value

    return BitCasts(
        intrinsic_of(numba.uint32, numba.float32, lambda b, v: b.bitcast(v, single)),
        intrinsic_of(numba.float32, numba.uint32, lambda b, v: b.bitcast(v, i32)),
        add,
    )
