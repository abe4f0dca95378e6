"""The tables of trainings that were forecast from their first part: `trajectory_laboratory`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

Row = dict[str, Any]
NEAR = 0.95
"""A gain that a verdict should have seen: the one that it asks of a fit."""
COMMENT = "\n## What this says\n"
"""Below it stands what a person wrote."""
HEADING = """# Trainings of the laboratory, forecast from their first part

Written by `python -m benchmarks.trajectory_laboratory --write` from {trainings} trainings:
{kinds}. Seeds {first} to {last}, {steps} steps, {kept} checkpoints. Only the first 15, 30 or 50% of
them are given to the fits and to the back-test. Errors are distances in weights from a later
checkpoint, relative to that of the last checkpoint given: below 1 a forecast is nearer. Truth is
the hidden score of sampled answers, as a mean over trainings with its standard error.
"""


def written(rows: Sequence[Row]) -> str:
    """Return the result file.

    Args:
        rows: One for each training.
    """
    if not rows:
        return "No training is done yet.\n"
    kinds = sorted({row["training"] for row in rows})
    counts = "; ".join(f"{sum(r['training'] == kind for r in rows)} of {kind}" for kind in kinds)
    seeds = [row["seed"] for row in rows]
    heading = HEADING.format(
        trainings=len(rows),
        kinds=counts,
        first=min(seeds),
        last=max(seeds),
        steps=rows[0]["num_steps"],
        kept=rows[0]["num_checkpoints"],
    )
    shares = [part["share"] for part in rows[0]["parts"]]
    sections = [heading, "## Does a verdict come true?\n", *_verdicts(rows, kinds, shares)]
    by_method: dict[str, list[Row]] = {}
    for row in rows:
        by_method.setdefault(row["training"].partition(",")[0], []).append(row)
    for method, some in sorted(by_method.items()):
        sections += [f"\n## {method}: how much was learnt?\n", *_learnt(some)]
        title = "which fit comes nearer to the end of the training?"
        sections += [f"\n## {method}: {title}\n", *_fits(some, shares)]
        title = "does a forecast answer like the whole training?"
        sections += [f"\n## {method}: {title}\n", *_truths(some, shares)]
    return "\n".join(sections) + "\n"


def with_comment(text: str, before: str) -> str:
    """Return new tables with what a person wrote below the old ones."""
    _, marker, comment = before.partition(COMMENT)
    return f"{text}{marker}{comment}"


def parts_of(rows: Iterable[Row], share: float) -> list[Row]:
    """Return what was found from one share of each training, with the training's own facts."""
    return [row | part for row in rows for part in row["parts"] if part["share"] == share]


def outcome(part: Row) -> str:
    """Return what became of a verdict: kept or broken, right or missed, or unknown.

    A promise is looked at where it was made, or at the largest horizon below it that the training
    reaches.
    """
    verdict, errors = part["verdict"], part["errors"]
    if verdict["decision"] == "unknown":
        return "unknown"
    horizons = [name for name in next(iter(errors.values())) if name != "end"]
    if verdict["decision"] == "keep":
        could = min(found[horizons[0]] for found in errors.values())
        return "missed" if could <= NEAR else "right"
    reached = [name for name in horizons if float(name) <= verdict["horizon"]]
    return "kept" if errors[verdict["forecast"]][reached[-1]] < 1 else "broken"


