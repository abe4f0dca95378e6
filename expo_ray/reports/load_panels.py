"""More figures of load tests: one point over time, replica scaling, two models compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from expo_ray.loadtests.records import RequestRecord
from expo_ray.loadtests.windows import in_flight
from expo_ray.reports.drawing import (
    BLUE,
    GREEN,
    INK,
    MUTED,
    ORANGE,
    SURFACE,
    WASH,
    Drawing,
    canvas,
    finish,
)
from expo_ray.reports.load_figures import REFERENCE_LINE, from_zero, load_text

Point = Mapping[str, Any]
_NUM_BUCKETS = 60
_MIN_BUCKET_SECONDS = 0.1
RATIOS = {
    "tokens_per_second": "tokens per second",
    "requests_per_second": "requests per second",
    "seconds_per_request": "time per request",
    "tokens_per_request": "tokens per answer",
}


def timeline(point: Point, records: Sequence[RequestRecord], *, index: int) -> Drawing:
    """Draw one point over time: requests in flight, texts per second, failures, interruptions.

    Args:
        point: Of summary.json.
        records: Its requests, without the warm-up.
        index: Number of the point.
    """
    steps = in_flight(records)
    texts = [t for r in records for t in r.token_seconds]
    end = max(r.done_seconds for r in records)
    width = max(_MIN_BUCKET_SECONDS, end / _NUM_BUCKETS)
    counts, edges = np.histogram(texts, bins=np.arange(0, end + width, width))
    with canvas(2, height=4.2) as (figure, axes):
        axes[0].step([s for s, _ in steps], [n for _, n in steps], where="post", color=BLUE, lw=1.2)
        axes[1].stairs(counts / width, edges, color=GREEN, fill=True, alpha=0.35, linewidth=0)
        axes[1].stairs(counts / width, edges, color=GREEN, linewidth=1.2)
        for panel in axes:
            from_zero(panel)
            _windows(panel, point)
        axes[0].yaxis.set_major_locator(MaxNLocator(5, integer=True))
        failed = [r.done_seconds for r in records if r.error not in (None, "empty")]
        if failed:
            axes[1].plot(
                failed, [0.02] * len(failed), marker="x", markersize=6, color=ORANGE,
                linestyle="none", transform=axes[1].get_xaxis_transform(), clip_on=False,
            )  # fmt: skip
        axes[0].set_title(f"{load_text(point)}: requests in flight")
        crosses = ", crosses: failed requests" if failed else ""
        axes[1].set_title(f"Chunks of text per second, in steps of {width:.2g} s{crosses}")
        axes[1].set_xlabel("seconds since the first request was due")
        parts = [str(one["text"]) for one in point.get("interruptions") or ()]
        alt = (
            f"Requests in flight and chunks of text per second over {end:.1f} seconds at "
            f"{load_text(point)}. {'; '.join(parts) or 'No interruption'}."
        )
        return finish(figure, f"timeline-{index}", alt)


def _windows(panel: Axes, point: Point) -> None:
    steady = point.get("steady")
    if steady:
        panel.axvspan(
            steady["start_seconds"], steady["end_seconds"], color=WASH, zorder=0, linewidth=0
        )
    for one in point.get("interruptions") or ():
        start, stop = one["start_seconds"], one["end_seconds"]
        if stop is not None and stop > start:
            panel.axvspan(start, stop, color=ORANGE, alpha=0.16, zorder=0.5, linewidth=0)
        panel.axvline(start, color=ORANGE, linewidth=1.0, linestyle=(0, (4, 3)))


def scaling_panels(points: Sequence[Point]) -> Drawing:
    """Draw throughput against replicas, how evenly they share, and what the proxy adds."""
    x = list(range(len(points)))
    unit = "output_throughput"
    if any(p[unit] is None for p in points):
        unit = "request_throughput"
    words = "Output tokens" if unit == "output_throughput" else "Requests"
    with canvas(3, height=6.6) as (figure, axes):
        _throughput_by_replicas(axes[0], points, unit)
        axes[0].set_title(f"{words} per second, and efficiency (share of the dashed ideal)")
        for i, point in enumerate(points):
            shares = _shares(point)
            if not shares:
                continue
            slot = 0.7 / len(shares)
            places = [i - 0.35 + slot * (n + 0.5) for n in range(len(shares))]
            axes[1].bar(places, shares, width=0.8 * min(slot, 0.25), color=BLUE)
        axes[1].axhline(1, **REFERENCE_LINE)
        from_zero(axes[1])
        axes[1].set_title("Requests answered by each replica, over the even share (dashed)")
        added = [p["proxy"]["added_median_ttft_ms"] for p in points]
        known = [(i, value) for i, value in zip(x, added, strict=True) if value is not None]
        axes[2].bar([i for i, _ in known], [v for _, v in known], width=0.3, color=GREEN)
        axes[2].axhline(0, color=MUTED, linewidth=0.7)
        axes[2].set_ylabel("ms")
        axes[2].margins(y=0.25)
        for i, value in known:
            ratio = points[i]["proxy"]["throughput_ratio"]
            if ratio is not None:
                axes[2].annotate(
                    f"{ratio:.2f} of the throughput", (i, max(value, 0)), xytext=(0, 3),
                    textcoords="offset points", ha="center", fontsize=8, color=INK,
                )  # fmt: skip
        axes[2].set_title("What HTTP and the proxy add to the first token, against the handle")
        axes[2].set_xticks(x, [str(p["num_replicas"]) for p in points])
        axes[2].set_xlim(-0.5, len(x) - 0.5)
        axes[2].set_xlabel("replicas")
        alt = "Replica scaling: " + "; ".join(
            f"{p['num_replicas']}: {_short(p[unit])} {words.lower()} per second, efficiency "
            f"{_percent(p['efficiency'])}, busiest over mean {_short(p['busiest_over_mean'])}"
            for p in points
        )
        return finish(figure, "scaling", alt + ".")


def _throughput_by_replicas(panel: Axes, points: Sequence[Point], unit: str) -> None:
    x = range(len(points))
    first = points[0]
    if first[unit] is not None:
        ideal = [first[unit] * p["num_replicas"] / first["num_replicas"] for p in points]
        panel.plot(x, ideal, **REFERENCE_LINE)
    for i, point in enumerate(points):
        if point[unit] is None:
            continue
        face = SURFACE if point["void"] else BLUE
        panel.plot(
            [i], [point[unit]], marker="X" if point["void"] else "D", markersize=7,
            markerfacecolor=face, markeredgecolor=ORANGE if point["void"] else BLUE,
            linestyle="none",
        )  # fmt: skip
        panel.annotate(
            f"{_percent(point['efficiency'])}{' void' if point['void'] else ''}", (i, point[unit]),
            xytext=(8, -10), textcoords="offset points", fontsize=8.5, color=INK,
        )  # fmt: skip
    from_zero(panel)


def _shares(point: Point) -> list[float]:
    counts = sorted((point["requests_by_replica"] or {}).values(), reverse=True)
    counts += [0] * (point["idle_replicas"] or 0)
    return [count * len(counts) / sum(counts) for count in counts]


def ratio_forest(points: Sequence[Point], *, baseline: str, candidate: str) -> Drawing:
    """Draw what changed between two models: ratios with their intervals, per load.

    Args:
        points: Of comparison.json, or with what `compare_requests` returns.
        baseline: Name of the reference.
        candidate: Name of the other.
    """
    rows = [
        (f"{name}, {load_text(_with_mode(point))}", point[key])
        for key, name in RATIOS.items()
        for point in points
        if point.get(key) is not None
    ]
    with canvas(1, height=1.1 + 0.3 * len(rows)) as (figure, axes):
        panel = axes[0]
        panel.grid(visible=False)
        panel.grid(visible=True, axis="x")
        for y, (_, figure_of) in enumerate(rows):
            colour = BLUE if figure_of["changed"] else MUTED
            panel.hlines(y, figure_of["ci_low"], figure_of["ci_high"], color=colour, linewidth=1.6)
            panel.plot(
                [figure_of["ratio"]], [y], marker="o", markersize=6, markeredgecolor=colour,
                markerfacecolor=colour if figure_of["changed"] else SURFACE, linestyle="none",
            )  # fmt: skip
        panel.axvline(1, **REFERENCE_LINE)
        panel.set_yticks(range(len(rows)), [name for name, _ in rows])
        panel.set_ylim(len(rows) - 0.4, -0.6)
        panel.set_xlabel(f"{candidate} over {baseline} (filled: the interval leaves 1 out)")
        panel.set_title("Ratios on the same requests, 95% intervals")
        alt = f"Ratios of {candidate} over {baseline}: " + "; ".join(
            f"{name}: {r['ratio']:.2f} ({r['ci_low']:.2f} to {r['ci_high']:.2f})"
            for name, r in rows
        )
        return finish(figure, "comparison", alt + ".")


def _with_mode(point: Point) -> dict[str, Any]:
    return {**point, "mode": "open" if point.get("offered_rate") is not None else "closed"}


def _short(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3g}"


def _percent(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.0%}"
