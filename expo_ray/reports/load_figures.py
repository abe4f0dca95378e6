"""The figures of load tests, each with the words for those who do not see it.

Void points, at which the client could not keep up, are drawn hollow and marked by a cross.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from expo_ray.reports.drawing import (
    BLUE,
    GREEN,
    INK,
    MUTED,
    ORANGE,
    PURPLE,
    SURFACE,
    WASH,
    Drawing,
    canvas,
    finish,
)

Point = Mapping[str, Any]
SERIES_STYLES = ((BLUE, "D"), (MUTED, "o"), (GREEN, "s"), (PURPLE, "^"))
REFERENCE_LINE: Mapping[str, Any] = {"color": MUTED, "linewidth": 0.9, "linestyle": (0, (4, 3))}
_LINE: Mapping[str, Any] = {"markersize": 5, "linewidth": 1.6}
_LABEL_GAP_PIXELS = 28.0


def latency_curve(series: Mapping[str, Sequence[Point]], *, name: str = "throughput") -> Drawing:
    """Draw the time to the first token and to the whole answer against throughput.

    Args:
        series: Points by model, each with the figures that `can_be_drawn` asks for.
        name: Of the drawing.
    """
    x_name = _throughput_name(p for points in series.values() for p in points)
    with canvas(2, height=5.0) as (figure, axes):
        for index, (label, points) in enumerate(series.items()):
            # Of two, the first is the baseline and recedes.
            style = SERIES_STYLES[1 - index if len(series) == 2 else index % len(SERIES_STYLES)]
            for panel, figure_name in zip(axes, ("ttft_ms", "e2el_ms"), strict=True):
                _latency_lines(panel, points, x_name, figure_name, style, label)
        for panel, what in zip(axes, ("first token", "whole answer"), strict=True):
            from_zero(panel)
            panel.margins(x=0.08)
            panel.set_ylabel("ms")
            panel.set_title(f"Time to the {what}: median, bar up to the 99th percentile")
        axes[-1].set_xlabel(_unit_words(x_name))
        if len(series) > 1:
            # Latency rises to the right: below the curve there is room.
            axes[1].legend(loc="lower right")
        for index, points in enumerate(series.values()):
            _name_loads(figure, axes[1], points, x_name, below=index == 0 and len(series) > 1)
        alt = "Median latency against throughput. " + ". ".join(
            f"{label}: "
            + ", ".join(
                f"{load_text(p)}: {p[x_name]:.3g} {_unit_words(x_name)} at "
                f"{p['median_e2el_ms']:.0f} ms{' (void)' if p.get('client_saturated') else ''}"
                for p in points
            )
            for label, points in series.items()
        )
        return finish(figure, name, alt + ".")


def can_be_drawn(point: Point) -> bool:
    """Say whether a point has what `latency_curve` and `load_curve` draw."""
    needed = ("request_throughput", "median_e2el_ms", "p99_e2el_ms", "median_ttft_ms")
    return all(point.get(key) is not None for key in (*needed, "p99_ttft_ms"))


def load_curve(points: Sequence[Point], *, search: Mapping[str, Any] | None) -> Drawing:
    """Draw throughput and latency against the load: where it saturates.

    Args:
        points: All of one mode.
        search: What a search for saturation found, to be marked.
    """
    ordered = sorted(points, key=_load_value)
    x = list(range(len(ordered)))
    is_open = ordered[0]["mode"] == "open"
    unit = "request_throughput" if is_open else _throughput_name(ordered)
    with canvas(3, height=6.4) as (figure, axes):
        top = axes[0]
        if is_open:
            top.plot(x, [p["offered_rate"] for p in ordered], label="offered", **REFERENCE_LINE)
        top.plot(x, [p[unit] for p in ordered], color=BLUE, marker="D", label="whole run", **_LINE)
        steady = [(i, _steady(p, unit)) for i, p in enumerate(ordered)]
        known = [(i, value) for i, value in steady if value is not None]
        top.plot(
            [i for i, _ in known], [v for _, v in known], color=GREEN, marker="s",
            linestyle=(0, (1, 1.5)), label="steady window", **_LINE,
        )  # fmt: skip
        top.set_title(f"Throughput: {_unit_words(unit)}")
        top.legend(loc="lower right")
        for panel, what in ((axes[1], "ttft_ms"), (axes[2], "e2el_ms")):
            for share, colour, marker in (("median", BLUE, "D"), ("p90", GREEN, "s"),
                                          ("p99", PURPLE, "^")):  # fmt: skip
                y = [p.get(f"{share}_{what}") for p in ordered]
                panel.plot(x, _gaps(y), color=colour, marker=marker, label=share, **_LINE)
            panel.set_ylabel("ms")
        axes[1].set_title("Time to the first token")
        axes[2].set_title("Time to the whole answer")
        axes[1].legend(loc="upper left", ncols=3)
        for panel in axes:
            from_zero(panel, headroom=0.3 if panel is axes[1] else 0.12)
        _mark_void(axes, ordered)
        if search and search.get("load") and search.get("found"):
            _mark_load(axes, ordered, search["load"], "saturated beyond")
        axes[-1].set_xticks(x, [load_text(p, short=True) for p in ordered])
        axes[-1].set_xlim(-0.5, len(x) - 0.5)
        words = "requests offered per second" if is_open else "requests in flight"
        axes[-1].set_xlabel(f"{words} (points, evenly spaced)")
        alt = f"{_unit_words(unit)} against {words}: " + "; ".join(
            f"{load_text(p, short=True)}: {p[unit]:.3g}" for p in ordered
        )
        return finish(figure, f"load-{'open' if is_open else 'closed'}", alt + ".")


def search_trail(points: Sequence[Point], search: Mapping[str, Any]) -> Drawing:
    """Draw the rates that a search for the highest one tried, in order, and what share passed."""
    x = list(range(len(points)))
    rates = [p["offered_rate"] for p in points]
    best, share = search["rate"], search["slo_share"]
    with canvas(2, height=4.4) as (figure, axes):
        axes[0].plot(x, rates, color=MUTED, linewidth=0.9)
        shares = [100 * p["goodput_share"] if p["goodput_share"] is not None else None
                  for p in points]  # fmt: skip
        for i, point in enumerate(points):
            passed = best is not None and point["offered_rate"] <= best
            face = BLUE if passed else SURFACE
            marker = "X" if point["client_saturated"] else "o"
            for panel, value in ((axes[0], rates[i]), (axes[1], shares[i])):
                if value is not None:
                    panel.plot(
                        [i], [value], marker=marker, markersize=7, markerfacecolor=face,
                        markeredgecolor=BLUE, markeredgewidth=1.5, linestyle="none",
                    )  # fmt: skip
        if best is not None:
            axes[0].axhline(best, **REFERENCE_LINE)
        axes[1].axhline(100 * share, **REFERENCE_LINE)
        axes[0].set_ylim(0, 1.15 * max(rates))
        axes[1].set_ylim(-4, 108)
        axes[1].yaxis.set_major_formatter(lambda value, _: f"{value:g}%")
        found = "none" if best is None else f"dashed: the highest, {best:.3g}"
        axes[0].set_title(f"Rates tried, requests per second (filled: objectives met; {found})")
        axes[1].set_title(f"Share of all sent that met the objectives (dashed: {share:.1%} must)")
        axes[1].set_xticks(x, [f"{rate:.3g}/s" for rate in rates])
        axes[1].set_xlim(-0.5, len(x) - 0.5)
        axes[1].set_xlabel("trials in order, by their rate")
        alt = "Search for the highest rate within the objectives: " + "; ".join(
            f"{rate:.3g} requests per second: {'n/a' if s is None else f'{s:.1f}%'}"
            for rate, s in zip(rates, shares, strict=True)
        )
        return finish(figure, "search", alt + ".")


def load_text(point: Point, *, short: bool = False) -> str:
    """Name the load of a point: requests in flight, or requests offered per second."""
    if point.get("mode") == "open":
        rate = f"{point['offered_rate']:.3g}"
        return rate if short else f"{rate}/s"
    return str(point.get("concurrency")) if short else f"c={point.get('concurrency')}"


def from_zero(panel: Axes, *, headroom: float = 0.12) -> None:
    """Let an axis begin at 0 and leave some room above, for labels and for constant data."""
    panel.set_ylim(0, max(panel.dataLim.y1, 0) * (1 + headroom) or 1)


def _latency_lines(
    panel: Axes,
    points: Sequence[Point],
    x_name: str,
    figure_name: str,
    style: tuple[str, str],
    label: str,
) -> None:
    """Draw one line per mode: a rate is no number of requests in flight."""
    colour, marker = style
    for mode in sorted({p["mode"] for p in points}):
        alike = sorted((p for p in points if p["mode"] == mode), key=_load_value)
        x = [p[x_name] for p in alike]
        y = [p[f"median_{figure_name}"] for p in alike]
        panel.plot(x, y, color=colour, marker=marker, label=label, **_LINE)
        tops = [p[f"p99_{figure_name}"] for p in alike]
        panel.vlines(x, y, tops, color=colour, linewidth=1.0, alpha=0.6)
        for point, at, value in zip(alike, x, y, strict=True):
            if point.get("client_saturated"):
                _void_marker(panel, at, value)
        label = ""  # the legend names a model once


def _name_loads(
    figure: Figure, panel: Axes, points: Sequence[Point], x_name: str, *, below: bool
) -> None:
    """Write the loads at their points, but for those that would lie on one another."""
    figure.draw_without_rendering()  # settles the layout, and so where points lie
    taken: list[tuple[float, float]] = []
    for point in points:
        place = (point[x_name], point["median_e2el_ms"])
        at_x, at_y = panel.transData.transform(place)
        if any(
            abs(at_x - a) < 1.6 * _LABEL_GAP_PIXELS and abs(at_y - b) < _LABEL_GAP_PIXELS / 2
            for a, b in taken
        ):
            continue
        taken.append((at_x, at_y))
        offset = (5, -12) if below else (5, 5)
        if below and at_y - panel.bbox.y0 < _LABEL_GAP_PIXELS:
            offset = (8, -3)  # below the point the text would lie on the axis
        panel.annotate(
            load_text(point), place, xytext=offset,
            textcoords="offset points", fontsize=8, color=MUTED,
        )  # fmt: skip


def _mark_void(axes: Sequence[Axes], points: Sequence[Point]) -> None:
    for x, point in enumerate(points):
        if not point["client_saturated"]:
            continue
        for panel in axes:
            panel.axvspan(x - 0.4, x + 0.4, color=WASH, zorder=0, linewidth=0)
        axes[0].annotate(
            "void", (x, 1.0), xycoords=("data", "axes fraction"), xytext=(0, -2),
            textcoords="offset points", ha="center", va="top", fontsize=8.5,
            fontweight="bold", color=ORANGE,
        )  # fmt: skip


def _mark_load(
    axes: Sequence[Axes], points: Sequence[Point], load: Mapping[str, Any], text: str
) -> None:
    wanted = load["concurrency"] if load["concurrency"] is not None else load["rate"]
    x = next((i for i, p in enumerate(points) if _load_value(p) == wanted), None)
    if x is None:
        return
    for panel in axes:
        panel.axvline(x, **REFERENCE_LINE, zorder=0)
    is_left = x > len(points) / 2
    axes[0].annotate(
        text, (x, 1.0), xycoords=("data", "axes fraction"),
        xytext=(-4 if is_left else 4, -2), textcoords="offset points",
        ha="right" if is_left else "left", va="top", fontsize=8.5, color=INK,
    )  # fmt: skip


def _void_marker(panel: Axes, x: float, y: float) -> None:
    panel.plot(
        [x], [y], marker="X", markersize=9, markerfacecolor=SURFACE, markeredgecolor=ORANGE,
        markeredgewidth=1.4, linestyle="none", zorder=4,
    )  # fmt: skip


def _throughput_name(points: Any) -> str:
    known = all(point.get("output_throughput") is not None for point in points)
    return "output_throughput" if known else "request_throughput"


def _unit_words(name: str) -> str:
    return "output tokens per second" if name == "output_throughput" else "requests per second"


def _load_value(point: Point) -> float:
    value = point["concurrency"] if point.get("concurrency") is not None else point["offered_rate"]
    return float(value)


def _steady(point: Point, name: str) -> float | None:
    value: float | None = (point.get("steady") or {}).get(name)
    return value


def _gaps(values: Sequence[float | None]) -> list[float]:
    return [float("nan") if value is None else value for value in values]
