"""The figures of a trajectory's diagnosis: its path, its coefficients, the errors of its fits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from expo_ray.extrapolation.trajectories.trajectory_file import step_name
from expo_ray.reports.drawing import (
    BLUE,
    GREEN,
    INK,
    MUTED,
    ORANGE,
    PURPLE,
    SURFACE,
    Drawing,
    canvas,
    finish,
)

_DIRECTION_STYLES = ((BLUE, "o"), (ORANGE, "s"), (GREEN, "^"))
_FORECAST_STYLES = (
    *((BLUE, "o"), (ORANGE, "D"), (GREEN, "s"), (PURPLE, "^"), (INK, "v"), (MUTED, "P")),
)
_REFERENCE: Mapping[str, Any] = {"color": MUTED, "linewidth": 0.9, "linestyle": (0, (4, 3))}
_MAX_ERROR = 2.0
_NUM_LABELS = 6

Diagnosis = Mapping[str, Any]


def drawings_of(diagnosis: Diagnosis) -> list[Drawing]:
    """Return all figures that a diagnosis has the numbers for."""
    found = [path_figure(diagnosis), coefficient_figure(diagnosis)]
    return [*found, horizon_figure(diagnosis)] if diagnosis["scores"] else found


def path_figure(diagnosis: Diagnosis) -> Drawing:
    """Draw where the checkpoints lie in the first two directions, to one scale on both axes."""
    steps = [point["step"] for point in diagnosis["checkpoints"]]
    places = _coordinates(diagnosis, 2)
    with canvas(1, height=3.4) as (figure, axes):
        ax = axes[0]
        ax.grid(visible=True, axis="both")
        ax.plot(places[:, 0], places[:, 1], color=BLUE, linewidth=1.4, zorder=2)
        ax.scatter(places[:, 0], places[:, 1], color=BLUE, s=18, zorder=3)
        ax.scatter(
            places[:1, 0], places[:1, 1], color=SURFACE, edgecolor=BLUE, linewidth=1.6, s=46,
            zorder=4,
        )  # fmt: skip
        for index in _labelled(len(steps)):
            ax.annotate(
                step_name(steps[index]), places[index], xytext=(0, 7), textcoords="offset points",
                ha="center", fontsize=8, color=MUTED,
            )  # fmt: skip
        ax.set_aspect("equal", adjustable="datalim")
        ax.margins(0.12)
        shares = diagnosis["direction_shares"]
        ax.set_xlabel(f"first direction ({_share(shares, 0)} of the squared change)")
        ax.set_ylabel(f"second ({_share(shares, 1)})")
        ax.set_title("The path of the training, seen from its first checkpoint (numbers: steps)")
        alt = (
            f"The path of {len(steps)} checkpoints in the first two directions of their change, "
            f"from step {step_name(steps[0])} at the origin to step {step_name(steps[-1])} at "
            f"{places[-1, 0]:.3g} and {places[-1, 1]:.3g}."
        )
        return finish(figure, "path", alt)


def coefficient_figure(diagnosis: Diagnosis) -> Drawing:
    """Draw the coefficients of the first directions against the steps, and the line of rank1."""
    steps = np.array([point["step"] for point in diagnosis["checkpoints"]])
    places = _coordinates(diagnosis, 3)
    with canvas(1, height=2.9) as (figure, axes):
        ax = axes[0]
        words = ("first", "second", "third")
        for index, (colour, marker) in enumerate(_DIRECTION_STYLES):
            if np.any(places[:, index]):
                ax.plot(
                    steps, places[:, index], color=colour, marker=marker, markersize=4,
                    linewidth=1.5,
                    label=f"{words[index]}, {_share(diagnosis['direction_shares'], index)}",
                )  # fmt: skip
        if len(steps) > 2:
            slope, intercept = np.polyfit(steps[1:], places[1:, 0], 1)
            ax.plot(steps, slope * steps + intercept, **_REFERENCE, label="line through the first")
        ax.set_xlabel("step")
        ax.set_title("Coefficients of the first directions")
        ax.legend(loc="upper left", ncols=2)
        alt = "Coefficients of the first direction by step: " + "; ".join(
            f"{step_name(steps[i])}: {places[i, 0]:.3g}" for i in _labelled(len(steps))
        )
        return finish(figure, "coefficients", alt + ".")


def horizon_figure(diagnosis: Diagnosis) -> Drawing:
    """Draw the back-tested error of the fits against the horizon, relative to no change."""
    shown = shown_forecasts(diagnosis)
    horizons = sorted({score["horizon"] for score in diagnosis["scores"]})
    with canvas(1, height=3.3) as (figure, axes):
        ax = axes[0]
        ax.axhline(1.0, **_REFERENCE)
        ax.annotate(
            "no change", (-0.47, 1.0), xytext=(0, 3), textcoords="offset points", fontsize=8,
            color=MUTED,
        )  # fmt: skip
        chosen = diagnosis["verdict"]["forecast"]
        for (name, errors), (colour, marker) in zip(shown.items(), _FORECAST_STYLES, strict=False):
            _error_line(ax, horizons, errors, name, colour, marker, is_chosen=name == chosen)
        ax.set_ylim(0, 1.25 * _MAX_ERROR)
        ax.set_yticks([0, 0.5, 1, 1.5, _MAX_ERROR], ["0", "0.5", "1", "1.5", "2 or more"])
        ax.set_xlim(-0.5, len(horizons) - 0.5)
        ax.set_xticks(range(len(horizons)), [f"{horizon:g}" for horizon in horizons])
        ax.set_xlabel("horizon: steps to the forecast checkpoint over steps to the last known one")
        ax.set_title(
            "Distance from withheld checkpoints, relative to that of the last known checkpoint"
        )
        ax.legend(loc="upper left", ncols=3)
        alt = "Back-tested error relative to no change, by horizon. " + ". ".join(
            f"{name}: " + ", ".join(f"{h:g}: {e:.2f}" for h, e in errors.items())
            for name, errors in shown.items()
        )
        return finish(figure, "error-by-horizon", alt + ".")


def shown_forecasts(diagnosis: Diagnosis) -> dict[str, dict[float, float]]:
    """Return mean errors by horizon of the pair and of each fit, as it forecasts best."""
    by_name: dict[str, dict[float, float]] = {}
    for score in diagnosis["scores"]:
        by_name.setdefault(score["forecast"], {})[score["horizon"]] = score["mean_error"]
    chosen = diagnosis["verdict"]["forecast"]
    found: dict[str, dict[float, float]] = {}
    for fit in dict.fromkeys(name.split()[0] for name in by_name):
        names = [name for name in by_name if name.split()[0] == fit]
        best = min(names, key=lambda n: (n != chosen, sum(by_name[n].values())))
        found[best] = by_name[best]
    return found


def _error_line(
    ax: Axes,
    horizons: Sequence[float],
    errors: Mapping[float, float],
    name: str,
    colour: str,
    marker: str,
    *,
    is_chosen: bool,
) -> None:
    # How far a fit lies beyond twice the error of no change helps nobody.
    x = [horizons.index(h) for h in errors]
    y = [min(error, _MAX_ERROR) for error in errors.values()]
    ax.plot(
        x, y, color=colour, marker=marker, markersize=6.5 if is_chosen else 4.5,
        linewidth=2.4 if is_chosen else 1.3, label=f"{name} (verdict)" if is_chosen else name,
        clip_on=False, zorder=4 if is_chosen else 3,
    )  # fmt: skip


def _coordinates(diagnosis: Diagnosis, num_directions: int) -> Any:
    places = np.array([point["coordinates"] for point in diagnosis["checkpoints"]])
    missing = max(0, num_directions - places.shape[1])
    return np.pad(places, ((0, 0), (0, missing)))[:, :num_directions]


def _labelled(number: int) -> list[int]:
    return np.unique(np.linspace(0, number - 1, _NUM_LABELS).round().astype(int)).tolist()  # type: ignore[no-any-return]


def _share(shares: Sequence[float], index: int) -> str:
    return f"{shares[index]:.1%}" if index < len(shares) else "0%"
