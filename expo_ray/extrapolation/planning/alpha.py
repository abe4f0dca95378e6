"""Alpha: how it is read, rounded, compared and written. Light: no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from expo_ray.errors import ConfigError, argument

ALIGNED_ALPHA: Final = 0.0
"""Alpha 0: the aligned model itself. It is a candidate of every choice of alpha, all others are
compared with it, and it is what is kept where none is better. A choice (`workflow/stages.py`)
writes nothing for it: ALIGNED is there already. `extrapolate --alpha 0` writes it by the
formula, as any other: in the dtype of the files equal to ALIGNED, but that a -0.0 may become
+0.0, and that FP8 blocks get new scales."""


def parse_alpha(value: str | float) -> float:
    """Return alpha as a finite number.

    Args:
        value: A number or its text.

    Raises:
        ConfigError: It is no number, not finite, or too big for float32.
    """
    try:
        alpha = float(value)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            "alpha is not a number",
            where=argument("alpha"),
            got=repr(value),
            expected="a finite number",
        ) from error
    if not math.isfinite(alpha) or not math.isfinite(round_alpha(alpha)):
        raise ConfigError(
            "alpha is not finite in float32",
            where=argument("alpha"),
            got=repr(value),
            expected="a finite number",
        )
    return alpha + 0.0  # -0.0 becomes 0.0: the two would be one alpha with two names


def parse_alphas(value: str | float | Sequence[str | float]) -> tuple[float, ...]:
    """Return one or several alphas in the order given.

    Raises:
        ConfigError: None is given, one is no finite number, or two are equal in float32.
    """
    values = [value] if isinstance(value, str | int | float) else list(value)
    if not values:
        raise ConfigError(
            "no alpha is given",
            where=argument("alpha"),
            expected="at least one",
            hint=f"give {argument('alpha', 0.3)}, or {argument('alpha_rules', 'FILE')}; "
            "`expo-ray select` chooses one",
        )
    alphas = tuple(parse_alpha(v) for v in values)
    seen: dict[float, float] = {}
    for alpha in alphas:
        key = round_alpha(alpha)
        if key in seen:
            raise ConfigError(
                "an alpha is given twice",
                where=argument("alpha"),
                got=f"{format_alpha(seen[key])} and {format_alpha(alpha)}",
                hint="alphas that are equal in float32 give the same weights",
            )
        seen[key] = alpha
    return alphas


def round_alpha(alpha: float) -> float:
    """Return alpha rounded to float32: the number that the arithmetic uses."""
    with np.errstate(over="ignore"):
        return float(np.float32(alpha))


def format_alpha(alpha: float) -> str:
    """Return the shortest decimal of alpha: 0.3, 1, -0.5.

    A value that was rounded to float32 is written like the decimal it came from.
    """
    alpha = parse_alpha(alpha)
    nine_digits = format(alpha, ".9g")
    if round_alpha(alpha) == alpha:
        shortest = format(float(str(np.float32(alpha))), ".9g")
        return min(shortest, nine_digits, key=len)
    return nine_digits


def checkpoint_name(alpha: float) -> str:
    """Return the folder name of a checkpoint: alpha-0.3, alpha--0.5."""
    return f"alpha-{format_alpha(alpha)}"
