"""Fits through the checkpoints of one training: each is a linear combination of them.

N checkpoints theta_0 .. theta_{N-1} lie at steps s_0 < .. < s_{N-1}. A fit turns a step t into
weights w with sum 1, and theta_fit(t) = sum_i w_i theta_i. What does not belong here: reading
checkpoints, and judging whether a fit may be trusted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from expo_ray.errors import ConfigError, argument

Weights = NDArray[np.float64]

# How far the sum of given weights may be from one: decimals as one types them.
_SUM_TOLERANCE = 1e-6


class Fit(StrEnum):
    """A way to turn the checkpoints of a training into one model."""

    LINE = "line"
    """Least squares line through all checkpoints, over their steps; two give the pair itself."""
    RANK1 = "rank1"
    """RELEX: per tensor the first direction of the changes, a line through its coefficients."""
    WSM = "wsm"
    """Average that stands for a decay of the learning rate (warmup-stable-merge)."""
    EMA = "ema"
    """Exponential moving average over the checkpoints."""
    BEMA = "bema"
    """Bias-corrected moving average, as TRL's BEMACallback makes it during training."""
    WEIGHTS = "weights"
    """Weights that are given, one for each checkpoint."""


FORECASTS = frozenset({Fit.LINE, Fit.RANK1})
"""Fits that have something to say about steps after the last checkpoint."""


