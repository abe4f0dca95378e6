"""The Open LLM Leaderboard before and after: what aligning further costs, task by task.

From the result files of lm-evaluation-harness. The leaderboard's tasks are named, with its score
and its number of examples in the prompt; all others stand for themselves. Two standard errors
alone cannot see that both models answered the same questions: `expo-ray compare` can, from samples.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from expo_ray.errors import TableError, first_names
from expo_ray.evaluation.harness_results import HarnessScore, HarnessTask, read_harness_results

SCHEMA_VERSION = 1
RISES, FALLS, CANNOT_TELL = "rises", "falls", "cannot-tell"
_Z = 1.959963984540054
_WORDS = {
    "num_shots": "examples in the prompt",
    "limit": "questions asked",
    "names": "parts",
    "score": "score",
    "version": "version of the task",
}
_HINT = "measure both models by the same version and settings of lm-evaluation-harness"
_USUAL = ("acc_norm", "acc", "exact_match,strict-match", "exact_match", "mc2", "pass@1", "em", "f1")


UNPAIRED = (
    "both models answered the same questions, which two standard errors cannot see: with samples "
    "(--log_samples) `expo-ray compare` tells more from as many questions"
)


class LeaderboardTask(NamedTuple):
    """One column of a leaderboard."""

    title: str
    names: tuple[str, ...]
    """Of the task, in the harness's versions; with a `*` at the end, the mean of all such tasks."""
    scores: tuple[str, ...]
    num_shots: int


VERSION_1 = (
    LeaderboardTask("ARC", ("arc_challenge",), ("acc_norm",), 25),
    LeaderboardTask("HellaSwag", ("hellaswag",), ("acc_norm",), 10),
    LeaderboardTask("MMLU", ("hendrycksTest-*", "mmlu"), ("acc",), 5),
    LeaderboardTask("TruthfulQA", ("truthfulqa_mc", "truthfulqa_mc2"), ("mc2", "acc"), 0),
    LeaderboardTask("Winogrande", ("winogrande",), ("acc",), 5),
    LeaderboardTask("GSM8K", ("gsm8k",), ("acc", "exact_match,strict-match"), 5),
)
"""The six tasks of version 1; its mean is the one of the paper."""

VERSION_2 = (
    LeaderboardTask("IFEval (prompts)", ("leaderboard_ifeval",), ("prompt_level_strict_acc",), 0),
    LeaderboardTask("BBH", ("leaderboard_bbh",), ("acc_norm",), 3),
    LeaderboardTask("MATH Lvl 5", ("leaderboard_math_hard",), ("exact_match",), 4),
    LeaderboardTask("GPQA", ("leaderboard_gpqa",), ("acc_norm",), 0),
    LeaderboardTask("MuSR", ("leaderboard_musr",), ("acc_norm",), 0),
    LeaderboardTask("MMLU-Pro", ("leaderboard_mmlu_pro",), ("acc",), 5),
)
"""The six tasks of version 2, as the harness scores them. The leaderboard rescales by the score of
chance and averages two scores of IFEval; as that is not done here, there is no mean."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskChange:
    """One task under both models; scores are shares."""

    task: str
    score: str
    num_shots: int | None
    before: float
    after: float
    change: float
    ci_low: float | None
    """95%, from the two standard errors: too wide, as the questions are the same."""
    ci_high: float | None
    verdict: str


class Measured(NamedTuple):
    """One task of one model."""

    score: str
    value: float
    standard_error: float | None
    num_shots: int | None
    limit: float | None
    version: str | None
    names: tuple[str, ...]
    """The harness's tasks it is made of."""


def open_llm_changes(before: str | Path, after: str | Path) -> dict[str, Any]:
    """Compare two models by result files of lm-evaluation-harness.

    Args:
        before: The aligned model's: a JSON file, or a folder of them; of any version.
        after: The extrapolated model's.

    Returns:
        `{"schema_version", "before", "after", "tasks", "mean", "notes"}`: a task has the fields of
        `TaskChange`; the mean is that of version 1 where its six tasks are there as the leaderboard
        asks them, else None.

    Raises:
        TableError: A file is malformed, or a task was measured in two ways.

    Example:
        >>> result = expo_ray.open_llm_changes("results-dpo.json", "results-expo.json")
        >>> [(row["task"], row["verdict"]) for row in result["tasks"]]
        [('GSM8K', 'falls')]
    """
    sides = [read_harness_results(path) for path in (before, after)]
    rows: list[TaskChange] = []
    mean: TaskChange | None = None
    used: set[str] = set()
    notes: list[str] = []
    for board in (VERSION_1, VERSION_2):
        changes = []
        for task in board:
            pair = [_measure(task, side) for side in sides]
            used.update(name for found in pair if found for name in found.names)
            if pair[0] and pair[1]:
                changes.append(_change(task.title, pair[0], pair[1]))
                notes += _shots_note(task, changes[-1])
        rows += changes
        if board is VERSION_1 and len(changes) == len(board) and not notes:
            mean = _mean(changes)
    # What a group that is shown is made of is not shown a second time.
    for name in [name for name in sides[0] if name in used]:
        used |= _all_parts(name, sides[0])
    for name in sorted((sides[0].keys() & sides[1].keys()) - used):
        task = LeaderboardTask(name, (name,), _common_scores(name, sides), 0)
        a, b = (_measure(task, side) for side in sides)
        if a and b:
            rows.append(_change(name, a, b))
    if not rows:
        raise TableError(
            "the two models have no task in common",
            where=after,
            got=first_names(sorted(sides[1])),
            expected=first_names(sorted(sides[0])),
        )
    return {
        "schema_version": SCHEMA_VERSION,
        "before": str(before),
        "after": str(after),
        "tasks": [asdict(row) for row in rows],
        "mean": None if mean is None else asdict(mean),
        "notes": [*notes, *_notes(sides)],
    }


