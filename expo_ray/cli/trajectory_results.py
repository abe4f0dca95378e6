"""The judgement of a trajectory on the command line: what it takes, and what it prints."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from expo_ray.cli.session import key_value_table, new_table
from expo_ray.progress import Progress


def judged_trajectory(
    trajectory: str,
    *,
    output: str | None,
    extra_tensors: Sequence[str],
    address: str | None,
    progress: Progress,
) -> dict[str, Any]:
    """Judge a trajectory and write its page, where that is asked for."""
    from expo_ray.extrapolation import diagnose_trajectory

    found = diagnose_trajectory(
        trajectory,
        output=output,
        extra_tensors=extra_tensors,
        address=address,
        progress=progress,
    ).as_dict()
    report = None
    if output is not None:
        from expo_ray.reports import write_report

        report = str(write_report(Path(output)))
    return {**found, "report": report, "next": next_command(trajectory, found)}


def next_command(trajectory: str, found: Mapping[str, Any]) -> str | None:
    """Return the command that goes as far as the verdict supports; None where it does not.

    Args:
        trajectory: As it was given.
        found: The JSON of its diagnosis.
    """
    from expo_ray.extrapolation.trajectories.fits import FORECASTS
    from expo_ray.extrapolation.trajectories.trajectory_file import step_name

    verdict = found["verdict"]
    if verdict["decision"] != "extrapolate":
        return None
    step = ("--at-step", step_name(verdict["at_step"]))
    if verdict["forecast"] == "pair":
        ends = [found["checkpoints"][i]["checkpoint"] for i in (0, -1)]
        words = ["extrapolate", *ends, "OUTPUT", "--alpha", f"{verdict['alpha']:g}"]
    else:
        fit = ["--fit", verdict["fit"], "--from", verdict["from"]]
        # An average says the same of all later steps, and is of the last.
        is_average = verdict["from"] == "fitted" and verdict["fit"] not in FORECASTS
        words = ["extrapolate", "--trajectory", trajectory, "OUTPUT", *fit]
        words += [] if is_average else step
    return shlex.join(["expo-ray", *words])


def render_trajectory(console: Console, result: dict[str, Any]) -> None:
    """Print the path, the back-tests and the verdict."""
    points = result["checkpoints"]
    first, last = points[0], points[-1]
    console.print(
        key_value_table(
            {
                "checkpoints": f"{len(points)}, steps {first['step']:,g} to {last['step']:,g}",
                "parameters": f"{result['num_elements']:,} in {result['num_tensors']:,} tensors",
                "straightness": f"{_number(result['straightness'])} (distance "
                f"{result['distance']:.4g} over length {result['path_length']:.4g})",
                "R^2 of straight lines": _number(result["r2_line"]),
                "first direction": f"{_percent(result['share_rank1'])} of the squared change, "
                "tensor by tensor",
                "moved between neighbours": f"{_percent(result['share_moved'])} of the values",
                "of that rounding": f"{_percent(result['share_rounding'])} of the squared steps, "
                f"{_percent(result['share_rounding_whole'])} over the whole run",
            }
        )
    )
    _render_parts(console, result["groups"])
    _render_scores(console, result)
    for note in result["notes"]:
        console.print(Text(f"note: {note}"))
    colour = "green" if result["verdict"]["decision"] == "extrapolate" else "yellow"
    console.print(Text(result["verdict"]["sentence"], style=colour))
    console.print("Distances in weights are not rewards: `expo-ray select` has the last word.")
    if result["next"]:
        console.print(Text(result["next"]), soft_wrap=True)
    if result["report"]:
        console.print(Text(result["report"]), soft_wrap=True)


def _render_parts(console: Console, groups: dict[str, Any]) -> None:
    table = new_table("module group", "distance", "straightness", "R^2", "1st direction", "moved")
    for name, shape in groups.items():
        shares = shape["direction_shares"]
        table.add_row(
            name,
            f"{shape['distance']:.3g}",
            _number(shape["straightness"]),
            _number(shape["r2_line"]),
            _percent(shares[0] if shares else None),
            _percent(shape["share_moved"]),
        )
    console.print(table)


def _render_scores(console: Console, result: dict[str, Any]) -> None:
    if not result["scores"]:
        return
    horizons = sorted({score["horizon"] for score in result["scores"]})
    errors = {(s["forecast"], s["horizon"]): s["mean_error"] for s in result["scores"]}
    console.print("Error of forecasts by horizon, relative to no change (back-test, mean):")
    table = new_table("forecast", *(f"{horizon:g}x" for horizon in horizons), "trusted to")
    for name in dict.fromkeys(score["forecast"] for score in result["scores"]):
        reach = result["verdict"]["reach"].get(name)
        cells = [_number(errors.get((name, horizon)), 2) for horizon in horizons]
        table.add_row(name, *cells, f"{reach:g}x" if reach else "-")
    console.print(table)


def _number(value: float | None, decimals: int = 3) -> str:
    return "-" if value is None else f"{value:.{decimals}f}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"
