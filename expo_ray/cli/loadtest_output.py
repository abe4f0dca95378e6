"""What the command `loadtest` prints for people."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from expo_ray.cli.session import new_table

VOID = Text("void:", style="red")


def _cell(value: object) -> str:
    if not isinstance(value, int | float):
        return "-"
    # Short, so that a line fits a terminal: 12,346 and not 1.235e+04.
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def render_points(console: Console, result: dict[str, Any]) -> None:
    """Print one line per point, and what went wrong."""
    from expo_ray.reports.wording import who_answered  # not light: only here

    open_loop = any(point["offered_rate"] is not None for point in result["points"])
    thoughts = any(point["with_thoughts"] for point in result["points"])
    columns = {
        **({"offered_rate": "offered/s"} if open_loop else {"concurrency": "in flight"}),
        "completed": "done",
        "failed": "failed",
        "request_throughput": "req/s",
        "output_throughput": "tok/s",
        "median_ttft_ms": "TTFT",
        "p99_ttft_ms": "p99",
        **({"median_ttfat_ms": "answer"} if thoughts else {}),
        "median_tpot_ms": "TPOT",
        "median_e2el_ms": "E2E",
        "p99_e2el_ms": "p99",
    }
    if any(point["goodput_share"] is not None for point in result["points"]):
        columns["goodput_share"] = "good"
    title = f"{result['target']} (medians and p99 of those done, ms)"
    table = new_table(*columns.values(), title=title)
    for point in result["points"]:
        table.add_row(*(_cell(point.get(key)) for key in columns))
    console.print(table)
    for point in result["points"]:
        for reason in point["void_reasons"]:
            console.print(VOID, f"the client could not keep up: {reason}", highlight=False)
        if point["errors"]:
            classes = ", ".join(f"{kind} {number}" for kind, number in point["errors"].items())
            console.print(f"failed: {classes}", markup=False, highlight=False)
        if point["without_answer"]:
            alone = f"{point['without_answer']} of {point['completed']} answers are thoughts alone"
            console.print(f"{alone} (--max-tokens?)", markup=False, highlight=False)
        for one in point["interruptions"]:
            console.print("interrupted:", one["text"], markup=False, highlight=False)
    answerers = who_answered(result["points"])
    if len(answerers) > 1:
        console.print("several models answered:", ", ".join(answerers), markup=False)
    if result["search"] is not None:
        search = result["search"]
        load = search["load"] if search["kind"] == "saturation" else f"{search['rate']} requests/s"
        console.print(f"{search['kind']}: {load}; {search['reason']}", markup=False)
    if result["prompts_reused"]:
        console.print("prompts repeat: a prefix cache may have helped (--unique-prompts)")


def render_comparison(console: Console, result: dict[str, Any]) -> None:
    """Print what changed from one alpha to the other."""
    for point in result["points"]:
        load = point["concurrency"] or f"{point['offered_rate']:g}/s"
        console.print(f"at {load}, {point['num_pairs']} pairs: {point['text']}", markup=False)
    if result["void"]:
        console.print(VOID, "the client could not keep up at some points")


def render_scaling(console: Console, result: dict[str, Any]) -> None:
    """Print one line per number of replicas."""
    headings = ("replicas", "tok/s", "req/s", "efficiency", "busiest/mean", "proxy tok/s ratio")
    table = new_table(*headings, title=str(result["target"]))
    for point in result["points"]:
        names = ("num_replicas", "output_throughput", "request_throughput", "efficiency")
        row = [point[name] for name in names]
        row += [point["busiest_over_mean"], point["proxy"]["throughput_ratio"]]
        table.add_row(*map(_cell, row))
    console.print(table)
    if any(point["void"] for point in result["points"]):
        console.print(VOID, "the client could not keep up at some points")
