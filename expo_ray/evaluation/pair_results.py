"""All that was measured of a pair, side by side: every benchmark, length and throughput.

From two folders, one per model, with what the commands wrote: the JSON of `evaluate alpaca-eval`
and `evaluate mt-bench`, result files of lm-evaluation-harness, `summary.json` of load tests. Two
results stand on one line only where they were measured alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from expo_ray.errors import TableError, first_names
from expo_ray.evaluation import alpaca_eval, mt_bench_judging
from expo_ray.evaluation.harness_logs import read_json_file
from expo_ray.evaluation.identity import IDENTITY, differing
from expo_ray.evaluation.open_llm import CANNOT_TELL, UNPAIRED, open_llm_changes, verdict_of

SCHEMA_VERSION = 1
HARNESS, LOAD_TEST = "lm-evaluation-harness", "load test"
_Z = 1.959963984540054
_SETTINGS = {
    alpaca_eval.BENCHMARK: ("judge", "baseline", "length_controlled_sha256", *IDENTITY[1:]),
    mt_bench_judging.BENCHMARK: ("judge", "judge_prompts", *IDENTITY[1:]),
    HARNESS: ("backend", "chat_template", "limit", "lm_eval"),
}
_LOAD_SCORES = (
    ("output_throughput", "tokens/s"),
    ("request_throughput", "requests/s"),
    ("median_ttft_ms", "ms"),
    ("p99_e2el_ms", "ms"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class PairRow:
    """One score of both models."""

    benchmark: str
    score: str
    unit: str
    before: float
    after: float
    change: float
    ci_low: float | None = None
    """95%, as of two independent results; None where a result has no spread."""
    ci_high: float | None = None
    verdict: str = CANNOT_TELL
    """`rises`, `falls` or `cannot-tell`; which of them is better is the score's matter."""


