"""Two load tests side by side: what changed, per point.

An extrapolated model may write longer, so that tokens per second and requests per second part
ways: the first says how fast the service works, the second how soon users are served.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from expo_ray.errors import TableError
from expo_ray.json_text import parse_json
from expo_ray.loadtests.paired import compare_requests

_RATIOS = (
    "request_throughput",
    "output_throughput",
    "median_ttft_ms",
    "median_tpot_ms",
    "median_e2el_ms",
    "p99_e2el_ms",
)
_PAIR_COLUMNS = [
    "point",
    "phase",
    "request_id",
    "prompt_id",
    "intended_seconds",
    "done_seconds",
    "output_tokens",
    "error",
]


def compare_summaries(baseline: Mapping[str, Any], candidate: Mapping[str, Any]) -> dict[str, Any]:
    """Compare two summaries at the loads that both have.

    Args:
        baseline: summary.json of the reference, such as the aligned model.
        candidate: summary.json of the other.

    Returns:
        `{"baseline", "candidate", "points"}`; a point has the load, one `<name>_ratio`
        (candidate over baseline, None where either is missing) per figure,
        `tokens_per_request_ratio`, `void` and a `text`. Without an interval it calls nothing a
        change, and nothing the same.
    """
    before = {_load(point): point for point in baseline["points"]}
    return {
        "baseline": baseline["target"],
        "candidate": candidate["target"],
        "points": [
            _compare_points(before[_load(point)], point)
            for point in candidate["points"]
            if _load(point) in before
        ],
    }


def compare_folders(baseline: Path, candidate: Path) -> dict[str, Any]:
    """Compare two load tests by their files: figures, and pairs of requests with intervals.

    Both must have offered the same prompts in the same order, as the same arguments do.

    Args:
        baseline: Folder with summary.json and requests.parquet of the reference.
        candidate: The same of the other.

    Returns:
        What `compare_summaries` does; each point has `paired` too, see
        `expo_ray.loadtests.paired.compare_requests`.
    """
    summaries, rows = [], []
    for folder in (baseline, candidate):
        try:
            summaries.append(parse_json((folder / "summary.json").read_text(encoding="utf-8")))
            table = pq.read_table(folder / "requests.parquet", columns=_PAIR_COLUMNS)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise TableError("the load test cannot be read", where=folder, got=error) from error
        rows.append(table.to_pylist())
    compared = compare_summaries(*summaries)
    indices = [{_load(p): i for i, p in enumerate(s["points"])} for s in summaries]
    for point in compared["points"]:
        sides = [
            [row for row in found if row["point"] == index[_load(point)]]
            for found, index in zip(rows, indices, strict=True)
        ]
        point["paired"] = compare_requests(*sides, is_closed=point["mode"] == "closed")
    return compared


def _load(point: Mapping[str, Any]) -> tuple[Any, ...]:
    return point["mode"], point["concurrency"], point["offered_rate"]


def _compare_points(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    tokens = _ratio(_tokens_per_request(before), _tokens_per_request(after))
    ratios = {f"{name}_ratio": _ratio(before[name], after[name]) for name in _RATIOS}
    return {
        "mode": after["mode"],
        "concurrency": after["concurrency"],
        "offered_rate": after["offered_rate"],
        **ratios,
        "tokens_per_request_ratio": tokens,
        "void": bool(before["client_saturated"] or after["client_saturated"]),
        "text": "; ".join(
            (
                _words("tokens per answer", tokens),
                _words("tokens per second", ratios["output_throughput_ratio"]),
                _words("requests per second", ratios["request_throughput_ratio"]),
            )
        ),
    }


def _tokens_per_request(point: Mapping[str, Any]) -> float | None:
    total, completed = point["total_output_tokens"], point["completed"]
    return total / completed if total is not None and completed else None


def _ratio(before: float | None, after: float | None) -> float | None:
    return after / before if before and after is not None else None


def _words(what: str, ratio: float | None) -> str:
    return f"{what}: {'not known' if ratio is None else f'{ratio:.2f} times'}"
