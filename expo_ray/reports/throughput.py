"""The load test in words, rows and series."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from expo_ray.errors import TableError
from expo_ray.loadtests.compare import compare_folders, compare_summaries
from expo_ray.reports.load_figures import can_be_drawn
from expo_ray.reports.run_files import RunFiles, read_json

COMPARISON = "comparison.json"
Point = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Throughput:
    """Both models' points, the baseline first."""

    series: Mapping[str, Sequence[Point]]
    rejected: bool
    """The tested candidate was not chosen: the verdict keeps the aligned model."""
    sentence: str
    ratio: Mapping[str, Any] | None
    """Of tokens per second with its interval, measured by turns; None without."""
    void: bool
    """At some point the client could not keep up, so that its numbers are no measurement."""
    paired: Sequence[Point]
    """Per shared load the ratios with intervals, where the requests of both are at hand."""

    @property
    def plottable(self) -> Mapping[str, Sequence[Point]]:
        """The points that have both coordinates."""
        kept = {
            label: [p for p in points if can_be_drawn(p)] for label, points in self.series.items()
        }
        return {label: points for label, points in kept.items() if points}


def compare_throughput(run: RunFiles) -> Throughput | None:
    """Collect the load tests of a run; None where there is none."""
    if not run.loadtests:
        return None
    named = (str(run.compared.get(role, "")) for role in ("baseline", "candidate"))
    order = [label for label in named if label in run.loadtests]
    labels = order or sorted(run.loadtests)
    series = {_readable(label): run.loadtests[label].get("points", []) for label in labels}
    rejected = bool(run.compared.get("candidate_rejected"))
    summaries = [run.loadtests[label] for label in labels]
    by_turns = read_json(run.path / "loadtest" / COMPARISON).get("points", [])
    ratio, sentence = None, ""
    if by_turns:
        ratio, sentence = _by_turns(by_turns)
    elif len(summaries) == 2:
        sentence = _one_after_the_other(*summaries)
    return Throughput(
        series=series,
        rejected=rejected,
        sentence=sentence,
        ratio=ratio,
        void=any(point.get("client_saturated") for points in series.values() for point in points),
        paired=by_turns or _paired(run.path / "loadtest", labels),
    )


def load_label(point: Point) -> str:
    """Name the load of a point: requests in flight, or requests offered per second."""
    if point.get("mode") == "open":
        return f"{point.get('offered_rate'):g} req/s offered"
    return f"{point.get('concurrency')} in flight"


def _paired(folder: Path, labels: Sequence[str]) -> list[Point]:
    folders = [folder / label for label in labels]
    if len(folders) != 2 or not all((f / "requests.parquet").is_file() for f in folders):
        return []
    try:
        points = compare_folders(*folders)["points"]
    except (OSError, pa.ArrowException) as error:
        raise TableError("the load test is not readable", where=folder, got=error) from error
    return [{**point, **point["paired"]} for point in points]


def _readable(label: str) -> str:
    return label.replace("alpha-", "alpha ", 1) if label.startswith("alpha-") else label


def _by_turns(points: Sequence[Point]) -> tuple[Mapping[str, Any] | None, str]:
    """Compare the two models at the highest load."""
    last = points[-1]
    load = load_label({**last, "mode": "closed"})
    sentence = f"Against the aligned model, by turns, with {load}: {last['text']}."
    # A single turn of each is one after the other, whatever the interval over its prompts.
    return last["tokens_per_second"] if last["num_rounds"] > 1 else None, sentence


def _one_after_the_other(baseline: Mapping[str, Any], candidate: Mapping[str, Any]) -> str:
    """Compare them at the highest load that both have seen, without an interval."""
    shared = compare_summaries(baseline, candidate)["points"]
    if not shared:
        return ""
    return (
        f"Against the aligned model, with {load_label(shared[-1])}: {shared[-1]['text']}. They "
        "were tested one after the other: without turns and an interval, this cannot be told from "
        "noise."
    )
