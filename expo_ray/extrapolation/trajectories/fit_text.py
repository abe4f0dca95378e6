"""A fit as it is written on the command line and in Python: `line`, `wsm:window=5,decay=linear`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import ValidationError

from expo_ray.errors import ConfigError, argument
from expo_ray.extrapolation.trajectories.fits import (
    OPTIONS_OF,
    Fit,
    FitOptions,
    direction_weights,
)

FLAG = argument("fit")


def parse_fit(text: str, weights: Sequence[float] = ()) -> tuple[Fit, FitOptions]:
    """Return a fit and its options.

    Args:
        text: The name of a fit, and perhaps options: `wsm:window=5,decay=linear`.
        weights: Of the fit `weights`: one number for each checkpoint.

    Raises:
        ConfigError: The fit or an option is unknown, or a value is out of range.

    Example:
        >>> fit, options = parse_fit("line:window=10")
        >>> fit.value, options.window
        ('line', 10)
    """
    name, _, rest = text.partition(":")
    try:
        fit = Fit(name.strip())
    except ValueError as error:
        raise ConfigError(
            "unknown fit", where=FLAG, got=name, expected=", ".join(one.value for one in Fit)
        ) from error
    values: dict[str, Any] = {"weights": tuple(weights)} if weights else {}
    known = OPTIONS_OF[fit]
    for part in filter(None, rest.split(",")):
        key, _, value = (piece.strip() for piece in part.partition("="))
        if key not in known or key in values:
            raise ConfigError(
                "unknown or doubled option of a fit",
                where=argument("fit", text),
                got=key,
                expected=", ".join(sorted(known)) or f"no option of {fit}",
            )
        values[key] = value
    try:
        return fit, FitOptions.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(
            "an option of a fit is out of range",
            where=f"{argument('fit', text)}: {'.'.join(map(str, first['loc']))}",
            got=repr(first["input"]),
            expected=first["msg"],
        ) from error


def require_fit(fit: Fit, steps: Sequence[float], options: FitOptions) -> None:
    """Let steps pass that a fit can use, before anything of the checkpoints is read.

    Raises:
        ConfigError: There are too few of them, or the weights do not fit.
    """
    # Of a tensor that never moved: what is wrong with the steps shows without its values.
    direction_weights(fit, steps, np.zeros((len(steps), len(steps))), options=options)