class FitOptions(BaseModel):
    """What may be turned on a fit."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    window: int | None = Field(
        default=None,
        ge=2,
        description="Fit over so many of the last checkpoints (default: all). Of rank1 the line "
        "through the coefficients, as in RELEX; its direction comes from all.",
    )
    decay: Literal["minus-sqrt", "linear"] = Field(
        default="minus-sqrt",
        description="Of wsm, the shape of the decay that the average stands for: minus-sqrt "
        "(1 - sqrt(x)) or linear (1 - x, all checkpoints alike).",
    )
    ema_decay: float = Field(
        default=0.8,
        gt=0,
        lt=1,
        description="Of ema, what is kept of the average over one mean gap between checkpoints; "
        "a gap of twice the steps keeps the square of it.",
    )
    bema_ema_power: float = Field(
        default=0.5,
        ge=0,
        description="Of bema, kappa: the newest checkpoint enters with (lag + gamma t) ** -kappa.",
    )
    bema_bias_power: float = Field(
        default=0.2,
        ge=0,
        description="Of bema, eta: the correction is (lag + gamma t) ** -eta times the change.",
    )
    bema_lag: float = Field(default=10.0, ge=1, description="Of bema, rho: what is added to t.")
    bema_multiplier: float = Field(default=1.0, gt=0, description="Of bema, gamma: scales t.")
    weights: tuple[float, ...] | None = Field(
        default=None,
        description="Of weights: one number for each checkpoint, in their order, with sum 1.",
    )


DEFAULT_OPTIONS = FitOptions()
OPTIONS_OF: Mapping[Fit, frozenset[str]] = {
    Fit.LINE: frozenset({"window"}),
    Fit.RANK1: frozenset({"window"}),
    Fit.WSM: frozenset({"window", "decay"}),
    Fit.EMA: frozenset({"window", "ema_decay"}),
    Fit.BEMA: frozenset(
        {"window", "bema_ema_power", "bema_bias_power", "bema_lag", "bema_multiplier"}
    ),
    Fit.WEIGHTS: frozenset(),
}
"""What may be turned on each of them, besides the weights that are given to `weights`."""


def needs_gram(fit: Fit | str) -> bool:
    """Return whether the weights differ by tensor and come from its Gram matrix."""
    return fit == Fit.RANK1


def min_checkpoints(fit: Fit) -> int:
    """Return how many checkpoints a fit needs at least.

    Example:
        >>> min_checkpoints(Fit.LINE), min_checkpoints(Fit.RANK1)
        (2, 3)
    """
    return 3 if fit is Fit.RANK1 else 2


def step_weights(
    fit: Fit | str,
    steps: Sequence[float],
    target: float,
    *,
    options: FitOptions = DEFAULT_OPTIONS,
) -> Weights:
    """Return the weights of the checkpoints in theta_fit(target), the same for all tensors.

    Averages have no time axis: they are of the checkpoints up to the target, so that a target
    after the last checkpoint gives the average of all. Given weights hold for any target.

    Args:
        fit: Any but rank1.
        steps: Of the checkpoints, increasing.
        target: The step that is asked for, as large as the first or larger.
        options: Of the fit.

    Returns:
        float64 [N], with sum 1.

    Raises:
        ConfigError: Too few checkpoints, steps that do not increase, or weights that do not fit.

    Example:
        >>> step_weights("line", [100, 200, 300], 400).round(4).tolist()
        [-0.6667, 0.3333, 1.3333]
        >>> step_weights("line", [0, 100], 200).tolist()
        [-1.0, 2.0]
    """
    fit = Fit(fit)
    axis = _axis(fit, steps, options)
    if not np.isfinite(target) or target < axis[0]:
        raise ConfigError(
            "the target step lies before the first checkpoint",
            where=argument("at_step"),
            got=f"{target:g}",
            expected=f"{axis[0]:g} or larger",
            hint="a fit knows nothing of the time before its checkpoints: ask for a later step, or "
            "put an earlier checkpoint into the trajectory",
        )
    if fit is Fit.RANK1:
        raise ConfigError(
            "the weights of rank1 differ by tensor",
            where="step_weights",
            expected="a fit whose weights are the same for all tensors",
            hint="take `rank1_weights` with the Gram matrix of each tensor",
        )
    if fit is Fit.WEIGHTS:
        return _given(len(axis), options)
    found = np.zeros(len(axis))
    last = len(axis) if fit is Fit.LINE else int(np.searchsorted(axis, target, side="right"))
    first = 0 if options.window is None else max(0, last - options.window)
    if fit is Fit.LINE:
        found[first:] = line_weights(axis[first:], target)
    else:
        found[first:last] = _AVERAGES[fit](axis[first:last], options)
    return found


def direction_weights(
    fit: Fit | str,
    steps: Sequence[float],
    gram: NDArray[np.floating[Any]] | None = None,
    *,
    options: FitOptions = DEFAULT_OPTIONS,
) -> Weights:
    """Return the weights of the fitted change over the span, theta_fit(last) - theta_fit(first).

    Args:
        fit: The fit.
        steps: Of the checkpoints, increasing.
        gram: Of rank1, the Gram matrix of the tensor, as `rank1_weights` takes it.
        options: Of the fit.

    Returns:
        float64 [N], with sum 0. Of given weights: their model minus the first checkpoint.

    Raises:
        ConfigError: As for `step_weights`.

    Example:
        >>> direction_weights("line", [50, 400]).tolist()
        [-1.0, 1.0]
        >>> direction_weights("line", [0, 10, 20]).tolist()
        [-1.0, 0.0, 1.0]
    """
    fit = Fit(fit)
    axis = _axis(fit, steps, options)
    if fit is Fit.RANK1:
        if gram is None:
            raise TypeError("rank1 takes the Gram matrix of the tensor")
        last = rank1_weights(gram, steps, axis[-1], options=options)
        return last - rank1_weights(gram, steps, axis[0], options=options)
    last = step_weights(fit, steps, axis[-1], options=options)
    if fit is Fit.LINE:
        return last - step_weights(fit, steps, axis[0], options=options)
    # An average over the first checkpoint alone is that checkpoint.
    last[0] -= 1.0
    return last


def rank1_weights(
    gram: NDArray[np.floating[Any]],
    steps: Sequence[float],
    target: float,
    *,
    options: FitOptions = DEFAULT_OPTIONS,
) -> Weights:
    """Return the weights of one tensor in theta_0 + c(target) v, as RELEX defines it.

    v is the first right singular vector of the changes Delta_i = theta_i - theta_0 of all
    checkpoints after the first, stacked as rows; c(t) is the least squares line through their
    coefficients sigma u_i over the steps. Neither v nor a change is needed: sigma and u are of the
    Gram matrix, and c(t) v = sum_i [c(t) u_i / sigma] Delta_i.

    Args:
        gram: [N, N], the scalar products of the changes; its first row and column are zero.
        steps: Of the checkpoints, increasing.
        target: The step that is asked for.
        options: Of the fit; `window` limits the checkpoints that the line goes through.

    Returns:
        float64 [N], with sum 1. Where the tensor never moved: its first checkpoint.

    Raises:
        ConfigError: Too few checkpoints, or steps that do not increase.
        ValueError: The matrix has another shape, or is not finite.

    Example:
        >>> import numpy as np
        >>> path = np.outer([0.0, 1.0, 2.0], [3.0, 4.0])
        >>> rank1_weights(path @ path.T, [0, 10, 20], 40).round(6).tolist()
        [-1.0, 0.4, 1.6]
    """
    axis = _axis(Fit.RANK1, steps, options)
    gram = np.asarray(gram, dtype=np.float64)
    if gram.shape != (len(axis), len(axis)):
        raise ValueError(f"a Gram matrix of shape {gram.shape} for {len(axis)} checkpoints")
    if not np.isfinite(gram).all():
        raise ValueError("the Gram matrix is not finite")
    found = np.zeros(len(axis))
    found[0] = 1.0
    eigenvalues, vectors = np.linalg.eigh(gram[1:, 1:])
    if eigenvalues[-1] <= 0:
        return found
    first = vectors[:, -1]
    # c(t) = sum_j line_j(t) sigma u_j: sigma drops out of c(t) u_i / sigma, and so does the sign.
    later = axis[1:]
    start = 0 if options.window is None else max(0, len(later) - options.window)
    coefficient = line_weights(later[start:], target) @ first[start:]
    found[1:] = coefficient * first
    found[0] = 1.0 - found[1:].sum()
    return found


def line_weights(axis: Weights, target: float) -> Weights:
    """Return the weights of values in their least squares line at the target.

    Args:
        axis: At least two increasing places.
        target: Where the line is read.
    """
    # From zero to one: steps of any size and offset lose nothing in the squares.
    places = (axis - axis[0]) / (axis[-1] - axis[0])
    at = (target - axis[0]) / (axis[-1] - axis[0])
    if len(axis) == 2:
        return np.array([1.0 - at, at])  # without a rounding: a pair gives the pair's formula
    centred = places - places.mean()
    slope: Weights = centred / (centred @ centred)
    found: Weights = 1.0 / len(axis) + slope * (at - places.mean())
    return found


def _axis(fit: Fit, steps: Sequence[float], options: FitOptions) -> Weights:
    axis = np.asarray(steps, dtype=np.float64)
    if axis.ndim != 1 or not np.isfinite(axis).all() or (np.diff(axis) <= 0).any():
        raise ConfigError(
            "the steps of the checkpoints do not increase",
            where="trajectory",
            got=", ".join(f"{step:g}" for step in axis.ravel()),
            expected="finite, each larger than the one before",
            hint="list the checkpoints in the order of the training, each step once",
        )
    needed = min_checkpoints(fit)
    if len(axis) < needed:
        raise ConfigError(
            f"{fit} needs more checkpoints than there are",
            where="trajectory",
            got=len(axis),
            expected=f"at least {needed}",
            hint="add checkpoints of the same training, or take another fit",
        )
    if options.weights is not None and fit is not Fit.WEIGHTS:
        raise ConfigError(
            "weights are given for a fit that makes its own",
            where=argument("weights"),
            got=fit.value,
            expected=argument("fit", "weights"),
            hint=f"leave the weights out, or take {argument('fit', 'weights')}",
        )
    return axis


def _given(num_checkpoints: int, options: FitOptions) -> Weights:
    weights = np.asarray(options.weights or (), dtype=np.float64)
    if len(weights) != num_checkpoints:
        raise ConfigError(
            "the trajectory and the weights differ in length",
            where=argument("weights"),
            got=f"{len(weights)} weights",
            expected=f"{num_checkpoints}, one for each checkpoint in their order",
            hint="give 0 to a checkpoint that is to be left out",
        )
    total = float(weights.sum())
    if not abs(total - 1.0) <= _SUM_TOLERANCE:
        raise ConfigError(
            "the weights do not add up to one",
            where=argument("weights"),
            got=f"{total:.9g}",
            expected="1",
            hint="another sum would scale the whole model; divide each weight by their sum",
        )
    # Decimals as one types them miss one by a little, which the largest takes up.
    weights[np.argmax(np.abs(weights))] += 1.0 - total
    return weights


def _wsm(axis: Weights, options: FitOptions) -> Weights:
    """Return c_j = w_j - w_{j+1}, where w_j is the decayed learning rate of the j-th gap.

    With even gaps the place of a checkpoint is its index over their number, as Megatron-LM's
    weighted merge has it.
    """
    if len(axis) == 1:
        return np.ones(1)
    num_gaps = len(axis) - 1
    places = (axis - axis[0]) / (axis[-1] - axis[0]) * (num_gaps / len(axis))
    rates = 1.0 - (np.sqrt(places) if options.decay == "minus-sqrt" else places)
    return -np.diff(rates, append=0.0)


def _ema(axis: Weights, options: FitOptions) -> Weights:
    if len(axis) == 1:
        return np.ones(1)
    gaps = np.diff(axis)
    return _moving(1.0 - options.ema_decay ** (gaps / gaps.mean()))


def _bema(axis: Weights, options: FitOptions) -> Weights:
    if axis[0] < 0:
        raise ConfigError(
            "bema takes steps that are not negative",
            where="trajectory",
            got=f"{axis[0]:g}",
            hint="count the steps from the beginning of the training",
        )
    ages = options.bema_lag + options.bema_multiplier * axis
    found = _moving(ages[1:] ** -options.bema_ema_power)
    if len(axis) > 1:
        correction = ages[-1] ** -options.bema_bias_power
        found[-1] += correction
        found[0] -= correction
    return found


def _moving(entering: Weights) -> Weights:
    """Return the weights of a moving average that starts at the first of its values.

    Args:
        entering: With how much each of the later values enters.
    """
    left = np.cumprod((1.0 - entering)[::-1])[::-1]
    found = np.empty(len(entering) + 1)
    found[0] = left[0] if len(entering) else 1.0
    found[1:] = entering * np.append(left[1:], 1.0)[: len(entering)]
    return found


_AVERAGES: dict[Fit, Callable[[Weights, FitOptions], Weights]] = {
    Fit.WSM: _wsm,
    Fit.EMA: _ema,
    Fit.BEMA: _bema,
}
