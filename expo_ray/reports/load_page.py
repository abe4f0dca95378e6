"""The page of a load test, a comparison or a scaling test, from the files of its folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from expo_ray.errors import TableError
from expo_ray.loadtests.records import RequestRecord
from expo_ray.reports.drawing import Drawing
from expo_ray.reports.load_figures import can_be_drawn, latency_curve, load_curve, search_trail
from expo_ray.reports.load_panels import ratio_forest, scaling_panels, timeline
from expo_ray.reports.run_files import in_our_form, read_json
from expo_ray.reports.throughput import load_label
from expo_ray.reports.wording import format_alpha, who_answered
from expo_ray.tables import read_table

SUMMARY, COMPARISON, SCALING = "summary.json", "comparison.json", "scaling.json"
_MAX_TIMELINES = 3
_LATER_COLUMNS = {"first_answer", "reasoning_tokens", "unstreamed_tokens"}
"""Older load tests have none of them."""
_SPEEDS = (
    *("request_throughput", "output_throughput", "completed", "failed", "client_saturated"),
    *("median_ttft_ms", "p99_ttft_ms", "median_ttfat_ms", "p99_ttfat_ms", "with_thoughts"),
    *("median_tpot_ms", "p99_tpot_ms"),
    *("median_e2el_ms", "p99_e2el_ms"),
)
Page = tuple[dict[str, Any], list[Drawing]]


def is_load_test(folder: Path) -> bool:
    """Say whether a folder is the output of `expo-ray loadtest` and no run directory."""
    names = (SUMMARY, COMPARISON, SCALING)
    return not (folder / "selection.json").is_file() and any(
        (folder / name).is_file() for name in names
    )


def speed_rows(series: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Return the rows of the table of points, with every column."""
    return [
        {
            **dict.fromkeys(_SPEEDS),
            **point,
            "model": label,
            "load": load_label(point),
            "steady": point.get("steady"),
        }
        for label, points in series.items()
        for point in points
    ]


def load_page(folder: Path) -> Page:
    """Return what the page shows, and its figures.

    Raises:
        ConfigError: A JSON file is malformed.
        TableError: requests.parquet is malformed.
    """
    build = next(
        function
        for name, function in (
            (SCALING, _scaling),
            (COMPARISON, _comparison),
            (SUMMARY, _single),
        )
        if (folder / name).is_file()
    )
    with in_our_form(folder):
        page, drawings = build(folder)
    page["figures"] = {drawing.name: drawing for drawing in drawings}
    return {"scaling": None, "compared": None, "timelines": [], **page}, drawings


def _single(folder: Path) -> Page:
    summary = read_json(folder / SUMMARY)
    points, search = summary["points"], summary.get("search")
    label = summary["model"]
    shown = [p for p in points if can_be_drawn(p)]
    drawings = _curves({label: shown}, search)
    if search and search["kind"] == "slo":
        drawings.append(search_trail(points, search))
    lines = _timelines(folder, points)
    page = {
        **_heading(f"Load test of {label}", folder, [summary]),
        "sentence": _found(points, search),
        "rows": speed_rows({label: points}),
        "timelines": [drawing.name for drawing in lines],
    }
    return page, [*drawings, *lines]


def _comparison(folder: Path) -> Page:
    compared = read_json(folder / COMPARISON)
    names = {side: _side_name(compared[side]) for side in ("baseline", "candidate")}
    if len(set(names.values())) == 1:
        names = {side: f"{name} ({side})" for side, name in names.items()}
    rounds = range(compared["rounds"])
    summaries = {
        f"{name}, round {number + 1}": read_json(folder / side / f"round-{number}" / SUMMARY)
        for side, name in names.items()
        for number in rounds
    }
    series = {label: summary["points"] for label, summary in summaries.items()}
    middle = {
        name: _median_rounds([series[f"{name}, round {number + 1}"] for number in rounds])
        for name in names.values()
    }
    drawings = _curves(middle, None)
    if any(point["num_pairs"] for point in compared["points"]):
        drawings.insert(0, ratio_forest(compared["points"], **names))
    loads = [_load_words(point) for point in compared["points"]]
    # Only a closed loop tells how many requests and tokens a second the service makes.
    closed = [i for i, p in enumerate(compared["points"]) if p["offered_rate"] is None]
    main = closed[-1] if closed else -1
    page = {
        **_heading(f"{names['candidate']} against {names['baseline']}", folder,
                   list(summaries.values())),
        "sentence": f"With {loads[main]}: {compared['points'][main]['text']}.",
        "compared": [
            {"load": load, **point} for load, point in zip(loads, compared["points"], strict=True)
        ],
        "rows": speed_rows(series),
    }  # fmt: skip
    return page, drawings


def _scaling(folder: Path) -> Page:
    scaling = read_json(folder / SCALING)
    points = scaling["points"]
    summaries = {
        f"{p['num_replicas']} replicas, {way}, round {number + 1}": read_json(
            folder / f"replicas-{p['num_replicas']}-{way}" / f"round-{number}" / SUMMARY
        )
        for p in points
        for way in ("proxy", "direct")
        for number in range(scaling["rounds"])
    }
    first, last = points[0], points[-1]
    sentence = f"{last['num_replicas']} replicas: efficiency not known."
    if last["efficiency"] is not None:
        times = last["efficiency"] * last["num_replicas"] / first["num_replicas"]
        sentence = (
            f"{last['num_replicas']} replicas: {times:.2f} times the throughput of "
            f"{first['num_replicas']}, an efficiency of {last['efficiency']:.0%}."
        )
    page = {
        **_heading(f"Replica scaling of {scaling['target']}", folder, list(summaries.values())),
        "sentence": sentence,
        "scaling": points,
        "rows": speed_rows({label: s["points"] for label, s in summaries.items()}),
    }
    return page, [scaling_panels(points)]