def _measure(task: LeaderboardTask, side: Mapping[str, HarnessTask]) -> Measured | None:
    """Return a task's score, the plain mean of its parts where it has several."""
    for name in task.names:
        parts = [side[found] for found in sorted(fnmatch.filter(side, name))]
        if not parts:
            continue
        scores = [_score_of(part, task.scores) for part in parts]
        errors = [score.standard_error for _, score in scores]
        known = [error for error in errors if error is not None]
        return Measured(
            score=scores[0][0],
            value=sum(score.value for _, score in scores) / len(scores),
            standard_error=math.hypot(*known) / len(known) if len(known) == len(errors) else None,
            num_shots=parts[0].num_shots,
            limit=parts[0].limit,
            version=parts[0].version if len(parts) == 1 else None,
            names=tuple(part.name for part in parts),
        )
    return None


def _score_of(task: HarnessTask, wanted: Sequence[str]) -> tuple[str, HarnessScore]:
    for name in wanted:
        if name in task.scores:
            return name, task.scores[name]
    raise TableError(
        "a task of the leaderboard lacks its score",
        where=f"{task.file}, task {task.name!r}",
        got=first_names(sorted(task.scores)),
        expected=" or ".join(wanted),
    )


def _common_scores(name: str, sides: Sequence[Mapping[str, HarnessTask]]) -> tuple[str, ...]:
    """Return the scores of a task that both sides have, the usual ones first."""
    found = [side[name].scores for side in sides]
    common = [score for score in found[0] if score in found[1]]
    if not common:
        raise TableError(
            "a task was measured in two ways",
            where=f"{name}, score",
            got=f"{first_names(sorted(found[1]))} after",
            expected=f"{first_names(sorted(found[0]))} before",
            hint=_HINT,
        )
    return (*(score for score in _USUAL if score in common), *common)


def _all_parts(name: str, side: Mapping[str, HarnessTask]) -> set[str]:
    """Return what a group is made of, through all of its groups."""
    found: set[str] = set()
    todo = [name]
    while todo:
        parts = side[todo.pop()].parts
        todo += [part for part in parts if part in side and part not in found]
        found.update(parts)
    return found


def _shots_note(task: LeaderboardTask, row: TaskChange) -> list[str]:
    if row.num_shots in (None, task.num_shots):
        return []
    return [
        f"{task.title}: {row.num_shots} examples in the prompt, the leaderboard has "
        f"{task.num_shots}: no mean is given"
    ]


def _change(title: str, before: Measured, after: Measured) -> TaskChange:
    is_one_task = before.names == after.names
    for what in ("num_shots", "limit", "names", *(("score", "version") if is_one_task else ())):
        first, second = getattr(before, what), getattr(after, what)
        # Versions of the harness have other names for one task, but not another number of parts.
        differs = len(first) != len(second) if what == "names" else first != second
        if differs and (what == "limit" or None not in (first, second)):
            raise TableError(
                "a task was measured in two ways",
                where=f"{title}, {_WORDS[what]}",
                got=f"{_shown(second)} after",
                expected=f"{_shown(first)} before",
                hint=_HINT,
            )
    change = after.value - before.value
    low = high = None
    if before.standard_error is not None and after.standard_error is not None:
        reach = _Z * math.hypot(before.standard_error, after.standard_error)
        low, high = change - reach, change + reach
    return TaskChange(
        task=title,
        score=after.score,
        num_shots=before.num_shots if after.num_shots is None else after.num_shots,
        before=before.value,
        after=after.value,
        change=change,
        ci_low=low,
        ci_high=high,
        verdict=verdict_of(low, high),
    )


def verdict_of(low: float | None, high: float | None) -> str:
    """Return what an interval of a change says of it."""
    if low is None or high is None:
        return CANNOT_TELL
    return RISES if low > 0 else FALLS if high < 0 else CANNOT_TELL


def _mean(changes: Sequence[TaskChange]) -> TaskChange:
    """Return the plain mean of the six; its interval joins theirs, as independent ones."""
    n = len(changes)
    change = sum(row.change for row in changes) / n
    low = high = None
    if all(row.ci_low is not None for row in changes):
        reach = math.hypot(*(row.change - (row.ci_low or 0.0) for row in changes)) / n
        low, high = change - reach, change + reach
    return TaskChange(
        task="mean",
        score="mean of six",
        num_shots=None,
        before=sum(row.before for row in changes) / n,
        after=sum(row.after for row in changes) / n,
        change=change,
        ci_low=low,
        ci_high=high,
        verdict=verdict_of(low, high),
    )


def _shown(value: object) -> str:
    return first_names(value) if isinstance(value, tuple) else str(value)


def _notes(sides: Sequence[Mapping[str, HarnessTask]]) -> list[str]:
    notes = []
    for which, i in (("after", 0), ("before", 1)):
        missing = sorted(sides[i].keys() - sides[1 - i].keys())
        if missing:
            notes.append(f"not measured {which}: {first_names(missing)}")
    tasks = [task for side in sides for task in side.values()]
    limits = [task.limit for task in tasks if task.limit is not None]
    if limits:
        notes.append(f"only the first {max(limits):g} questions of a task were asked")
    return [*notes, UNPAIRED]
