"""The figure of a controlled experiment: truth and length against alpha, a line per setting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from matplotlib.axes import Axes

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
from expo_ray.reports.load_figures import from_zero
from expo_ray.reports.wording import format_alpha

_STYLES = ((BLUE, "o"), (ORANGE, "s"), (GREEN, "^"), (PURPLE, "D"), (INK, "v"), (MUTED, "P"))
_SPREAD = 0.34
"""Of the step between two alphas: lines stand beside each other, or their bars would hide."""


def study_figure(found: Mapping[str, Any]) -> Drawing:
    """Draw mean truth and mean length of the answers against alpha.

    Args:
        found: The content of `study.json`.
    """
    arms = found["arms"]
    alphas = [point["alpha"] for point in arms[0]["curve"]]
    with canvas(2, height=5.0) as (figure, axes):
        for index, arm in enumerate(arms):
            colour, marker = _STYLES[index % len(_STYLES)]
            shift = _SPREAD * (index / max(1, len(arms) - 1) - 0.5)
            _truth_line(axes[0], alphas, arm, colour, marker, shift)
            axes[1].plot(
                [x + shift for x in range(len(alphas))], [p["tokens"] for p in arm["curve"]],
                color=colour, marker=marker, markersize=3.5, linewidth=1.3,
            )  # fmt: skip
        title = "Hidden truth (ring: alpha chosen"
        if _cut_collapse(axes[0], arms):
            title += "; what leaves the panel has collapsed"
        axes[0].set_title(f"{title})")
        axes[0].legend(
            loc="lower left", bbox_to_anchor=(0, 1.1), borderaxespad=0,
            # Names that do not fit on one line stand in three columns.
            ncols=len(arms) if sum(len(arm["name"]) + 6 for arm in arms) < 90 else 3,
            handlelength=1.8, columnspacing=1.4,
        )  # fmt: skip
        axes[1].set_title("Tokens per answer")
        from_zero(axes[1])
        axes[1].set_xticks(range(len(alphas)), [format_alpha(alpha) for alpha in alphas])
        axes[1].set_xlim(-0.5, len(alphas) - 0.5)
        axes[1].set_xlabel("alpha (evenly spaced; 0 is the aligned model)")
        for panel in axes:
            panel.axvline(alphas.index(0.0), color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
        return finish(figure, "truth-against-alpha", _alt(arms))


def _truth_line(
    axes: Axes,
    alphas: Sequence[float],
    arm: Mapping[str, Any],
    colour: str,
    marker: str,
    shift: float,
) -> None:
    points = arm["curve"]
    x = [index + shift for index in range(len(points))]
    axes.plot(
        x, [p["mean"] for p in points], color=colour, marker=marker, markersize=4, linewidth=1.5,
        label=arm["name"],
    )  # fmt: skip
    # The interval is that of the paired gain over alpha 0, drawn around the mean.
    for place, point in zip(x, points, strict=True):
        gain = point["gain"]
        if point["alpha"] != 0 and gain["ci_low"] is not None:
            base = point["mean"] - gain["mean"]
            axes.vlines(
                place, base + gain["ci_low"], base + gain["ci_high"], color=colour, linewidth=1.1
            )
    chosen = min(alphas, key=lambda alpha: abs(alpha - median(arm["best_alphas"])))
    index = alphas.index(chosen)
    axes.plot(
        [x[index]], [points[index]["mean"]], marker="o", markersize=9, markerfacecolor=SURFACE,
        markeredgecolor=colour, markeredgewidth=1.5, zorder=1.9,
    )  # fmt: skip


def _cut_collapse(axes: Axes, arms: Sequence[Mapping[str, Any]]) -> bool:
    """Let lines that collapse leave the panel: what is gained would be flat above their fall."""
    means = [point["mean"] for arm in arms for point in arm["curve"]]
    low = min(point["mean"] for arm in arms for point in arm["curve"] if point["alpha"] <= 0)
    floor = low - 0.5 * (max(means) - low)
    if min(means) >= floor:
        return False
    axes.set_ylim(bottom=floor)
    return True


def _alt(arms: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        f"{arm['name']}: "
        + ", ".join(f"{format_alpha(p['alpha'])}: {p['mean']:.2f}" for p in arm["curve"])
        for arm in arms
    ]
    return "Mean hidden truth against alpha, by setting. " + ". ".join(lines) + "."
