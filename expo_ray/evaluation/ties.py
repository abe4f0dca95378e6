"""RewardBench 2's subset Ties: questions that have several right answers, none better than another.

A question comes twice: `ref:N` with one right answer and `tied:N` with several. A reward model is
good at them where every right answer is above every wrong one, and where the right ones lie nearer
to each other than to the best wrong one. The score is that of RewardBench 2 (arXiv 2506.01937):

    0.3 accuracy on tied + 0.3 accuracy on ref
    + 0.2 share of questions with lead(tied) > spread
    + 0.2 share of questions with min(lead(ref), lead(tied)) > spread
    + 0.01 mean of tanh(min(lead(ref), lead(tied)) / spread - 1)

lead is the least lead of a right over a wrong answer, spread the distance between the best and the
worst of the right answers of `tied`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypedDict

import numpy as np
import numpy.typing as npt

from expo_ray.errors import TableError

SUBSET = "Ties"
_ID = re.compile(r"(ref|tied):(\d+)")
_NUM_RESAMPLES = 10_000
_SEED = 42

FloatArray = npt.NDArray[np.float64]


class TieGroup(NamedTuple):
    """What a reward model made of one row."""

    pair_id: str
    lead: float | None
    """None where a score is missing."""
    spread: float | None
    """None with one right answer, or where a score is missing."""


class TiesScore(TypedDict):
    """The score of the subset and its parts; a part is None where no question has it."""

    score: float | None
    ci_low: float | None
    ci_high: float | None
    accuracy_tied: float | None
    accuracy_ref: float | None
    correctness_preferred: float | None
    correctness_preferred_hard: float | None
    margin: float | None
    num_questions: int
    """Of which both rows could be scored; the margins are theirs."""


def places_of(pair_ids: Sequence[str], *, where: object) -> list[tuple[str, str]]:
    """Return (`ref` or `tied`, number of the question) of rows.

    Args:
        pair_ids: The ids of all rows of the subset.
        where: The preference file, for messages.

    Raises:
        TableError: An id does not say which question it is of, or is there twice.
    """
    places: dict[tuple[str, str], None] = {}
    for pair_id in pair_ids:
        match = _ID.fullmatch(pair_id)
        if match is None or (match[1], match[2]) in places:
            raise TableError(
                f"a row of the subset {SUBSET} does not say which question it is of",
                where=where,
                got=f"id {pair_id!r}",
                expected="ref:N and tied:N, each once, as RewardBench 2 has them",
                hint="give a subset of your own another name",
            )
        places[match[1], match[2]] = None
    return list(places)


def score_ties(groups: Iterable[TieGroup], *, where: object) -> TiesScore:
    """Return the score of the subset, with a 95% bootstrap interval over questions.

    Args:
        groups: One for each row of the subset.
        where: The preference file, for messages.

    Raises:
        TableError: A row's id does not say which question it is of.
    """
    groups = list(groups)
    found: dict[str, dict[str, TieGroup]] = {}
    places = places_of([group.pair_id for group in groups], where=where)
    for group, (kind, number) in zip(groups, places, strict=True):
        found.setdefault(number, {})[kind] = group
    missing = TieGroup("", None, None)
    ref, tied = ([rows.get(kind, missing) for rows in found.values()] for kind in ("ref", "tied"))
    table = np.array(
        [
            [_number(r.lead), _number(t.lead), _number(t.spread)]
            for r, t in zip(ref, tied, strict=True)
        ]
    ).reshape(-1, 3)
    parts = _parts(table[None])
    whole = _score(parts)[0]
    low = high = np.nan
    if np.isfinite(whole):
        draws = np.random.default_rng(_SEED).integers(0, len(table), (_NUM_RESAMPLES, len(table)))
        low, high = np.nanquantile(_score(_parts(table[draws])), [0.025, 0.975])
    shown = [None if np.isnan(part[0]) else float(part[0]) for part in parts]
    return TiesScore(
        score=None if np.isnan(whole) else float(whole),
        ci_low=None if np.isnan(low) else float(low),
        ci_high=None if np.isnan(high) else float(high),
        accuracy_tied=shown[0],
        accuracy_ref=shown[1],
        correctness_preferred=shown[2],
        correctness_preferred_hard=shown[3],
        margin=shown[4],
        num_questions=int(np.isfinite(table).all(axis=1).sum()),
    )


def _number(value: float | None) -> float:
    return np.nan if value is None else value


def _parts(table: FloatArray) -> list[FloatArray]:
    """Return the five parts for each draw of (draw, question, (lead ref, lead tied, spread))."""
    ref, tied, spread = np.moveaxis(table, -1, 0)
    both = np.minimum(ref, tied)
    with np.errstate(divide="ignore", invalid="ignore"):
        # Equal right answers that lead are as good as can be; without a lead there is no ratio.
        ratio = np.nan_to_num(np.tanh(both / spread - 1), nan=0.0)
    is_whole = np.isfinite(both) & np.isfinite(spread)
    return [
        _mean(tied > 0, np.isfinite(tied)),
        _mean(ref > 0, np.isfinite(ref)),
        _mean(tied > spread, is_whole),
        _mean(both > spread, is_whole),
        _mean(ratio, is_whole),
    ]


def _mean(values: npt.NDArray[np.generic], counts: npt.NDArray[np.bool_]) -> FloatArray:
    with np.errstate(invalid="ignore"):
        found: FloatArray = np.where(counts, values, 0).sum(axis=-1) / counts.sum(axis=-1)
    return found


def _score(parts: list[FloatArray]) -> FloatArray:
    tied, ref, preferred, hard, margin = parts
    return 0.3 * tied + 0.3 * ref + 0.2 * preferred + 0.2 * hard + 0.01 * margin