def _curves(
    series: Mapping[str, Sequence[Mapping[str, Any]]], search: Mapping[str, Any] | None
) -> list[Drawing]:
    shown = {label: points for label, points in series.items() if points}
    drawings = [latency_curve(shown)] if sum(map(len, shown.values())) > 1 else []
    if len(shown) == 1:
        [points] = shown.values()
        for mode in ("closed", "open"):
            alike = [p for p in points if p["mode"] == mode and not p.get("trace")]
            if len(alike) > 1:
                drawings.append(load_curve(alike, search=search))
    return drawings


def _timelines(folder: Path, points: Sequence[Mapping[str, Any]]) -> list[Drawing]:
    """Draw the points that were interrupted, and the last one."""
    file = folder / "requests.parquet"
    if not file.is_file():
        return []
    broken = [i for i, point in enumerate(points) if point.get("interruptions")]
    chosen = sorted({*broken[: _MAX_TIMELINES - 1], len(points) - 1})
    names = {field.name for field in fields(RequestRecord)}
    table = read_table(file)
    names -= _LATER_COLUMNS - set(table.column_names)
    if missing := sorted({"point", *names} - set(table.column_names)):
        raise TableError("columns are missing", where=file, got=f"without {missing}")
    drawings = []
    rows = [row for row in table.to_pylist() if row["point"] in chosen and row["phase"] != "warmup"]
    for index in chosen:
        records = [
            RequestRecord(**{name: row[name] for name in names})
            for row in rows
            if row["point"] == index
        ]
        if records:
            drawings.append(timeline(points[index], records, index=index))
    return drawings


def _found(points: Sequence[Mapping[str, Any]], search: Mapping[str, Any] | None) -> str:
    if search is not None and search["kind"] == "slo":
        if search["rate"] is None:
            return f"No rate met the objectives: {search['reason']}."
        return (
            f"Highest rate that met the objectives: {search['rate']:.3g} requests per second "
            f"({search['reason']})."
        )
    kept = [point for point in points if not point["client_saturated"]]
    if not kept:
        return "Void: the client could not keep up at any point."
    best = max(kept, key=lambda p: p.get("output_throughput") or p["request_throughput"] or 0)
    tokens, requests = best.get("output_throughput"), best["request_throughput"]
    if tokens is None and requests is None:
        return "No request was completed."
    much = f"{requests:.3g} requests" if tokens is None else f"{tokens:,.0f} output tokens"
    most = f"Most: {much} per second, with {load_label(best)}."
    return most if search is None else f"{most} Saturation: {search['reason']}."


def _heading(title: str, folder: Path, summaries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    cautions = []
    for text, name in (
        ("Void: {}, the client could not keep up ({}).", "void_reasons"),
        ("Interrupted: {}, {}.", "interruptions"),
    ):
        for summary in summaries:
            for point in summary["points"]:
                for one in point.get(name) or ():
                    words = one if isinstance(one, str) else one["text"]
                    where = f"{summary['model']}, {load_label(point)}"
                    cautions.append(text.format(where, words))
    for summary in summaries:
        names = who_answered(summary["points"])
        if len(names) > 1:
            cautions.append(f"{summary['target']}: several models answered ({', '.join(names)}).")
    cautions += [
        f"{point['without_answer']} of {point['completed']} completed requests hold thoughts, "
        f"no answer: {summary['model']}, {load_label(point)}; more --max-tokens may help."
        for summary in summaries
        for point in summary["points"]
        if point.get("without_answer")
    ]
    if any(summary.get("prefix_cache") == "reused" for summary in summaries):
        cautions.append("Prompts repeat: a prefix cache may have helped (--unique-prompts).")
    if any((summary.get("clients") or {}).get("beside_replicas") for summary in summaries):
        cautions.append("Clients and replicas shared machines, and so processor time.")
    return {
        "title": folder.resolve().name,
        "headline": title,
        "cautions": list(dict.fromkeys(cautions)),
        "facts": _facts(summaries[0]),
    }


def _facts(summary: Mapping[str, Any]) -> list[tuple[str, Any]]:
    names = ("target", "model", "alpha", "weights_digest", "prefix_cache", "num_requests",
             "max_tokens")  # fmt: skip
    rows = [(name.replace("_", " "), summary.get(name)) for name in names]
    rows += [("clients", (summary.get("clients") or {}).get("num_clients"))]
    rows += [(f"version of {name}", v) for name, v in (summary.get("versions") or {}).items()]
    rows += [(f"option {name}", value) for name, value in (summary.get("options") or {}).items()]
    return [(name, value) for name, value in rows if value not in (None, {}, "")]


def _side_name(side: Mapping[str, Any]) -> str:
    alpha = side.get("alpha")
    return str(side["model"]) if alpha is None else f"alpha {format_alpha(alpha)}"


def _median_rounds(rounds: Sequence[Sequence[Mapping[str, Any]]]) -> list[Mapping[str, Any]]:
    """Return per load the round of median throughput."""
    found = []
    for alike in zip(*rounds, strict=True):
        shown = [point for point in alike if can_be_drawn(point)]
        shown.sort(key=lambda p: float(p.get("output_throughput") or p["request_throughput"]))
        found += shown[len(shown) // 2 : len(shown) // 2 + 1]
    return found


def _load_words(point: Mapping[str, Any]) -> str:
    mode = "open" if point.get("offered_rate") is not None else "closed"
    return load_label({**point, "mode": mode})
