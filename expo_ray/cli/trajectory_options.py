"""Flags of commands that take a trajectory in the place of a pair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import typer

from expo_ray.errors import ConfigError, argument

TRAJECTORY_PANEL = "Trajectories"
TrajectoryOption = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="Instead of INITIAL and ALIGNED: YAML list of {step, checkpoint}, or a folder of "
        "checkpoint-100, ...",
        rich_help_panel=TRAJECTORY_PANEL,
    ),
]
FitOption = Annotated[
    str | None,
    typer.Option(
        metavar="FIT",
        help="line (default), rank1, wsm, ema, bema or weights; options: line:window=10.",
        rich_help_panel=TRAJECTORY_PANEL,
    ),
]
AtStepOption = Annotated[
    list[float] | None,
    typer.Option(
        metavar="T",
        help="Go to this step instead of an alpha; may repeat: OUTPUT/step-800/, ... from one "
        "read.",
        rich_help_panel=TRAJECTORY_PANEL,
    ),
]
StartOption = Annotated[
    str | None,
    typer.Option(
        "--from",
        metavar="START",
        help="last (default): from the last checkpoint along the fit; fitted: the fitted model.",
        rich_help_panel=TRAJECTORY_PANEL,
    ),
]
WeightsOption = Annotated[
    str | None,
    typer.Option(
        metavar="W,W,...",
        help="Of --fit weights: one for each checkpoint, with sum 1.",
        rich_help_panel=TRAJECTORY_PANEL,
    ),
]
DiagnosisOption = Annotated[
    str | None,
    typer.Option(
        metavar="DIR",
        help="What diagnose --trajectory wrote: warn where it does not support the step or alpha.",
        rich_help_panel=TRAJECTORY_PANEL,
    ),
]


def require_places(command: str, **given: str | None) -> tuple[str, ...]:
    """Return the arguments of a pair, all of which must be there.

    Args:
        command: Whose arguments they are.
        given: Their values by their names; None for one that was left out.

    Raises:
        ConfigError: One is missing.
    """
    for name, place in given.items():
        if place is None:
            raise ConfigError(
                "an argument is missing",
                where=name.upper(),
                hint=f"see `expo-ray {command} --help`",
            )
    return tuple(place for place in given.values() if place is not None)


def output_of_path(command: str, *given: str | None) -> str:
    """Return OUTPUT, the one argument beside a trajectory.

    Args:
        command: Whose arguments they are.
        given: All of them, in their order; None for what was left out.

    Raises:
        ConfigError: There is none, or INITIAL and ALIGNED are given too.
    """
    found = [place for place in given if place is not None]
    if len(found) > 1:
        raise _beside_a_pair(found, "OUTPUT alone")
    return require_places(command, output=found[0] if found else None)[0]


def refuse_pair(*given: str | None) -> None:
    """Let a command pass that takes a trajectory and no argument beside it.

    Args:
        given: INITIAL and ALIGNED; None for what was left out.

    Raises:
        ConfigError: One of them is given.
    """
    found = [place for place in given if place is not None]
    if found:
        raise _beside_a_pair(found, "one of both")


def _beside_a_pair(found: Sequence[str], expected: str) -> ConfigError:
    return ConfigError(
        "a trajectory takes the place of INITIAL and ALIGNED",
        where=f"{argument('trajectory')} beside INITIAL, ALIGNED",
        got=" ".join(found),
        expected=expected,
    )


def refuse_beside(flag: str, given: Mapping[str, object], *, is_needed: bool) -> None:
    """Let a command pass whose flags are of what it works on.

    Args:
        flag: The flag that decides, by its name in Python.
        given: Values of flags by their names in Python; those left out are None, False or empty.
        is_needed: Whether the flags need the deciding one, or exclude it.

    Raises:
        ConfigError: One is given that is not.
    """
    named = [name for name, value in given.items() if value not in (None, False, [], ())]
    if not named:
        return
    if is_needed:
        raise ConfigError(
            "this is a setting of trajectories",
            where=argument(named[0]),
            expected=argument(flag, "FILE"),
            hint=f"leave {argument(named[0])} out for a pair",
        )
    raise ConfigError(
        "this is a setting of pairs",
        where=f"{argument(named[0])} beside {argument(flag)}",
        expected="one of them",
    )


def parse_weights(text: str | None) -> tuple[float, ...]:
    """Return numbers that are separated by commas.

    Raises:
        ConfigError: One is no number.
    """
    try:
        return tuple(float(part) for part in (text or "").split(",") if part.strip())
    except ValueError as error:
        raise ConfigError(
            "a weight is not a number",
            where=argument("weights"),
            got=text,
            expected="numbers between commas: 0.2,0.3,0.5",
        ) from error
