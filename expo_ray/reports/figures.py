"""The figures of the report, each with the words for those who do not see it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from expo_ray.reports.drawing import (
    BLUE,
    GREEN,
    MUTED,
    ORANGE,
    PURPLE,
    STYLE,
    SURFACE,
    WASH,
    WIDTH_INCHES,
    Drawing,
    canvas,
    finish,
)
from expo_ray.reports.load_figures import from_zero
from expo_ray.reports.pairing import Gain
from expo_ray.reports.wording import format_alpha, rejected_alpha

GUARD_STYLES = ((GREEN, "s"), (PURPLE, "^"), (ORANGE, "v"), (BLUE, "P"))
ALIGNED_LINE: Mapping[str, Any] = {"color": MUTED, "linewidth": 0.9, "linestyle": (0, (4, 3))}


def reward_curve(
    selection: Mapping[str, Any], truth: Sequence[Gain], truth_mean: float | None
) -> Drawing:
    """Draw the gain against alpha on tuning prompts and, in a laboratory, that of the truth."""
    candidates = _by_alpha(selection)
    alphas = [c["alpha"] for c in candidates]
    with canvas(2 if truth else 1, height=4.6 if truth else 2.9) as (figure, axes):
        _reward_panel(axes[0], candidates, selection)
        if truth:
            _truth_panel(axes[1], alphas, truth, truth_mean)
        _alpha_axis(axes[-1], alphas)
        alt = "Line chart of the gain in mean reward over the aligned model against alpha on the "
        alt += "tuning prompts: " + "; ".join(
            f"{format_alpha(c['alpha'])}: {_short(c['gain'])}" for c in candidates
        )
        if truth:
            alt += ". Below it the hidden truth, gain over aligned: " + "; ".join(
                f"{format_alpha(gain.alpha)}: {gain.mean:+.2f}" for gain in truth
            )
        return finish(figure, "reward-against-alpha", alt + ".")


def _reward_panel(
    axes: Axes, candidates: Sequence[Mapping[str, Any]], selection: Mapping[str, Any]
) -> None:
    """Draw the column `gain` of the table: a mean would be over other prompts after a race."""
    points = [(x, c) for x, c in enumerate(candidates) if c["gain"] is not None]
    axes.plot(
        [x for x, _ in points], [c["gain"] for _, c in points],
        color=BLUE, marker="o", markersize=4.5, linewidth=1.6,
    )  # fmt: skip
    axes.axhline(0, **ALIGNED_LINE)
    paired = [(x, c) for x, c in points if c["alpha"] != 0 and c["gain_ci_low"] is not None]
    axes.vlines(
        [x for x, _ in paired],
        [c["gain_ci_low"] for _, c in paired],
        [c["gain_ci_high"] for _, c in paired],
        color=BLUE, linewidth=1.4,
    )  # fmt: skip
    _mark_choice(axes, candidates, selection)
    axes.yaxis.set_major_formatter(_signed_tick)
    aligned = next((c["mean_reward"] for c in candidates if c["alpha"] == 0), None)
    suffix = "" if aligned is None else f" (aligned: {_short(aligned)})"
    axes.set_title(f"Reward, gain over aligned on the same tuning prompts{suffix}")


def _signed_tick(value: float, _: float) -> str:
    return f"{value:+g}" if value else "0"


def _mark_choice(
    axes: Axes, candidates: Sequence[Mapping[str, Any]], selection: Mapping[str, Any]
) -> None:
    chosen = selection["best_alpha"]
    notes = {chosen: "chosen" if selection["verdict"] == "extrapolate" else "kept"}
    rejected = rejected_alpha(selection)
    if rejected is not None:
        notes[rejected] = "rejected"
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.16 * (high - low))
    for x, candidate in enumerate(candidates):
        note = notes.get(candidate["alpha"])
        if note is None or candidate["gain"] is None:
            continue
        axes.axvline(x, color=WASH, linewidth=26, zorder=0)
        face = SURFACE if note == "rejected" else BLUE
        axes.plot(
            [x], [candidate["gain"]], marker="o", markersize=9,
            markerfacecolor=face, markeredgecolor=BLUE, markeredgewidth=1.6,
        )  # fmt: skip
        axes.annotate(
            note, (x, 1.0), xycoords=("data", "axes fraction"), xytext=(0, -2),
            textcoords="offset points", ha="center", va="top", fontsize=8.5, fontweight="bold",
        )  # fmt: skip


def _truth_panel(
    axes: Axes, alphas: Sequence[float], truth: Sequence[Gain], mean: float | None
) -> None:
    _gain_line(axes, alphas, truth, ORANGE, "D")
    axes.axhline(0, **ALIGNED_LINE)
    axes.yaxis.set_major_formatter(_signed_tick)
    suffix = "" if mean is None else f" (aligned: {_short(mean)})"
    axes.set_title(f"Hidden truth, gain over aligned on the same prompts{suffix}")


def _gain_line(
    axes: Axes, alphas: Sequence[float], gains: Sequence[Gain], colour: str, marker: str
) -> None:
    shown = [gain for gain in gains if gain.alpha in alphas]
    x = [alphas.index(gain.alpha) for gain in shown]
    axes.plot(
        x, [g.mean for g in shown], color=colour, marker=marker, markersize=4.5, linewidth=1.6
    )
    axes.vlines(
        x, [g.ci_low for g in shown], [g.ci_high for g in shown], color=colour, linewidth=1.4
    )


def guard_curves(selection: Mapping[str, Any], guards: Mapping[str, Sequence[Gain]]) -> Drawing:
    """Draw the gain that each guarding reward model sees against alpha, one panel each."""
    alphas = [c["alpha"] for c in _by_alpha(selection)]
    with canvas(len(guards), height=0.7 + 1.7 * len(guards)) as (figure, axes):
        for index, (name, gains) in enumerate(guards.items()):
            colour, marker = GUARD_STYLES[index % len(GUARD_STYLES)]
            _gain_line(axes[index], alphas, gains, colour, marker)
            axes[index].axhline(0, **ALIGNED_LINE)
            axes[index].set_title(f"{name}: gain over aligned")
            axes[index].margins(y=0.15)
        _alpha_axis(axes[-1], alphas)
        parts = [
            f"{name}: " + ", ".join(f"{format_alpha(g.alpha)}: {g.mean:+.2f}" for g in gains)
            for name, gains in guards.items()
        ]
        alt = "Gain over the aligned model by the guarding reward models. " + ". ".join(parts)
        return finish(figure, "guard-reward-models", alt + ".")


def length_curve(selection: Mapping[str, Any]) -> Drawing:
    """Draw tokens per response and the share of cut-off responses against alpha."""
    candidates = _by_alpha(selection)
    x = list(range(len(candidates)))
    tokens = [c["mean_tokens"] for c in candidates]
    truncated = [100 * (c["truncation_rate"] or 0.0) for c in candidates]
    with canvas(2, height=3.6) as (figure, axes):
        measured = [(p, t) for p, t in zip(x, tokens, strict=True) if t is not None]
        axes[0].plot(
            [p for p, _ in measured], [t for _, t in measured],
            color=GREEN, marker="s", markersize=4.5, linewidth=1.6,
        )  # fmt: skip
        aligned = next((c["mean_tokens"] for c in candidates if c["alpha"] == 0), None)
        if aligned is not None:
            axes[0].axhline(aligned, **ALIGNED_LINE)
        from_zero(axes[0])
        axes[0].set_title("Tokens per response")
        axes[1].bar(x, truncated, width=0.55, color=PURPLE)
        # None cut off is a finding too: a bar without height would not show it.
        axes[1].plot(
            x, truncated, color=PURPLE, marker="o", markersize=4.5, linestyle="none",
            clip_on=False, zorder=3,
        )  # fmt: skip
        axes[1].set_ylim(0, max(10.0, 1.15 * max(truncated, default=0.0)))
        axes[1].yaxis.set_major_formatter(lambda value, _: f"{value:g}%")
        axes[1].yaxis.set_major_locator(MaxNLocator(4))
        axes[1].set_title("Responses cut off at the token limit")
        _alpha_axis(axes[1], [c["alpha"] for c in candidates])
        alt = "Response length against alpha: " + "; ".join(
            f"{format_alpha(c['alpha'])}: {_short(c['mean_tokens'])} tokens, {share:.0f}% cut off"
            for c, share in zip(candidates, truncated, strict=True)
        )
        return finish(figure, "length-against-alpha", alt + ".")


def delta_map(modules: Sequence[str], layers: Sequence[str], cells: Mapping[Any, float]) -> Drawing:
    """Draw the relative norm of delta by module (rows) and layer (columns), in percent."""
    values = [[cells.get((m, layer), float("nan")) for layer in layers] for m in modules]
    with mpl.rc_context({**STYLE, "axes.grid": False}):
        height = 0.9 + 0.24 * len(modules)
        figure = Figure(figsize=(WIDTH_INCHES, height), layout="constrained")
        axes = figure.subplots()
        # Above 50 levels matplotlib draws the colour bar as a bitmap.
        colours = mpl.colormaps["cividis"].resampled(48)
        image = axes.pcolormesh(values, cmap=colours, vmin=0, edgecolors=SURFACE, linewidth=0.6)
        axes.invert_yaxis()
        axes.set_yticks([row + 0.5 for row in range(len(modules))], modules)
        step = max(1, len(layers) // 16)
        axes.set_xticks([x + 0.5 for x in range(0, len(layers), step)], layers[::step])
        axes.set_xlabel("layer")
        axes.spines[:].set_visible(False)
        bar = figure.colorbar(image, ax=axes, pad=0.015, aspect=14)
        bar.outline.set_visible(False)
        if bar.solids is not None:
            bar.solids.set_edgecolor("face")
        bar.ax.yaxis.set_major_locator(MaxNLocator(4))
        bar.ax.yaxis.set_major_formatter(lambda value, _: f"{value:.2g}%")
        low, high = min(cells.values()), max(cells.values())
        alt = (
            f"Heat map of the relative size of delta by module and layer, "
            f"from {low:.2g} to {high:.2g} percent."
        )
        return finish(figure, "delta-by-layer", alt)


def _by_alpha(selection: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return sorted(selection["candidates"], key=lambda c: float(c["alpha"]))


def _alpha_axis(axes: Axes, alphas: Sequence[float]) -> None:
    # Evenly spaced: candidates run from 0.1 to 12, and each is one experiment.
    axes.set_xticks(range(len(alphas)), [format_alpha(alpha) for alpha in alphas])
    axes.set_xlim(-0.5, len(alphas) - 0.5)
    axes.set_xlabel("alpha (candidates, evenly spaced)")


def _short(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3g}"
