"""The figure of the first-order argument: measured gains beside the line through alpha 0."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from expo_ray.reports.drawing import BLUE, MUTED, WASH, Drawing, canvas, finish
from expo_ray.reports.figures import ALIGNED_LINE
from expo_ray.reports.wording import format_alpha

_MARKS: tuple[tuple[str, str, dict[str, str]], ...] = (
    ("holds", "within a fifth of the line", {"marker": "o"}),
    ("fails", "off the line", {"marker": "X"}),
    ("cannot-tell", "cannot be told", {"marker": "o", "markerfacecolor": "white"}),
)


def first_order_curve(first_order: Mapping[str, Any]) -> Drawing:
    """Draw the gains and the line that the slope at alpha 0 predicts, over the real alpha axis."""
    points = _until_well_past(first_order)
    x = [p["alpha"] for p in points]
    predicted = [p["predicted"] for p in points]
    departures = [p["departure"] or 0.0 for p in points]
    gains = [line + departure for line, departure in zip(predicted, departures, strict=True)]
    with canvas(1, height=2.9) as (figure, axes):
        panel = axes[0]
        line = [0.0, *x]
        panel.plot(
            line, [first_order["slope"] * a for a in line],
            color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)), label="slope at alpha 0",
        )  # fmt: skip
        if first_order["ci_low"] is not None:
            panel.fill_between(
                line, [first_order["ci_low"] * a for a in line],
                [first_order["ci_high"] * a for a in line], color=WASH, linewidth=0,
            )  # fmt: skip
        panel.plot(x, gains, color=BLUE, linewidth=1.6, label="measured")
        for answer, words, style in _MARKS:
            told = [i for i, p in enumerate(points) if p.get("answer", "cannot-tell") == answer]
            panel.plot(
                [x[i] for i in told], [gains[i] for i in told], color=BLUE, linestyle="",
                markersize=5, label=words if told else None, **style,
            )  # fmt: skip
        measured = [p for p in points if p["departure_ci_low"] is not None]
        panel.vlines(
            [p["alpha"] for p in measured],
            [p["predicted"] + p["departure_ci_low"] for p in measured],
            [p["predicted"] + p["departure_ci_high"] for p in measured],
            color=BLUE, linewidth=1.4,
        )  # fmt: skip
        panel.axhline(0, **ALIGNED_LINE)
        # A wide band must not flatten what was measured.
        low, high = min(0.0, *gains, *predicted), max(0.0, *gains, *predicted)
        panel.set_ylim(low - 0.4 * (high - low), high + 0.4 * (high - low))
        panel.set_xlabel("alpha")
        panel.set_title("Gain over aligned, and what the slope at alpha 0 predicts")
        panel.legend(loc="best")
        alt = "Measured gain and linear prediction against alpha: " + "; ".join(
            f"{format_alpha(a)}: {gain:+.2f} measured, {linear:+.2f} predicted"
            for a, gain, linear in zip(x, gains, predicted, strict=True)
        )
        return finish(figure, "first-order", alt + ".")


def _until_well_past(first_order: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the points up to two beyond the end of the line: far out it says nothing."""
    points = list(first_order["points"])
    end = first_order["fails_at"]
    if end is None:
        return points
    return points[: next(i for i, p in enumerate(points) if p["alpha"] == end) + 3]