@dataclass(kw_only=True, slots=True)
class Side:
    """What a folder says of one model."""

    folder: Path
    model: str | None = None
    weights_digest: str | None = None
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By benchmark."""
    not_read: list[str] = field(default_factory=list)


def pair_results(before: str | Path, after: str | Path) -> dict[str, Any]:
    """Put the results of two models side by side.

    Args:
        before: Folder of the aligned model's results.
        after: Folder of the extrapolated model's.

    Returns:
        `{"schema_version", "before", "after", "rows", "settings", "notes"}`: a side has `model`,
        `weights_digest` and `folder`, a row the fields of `PairRow`, settings are by benchmark.

    Raises:
        TableError: A folder has no results, those of several models, or of a benchmark twice; or
            the two were measured under different settings.
    """
    sides = [_read(Path(folder)) for folder in (before, after)]
    digests = [side.weights_digest for side in sides]
    if digests[0] is not None and digests[0] == digests[1]:
        raise TableError(
            "both sides are the same weights",
            where=f"{before} and {after}",
            got=digests[0],
            hint="one folder per model",
        )
    rows: list[PairRow] = []
    settings: dict[str, Any] = {}
    notes: list[str] = []
    for benchmark in dict.fromkeys([*sides[0].results, *sides[1].results]):
        found = [side.results.get(benchmark) for side in sides]
        if found[0] is None or found[1] is None:
            notes.append(f"{benchmark} was measured of one model alone")
            continue
        _require_same_settings(benchmark, found[0], found[1], sides)
        names = _SETTINGS.get(benchmark, ())
        settings[benchmark] = {k: found[0][k] for k in names if found[0].get(k) is not None}
        if benchmark == HARNESS:
            changes = open_llm_changes(before, after)
            rows += _harness_rows(changes)
            notes += [note for note in changes["notes"] if note != UNPAIRED]  # said of all rows
        else:
            rows += _ROWS[benchmark](found[0], found[1])
        if alone := [k for k in names if (found[0].get(k) is None) != (found[1].get(k) is None)]:
            notes.append(f"{benchmark}: one side alone says its {', '.join(alone)}")
    if not rows:
        raise TableError(
            "the two models have no result in common",
            where=f"{before} and {after}",
            got="; ".join(notes),
        )
    for side in sides:
        if side.not_read:
            notes.append(f"no results, in {side.folder}: {first_names(side.not_read)}")
    return {
        "schema_version": SCHEMA_VERSION,
        "before": _about(sides[0]),
        "after": _about(sides[1]),
        "rows": [asdict(row) for row in rows],
        "settings": settings,
        "notes": notes,
    }


def _about(side: Side) -> dict[str, Any]:
    return {
        "model": side.model,
        "weights_digest": side.weights_digest,
        "folder": str(side.folder),
    }


def _read(folder: Path) -> Side:
    """Read every result of a folder and of the folders in it."""
    if not folder.is_dir():
        raise TableError("there is no such folder of results", where=folder)
    side = Side(folder=folder)
    for file in sorted(folder.rglob("*.json")):
        document = read_json_file(file)
        known = document if isinstance(document, Mapping) else {}
        benchmark = known.get("benchmark")
        if "error" in known and "kind" in (known["error"] or {}):
            raise TableError(
                "the result of a command that failed",
                where=file,
                got=known["error"].get("message"),
                hint="run the command again, or remove the file",
            )
        if isinstance(known.get("results"), Mapping):
            known = known.get("expo_ray") or {}  # the harness's own files do not say
            side.results.setdefault(HARNESS, dict(known))
        elif benchmark in _ROWS:
            _take(side, str(benchmark), dict(known), file)
        elif "points" in known and "target" in known:
            _take(side, LOAD_TEST, dict(known), file)
        else:
            side.not_read.append(str(file.relative_to(folder)))
            continue
        digest = known.get("weights_digest")
        if digest is not None and side.weights_digest not in (None, digest):
            raise TableError(
                "a folder holds results of several models",
                where=file,
                got=digest,
                expected=side.weights_digest,
                hint="one folder per model",
            )
        side.weights_digest = side.weights_digest or digest
        side.model = side.model or known.get("model")
    if not side.results:
        raise TableError(
            "the folder holds no results",
            where=folder,
            got=first_names(side.not_read) or "no JSON file",
            expected="what `expo-ray evaluate ... --json` prints, results of "
            "lm-evaluation-harness, summary.json of a load test",
        )
    return side


def _take(side: Side, benchmark: str, result: dict[str, Any], file: Path) -> None:
    if benchmark in side.results:
        raise TableError(
            "a benchmark is there twice", where=file, got=benchmark, hint="one folder per model"
        )
    side.results[benchmark] = result


def _require_same_settings(
    benchmark: str, before: Mapping[str, Any], after: Mapping[str, Any], sides: Sequence[Side]
) -> None:
    for name in differing((before, after), _SETTINGS.get(benchmark, ())):
        raise TableError(
            "results of different settings cannot stand on one line",
            where=f"{sides[1].folder}, {benchmark}, {name}",
            got=str(after[name]),
            expected=str(before[name]),
            hint="measure both models alike",
        )


def _row(
    benchmark: str,
    score: str,
    unit: str,
    values: Sequence[float],
    spreads: Sequence[float | None] = (None, None),
) -> PairRow:
    """Return a row from both values; `spreads` are their standard errors."""
    change = values[1] - values[0]
    low = high = None
    known = [spread for spread in spreads if spread is not None]
    if len(known) == len(spreads):
        reach = _Z * math.hypot(*known)
        low, high = change - reach, change + reach
    return PairRow(
        benchmark=benchmark,
        score=score,
        unit=unit,
        before=values[0],
        after=values[1],
        change=change,
        ci_low=low,
        ci_high=high,
        verdict=verdict_of(low, high),
    )


def _alpaca_rows(*sides: Mapping[str, Any]) -> Iterator[PairRow]:
    if sides[0]["n_total"] + sides[0]["n_missing"] != sides[1]["n_total"] + sides[1]["n_missing"]:
        raise TableError(
            "results of different settings cannot stand on one line",
            where="alpaca-eval, number of instructions",
            got=sides[1]["n_total"] + sides[1]["n_missing"],
            expected=sides[0]["n_total"] + sides[0]["n_missing"],
        )
    for score, error in (
        ("win_rate", "standard_error"),
        ("length_controlled_win_rate", "length_controlled_standard_error"),
        ("avg_length", None),
    ):
        values: Any = [side.get(score) for side in sides]
        if None in values:
            continue
        spreads = tuple(None if error is None else side.get(error) for side in sides)
        unit = "characters" if error is None else "%"
        yield _row(alpaca_eval.BENCHMARK, score, unit, values, spreads=spreads)


def _mt_bench_rows(*sides: Mapping[str, Any]) -> Iterator[PairRow]:
    for score in ("average", "first_turn", "second_turn"):
        found = [side[score] for side in sides]
        if any(one["mean"] is None for one in found):
            continue
        # Of a bootstrap's 95% interval.
        spreads = tuple(
            None if one["ci_low"] is None else (one["ci_high"] - one["ci_low"]) / 2 / _Z
            for one in found
        )
        values = [one["mean"] for one in found]
        yield _row(mt_bench_judging.BENCHMARK, score, "of 10", values, spreads=spreads)


def _load_rows(*sides: Mapping[str, Any]) -> Iterator[PairRow]:
    points = [{_load_of(point): point for point in side["points"]} for side in sides]
    for load in points[0]:
        for score, unit in _LOAD_SCORES:
            values: Any = [by_load.get(load, {}).get(score) for by_load in points]
            if None not in values:
                yield _row(LOAD_TEST, f"{score}, {load}", unit, values)


def _load_of(point: Mapping[str, Any]) -> str:
    if point.get("mode") == "open":
        return f"{point['offered_rate']:g} requests/s offered"
    return f"{point.get('concurrency')} in flight"


def _harness_rows(changes: Mapping[str, Any]) -> Iterator[PairRow]:
    """Yield the harness's shares as percent."""
    for task in (*changes["tasks"], *([changes["mean"]] if changes["mean"] else ())):
        shots = "" if task["num_shots"] is None else f" ({task['num_shots']} shots)"
        names = ("before", "after", "change", "ci_low", "ci_high")
        numbers: dict[str, Any] = {k: None if task[k] is None else 100 * task[k] for k in names}
        yield PairRow(
            benchmark=HARNESS,
            score=f"{task['task']}, {task['score']}{shots}",
            unit="%",
            **numbers,
            verdict=task["verdict"],
        )


_ROWS: Mapping[str, Callable[..., Iterator[PairRow]]] = {
    alpaca_eval.BENCHMARK: _alpaca_rows,
    mt_bench_judging.BENCHMARK: _mt_bench_rows,
    LOAD_TEST: _load_rows,
}
