"""What is asked of a trajectory: alphas, or steps, from the last checkpoint or as fitted."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from expo_ray.errors import ConfigError, argument
from expo_ray.extrapolation.planning.alpha import parse_alphas
from expo_ray.extrapolation.planning.alpha_rules import default_of_rules
from expo_ray.extrapolation.planning.path import FITTED, FITTED_ALPHA, LAST, step_name
from expo_ray.extrapolation.trajectories.fits import FORECASTS, Fit

if TYPE_CHECKING:
    from expo_ray.extrapolation.planning.alpha_rules import AlphaRules

Alphas = float | str | Sequence[float | str]
Steps = float | str | Sequence[float | str]
_START = argument("start")
_AT_STEP = argument("at_step")


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """The outputs of a trajectory."""

    start: str
    """LAST or FITTED."""
    alphas: tuple[float, ...]
    """One per output; under alpha rules at most one, for tensors without a rule."""
    at_steps: tuple[float, ...]
    """One per output, where steps were asked for."""
    notes: tuple[str, ...]
    """What of it might surprise."""


def parse_asked(
    steps: Sequence[float],
    fit: Fit,
    *,
    start: str,
    alpha: Alphas,
    at_step: Steps,
    rules: AlphaRules | None,
) -> Asked:
    """Return what is asked for, checked against the steps that there are.

    Args:
        steps: Of the trajectory.
        fit: Through it.
        start: `last` or `fitted`.
        alpha: One or several, or none.
        at_step: One or several, or none.
        rules: Alpha rules, or none.

    Raises:
        ConfigError: Both or neither of alpha and steps are given, or they fit neither the fit nor
            the trajectory.
    """
    targets = parse_steps(at_step, steps)
    is_alpha_given = alpha is not None and alpha != () and alpha != []
    if start == FITTED:
        if is_alpha_given or rules is not None:
            given = argument("alpha" if is_alpha_given else "alpha_rules")
            raise ConfigError(
                "a fitted model has no alpha",
                where=f"{_START} beside {given}",
                got=FITTED,
                expected=_AT_STEP,
                hint=f"alpha is of {argument('start', LAST)}: from the last checkpoint along the "
                "fitted change",
            )
        if targets and fit is Fit.WEIGHTS:
            raise ConfigError(
                "given weights make one model, whatever the step",
                where=f"{_AT_STEP} beside {argument('fit', fit.value)}",
                got=", ".join(map(step_name, targets)),
                expected=f"no {_AT_STEP}",
                hint=f"to go on in its direction: {argument('start', LAST)}",
            )
        targets = targets or (float(steps[-1]),)
        _refuse_late_average(fit, targets, steps)
        _refuse_same_averages(fit, targets, steps)
        alphas = (FITTED_ALPHA,) * len(targets)
    elif start != LAST:
        raise ConfigError("unknown value", where=_START, got=start, expected=f"{LAST}, {FITTED}")
    elif rules is not None:
        if targets:
            raise ConfigError(
                "alpha rules take the place of a step",
                where=f"{argument('alpha_rules')} beside {_AT_STEP}",
                expected="one of them",
            )
        alphas = default_of_rules(alpha)
    elif targets:
        if is_alpha_given:
            raise ConfigError(
                "alpha and a step are given for the same thing",
                where=f"{argument('alpha')} beside {_AT_STEP}",
                expected="one of them",
                hint="a step is the alpha (step - last) / (last - first)",
            )
        alphas = parse_alphas([alpha_of(target, steps) for target in targets])
    else:
        alphas = parse_alphas(alpha)
    return Asked(start=start, alphas=alphas, at_steps=targets, notes=_notes(targets, steps))


def alpha_of(target: float, steps: Sequence[float]) -> float:
    """Return the alpha that a step stands for: in units of the span of the trajectory.

    Example:
        >>> alpha_of(600, [0, 200, 400])
        0.5
    """
    return (target - steps[-1]) / (steps[-1] - steps[0])


def parse_steps(value: Steps, steps: Sequence[float]) -> tuple[float, ...]:
    """Return the steps that are asked for.

    Args:
        value: One or several.
        steps: Of the trajectory.

    Raises:
        ConfigError: One is no number, stands twice, or lies before the trajectory.
    """
    values = [value] if isinstance(value, str | int | float) else list(value)
    found: list[float] = []
    for one in values:
        try:
            target = float(one)
        except (TypeError, ValueError, OverflowError) as error:
            raise ConfigError("a step is not a number", where=_AT_STEP, got=repr(one)) from error
        if not steps[0] <= target < float("inf"):
            raise ConfigError(
                "the target step lies before the first checkpoint"
                if target < steps[0]
                else "a step is not finite",
                where=_AT_STEP,
                got=f"{target:g}",
                expected=f"{step_name(steps[0])} or larger",
            )
        if target in found:
            raise ConfigError("a step is given twice", where=_AT_STEP, got=step_name(target))
        found.append(target)
    return tuple(found)


def _refuse_late_average(fit: Fit, targets: Sequence[float], steps: Sequence[float]) -> None:
    late = [target for target in targets if target > steps[-1]]
    if late and fit not in FORECASTS:
        raise ConfigError(
            "this fit says nothing of steps after the last checkpoint",
            where=_AT_STEP,
            got=f"{argument('fit', fit.value)}, step {step_name(late[0])}",
            expected=f"{step_name(steps[-1])} at most, or a fit out of "
            f"{', '.join(sorted(FORECASTS))}",
            hint=f"to go on in its direction: {argument('start', LAST)} with {argument('alpha')}",
        )


def _refuse_same_averages(fit: Fit, targets: Sequence[float], steps: Sequence[float]) -> None:
    if fit in FORECASTS:
        return
    by_last: dict[int, float] = {}
    for target in targets:
        num_known = bisect_right(steps, target)
        other = by_last.setdefault(num_known, target)
        if other != target:
            raise ConfigError(
                "two steps give the same average",
                where=_AT_STEP,
                got=f"{step_name(other)} and {step_name(target)}",
                expected="a checkpoint between the two",
                hint=f"{fit} averages the checkpoints up to a step: both end at step "
                f"{step_name(steps[num_known - 1])}",
            )


def _notes(targets: Sequence[float], steps: Sequence[float]) -> tuple[str, ...]:
    notes = []
    span = f"{step_name(steps[0])} to {step_name(steps[-1])}"
    for target in targets:
        if target < steps[-1]:
            notes.append(
                f"step {step_name(target)} lies inside the trajectory ({span}): interpolated"
            )
        elif target > steps[-1]:
            horizon = (target - steps[0]) / (steps[-1] - steps[0])
            notes.append(
                f"step {step_name(target)} lies {horizon:.3g} times the span of the trajectory "
                f"({span}) from its start: `expo-ray diagnose --trajectory` tells how far this "
                "training can be forecast"
            )
    return tuple(notes)