def _verdicts(rows: Sequence[Row], kinds: Sequence[str], shares: Sequence[float]) -> list[str]:
    lines = [
        "| training | given | promises kept | broken | keep: right | missed | cannot tell | "
        "mean horizon promised | the pair there |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for kind in [*kinds, None] if len(kinds) > 1 else kinds:
        some = [row for row in rows if kind in (None, row["training"])]
        for share in shares:
            parts = parts_of(some, share)
            counts = [outcome(part) for part in parts]
            told = [part for part in parts if part["verdict"]["decision"] == "extrapolate"]
            horizon = _mean([part["verdict"]["horizon"] for part in told])
            pair = [_pair_holds(part) for part in told]
            names = ("kept", "broken", "right", "missed", "unknown")
            cells = " | ".join(str(counts.count(name)) for name in names)
            lines.append(
                f"| {kind or '**all**'} | {share:.0%} | {cells} | {horizon:.2f} | "
                f"{sum(pair)} of {len(pair)} |"
            )
    return lines


def _pair_holds(part: Row) -> bool:
    errors = part["errors"]["pair"]
    reached = [n for n in errors if n != "end" and float(n) <= part["verdict"]["horizon"]]
    return bool(errors[reached[-1]] < 1)


def _learnt(rows: Sequence[Row]) -> list[str]:
    lines = [
        "| training | truth of the initial model | of the whole training | better in | "
        "straightness | R^2 of lines |",
        "|---|---|---|---|---|---|",
    ]
    for kind in sorted({row["training"] for row in rows}):
        some = [row for row in rows if row["training"] == kind]
        better = sum(row["truth_last"] > row["truth_initial"] for row in some)
        means = [_mean([row[name] for row in some]) for name in
                 ("truth_initial", "truth_last", "straightness", "r2_line")]  # fmt: skip
        lines.append(
            f"| {kind} | {means[0]:.2f} | {means[1]:.2f} | {better} of {len(some)} | "
            f"{means[2]:.2f} | {means[3]:.2f} |"
        )
    return lines


def _fits(rows: Sequence[Row], shares: Sequence[float]) -> list[str]:
    lines = [
        "| forecast of the last step | " + " | ".join(f"from {s:.0%}" for s in shares) + " |",
        "|---" * (len(shares) + 1) + "|",
    ]
    names = list(rows[0]["parts"][-1]["errors"])

    def cell(name: str, share: float) -> str:
        found = [p["errors"][name]["end"] for p in parts_of(rows, share) if name in p["errors"]]
        return f"{np.median(found):.2f} ({sum(e < 1 for e in found)} of {len(found)})"

    lines += _table(names, shares, cell)
    return [*lines, "", "Median error at the last step, and in how many trainings it is below 1."]


def _truths(rows: Sequence[Row], shares: Sequence[float]) -> list[str]:
    lines = [
        "| against the last checkpoint given | " + " | ".join(f"{s:.0%}" for s in shares) + " |",
        "|---" * (len(shares) + 1) + "|",
    ]
    names = ["the whole training", "as the verdict says", *_always(rows, shares)]

    def cell(name: str, share: float) -> str:
        parts = parts_of(rows, share)
        truths = [_truth(part, name) for part in parts]
        gains = [truth - p["truth_known"] for truth, p in zip(truths, parts, strict=True)]
        error = np.std(gains, ddof=1) / len(gains) ** 0.5 if len(gains) > 1 else float("nan")
        reached = sum(truth >= p["truth_last"] for truth, p in zip(truths, parts, strict=True))
        counts = f"{sum(gain > 0 for gain in gains)}, {reached} of {len(gains)}"
        return f"{np.mean(gains):+.2f} ± {error:.2f} ({counts})"

    lines += _table(names, shares, cell)
    note = (
        "Gain in hidden truth; in how many trainings it is positive, and in how many it reaches "
        "the truth of the whole training. Forecasts are of the last step, that of the verdict at "
        "its own horizon."
    )
    return [*lines, "", note]


def _truth(part: Row, name: str) -> float:
    if name == "the whole training":
        return float(part["truth_last"])
    if name == "as the verdict says":
        # To keep the last checkpoint is to gain nothing.
        promised = part["truth_promised"]
        return float(part["truth_known"] if promised is None else promised)
    return float(part["truths"][name])


def _always(rows: Sequence[Row], shares: Sequence[float]) -> list[str]:
    """Return the forecasts whose answers were measured in every training."""
    parts = [part for share in shares for part in parts_of(rows, share)]
    return [name for name in parts[0]["truths"] if all(name in part["truths"] for part in parts)]


def _table(
    names: Sequence[str], shares: Sequence[float], cell: Callable[[str, float], str]
) -> list[str]:
    return [f"| {name} | " + " | ".join(cell(name, s) for s in shares) + " |" for name in names]


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")
