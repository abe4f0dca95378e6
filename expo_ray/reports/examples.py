"""Responses side by side: which prompts are shown, and how their rewards compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from expo_ray.extrapolation.planning.alpha import ALIGNED_ALPHA
from expo_ray.reports.pairing import rewards_of
from expo_ray.tables.streamed import iter_batches
from expo_ray.tables.thoughts import is_unanswered, num_answer_tokens

MAX_CHARACTERS = 4000
_KEYS = ["prompt_id", "sample"]
_SHOWN = (
    *(*_KEYS, "messages", "response", "finish_reason"),
    *("completion_tokens", "thought", "thought_tokens"),
)
_DIFFERENCES = pa.schema(
    [("prompt_id", pa.string()), ("sample", pa.int32()), ("difference", pa.float64())]
)
_Key = tuple[str, int]
PLACES = (
    (0.0, "Largest loss"),
    (0.25, "Lower quartile"),
    (0.5, "Median"),
    (0.75, "Upper quartile"),
    (1.0, "Largest gain"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """One response with its numbers."""

    text: str
    reward: float | None
    truth: float | None
    tokens: int | None
    """Of the answer; None where that is not known."""
    thought_tokens: int
    """Of what was thought before it."""
    cut_off: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """One prompt, answered by both models."""

    place: str
    """Where it stands among all differences."""
    prompt_id: str
    messages: tuple[Mapping[str, str], ...]
    aligned: Answer
    candidate: Answer
    difference: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How many prompts got better and worse."""

    better: int
    equal: int
    worse: int

    @property
    def total(self) -> int:
        """All compared responses."""
        return self.better + self.equal + self.worse


def readable(text: str) -> str:
    """Return text cut to a printable length."""
    rest = len(text) - MAX_CHARACTERS
    return text if rest <= 0 else f"{text[:MAX_CHARACTERS]} [{rest:,} more characters]"


def differences(rewards: Mapping[float, pa.Table], alpha: float, *, split: str | None) -> pa.Table:
    """Return reward of `alpha` minus reward of aligned, per prompt and sample.

    Returns:
        Columns `prompt_id`, `sample`, `difference`, by rising keys.
    """
    if alpha not in rewards or ALIGNED_ALPHA not in rewards:
        return _DIFFERENCES.empty_table()
    candidate, aligned = (
        rewards_of(rewards[a], split=split).select([*_KEYS, "reward"])
        for a in (alpha, ALIGNED_ALPHA)
    )
    both = candidate.join(aligned, _KEYS, join_type="inner", right_suffix="_aligned")
    ahead = pc.subtract(both["reward"], both["reward_aligned"])
    found = both.select(_KEYS).append_column("difference", ahead)
    return found.sort_by([(name, "ascending") for name in _KEYS])


def count_outcomes(ahead: pa.ChunkedArray) -> Outcome:
    """Count rises, falls and ties among differences."""
    better, worse = (
        int(pc.sum(found).as_py() or 0) for found in (pc.greater(ahead, 0), pc.less(ahead, 0))
    )
    return Outcome(better=better, equal=len(ahead) - better - worse, worse=worse)


def choose_examples(
    responses: Mapping[float, Path],
    rewards: Mapping[float, pa.Table],
    truth: Mapping[float, pa.Table],
    alpha: float,
    ahead: pa.Table,
) -> list[Example]:
    """Take the prompts at the quartiles of the reward difference: no picking by hand.

    Args:
        responses: Files of responses, of which the texts of these prompts alone are held.
        rewards: Those of the scoring reward model.
        truth: Those of the laboratory's hidden truth.
        alpha: The candidate.
        ahead: What `differences` returned for it.
    """
    if alpha not in responses or ALIGNED_ALPHA not in responses:
        return []
    for file in (responses[alpha], responses[ALIGNED_ALPHA]):
        ahead = ahead.join(_answered(file), _KEYS, join_type="left semi")
    by_difference = [(name, "ascending") for name in ("difference", *_KEYS)]
    ranked = ahead.sort_by(by_difference)
    if not ranked.num_rows:
        return []
    rows = {round(quantile * (ranked.num_rows - 1)): None for quantile, _ in PLACES}
    keys = ranked.take(pa.array(list(rows))).to_pylist()
    candidate = _answers(responses[alpha], keys, rewards.get(alpha), truth.get(alpha))
    aligned = _answers(
        responses[ALIGNED_ALPHA], keys, rewards.get(ALIGNED_ALPHA), truth.get(ALIGNED_ALPHA)
    )
    examples = []
    for row, key in zip(rows, keys, strict=True):
        answer, messages = candidate[_key(key)]
        examples.append(
            Example(
                place=next(name for q, name in PLACES if round(q * (ranked.num_rows - 1)) == row),
                prompt_id=key["prompt_id"],
                messages=messages,
                aligned=aligned[_key(key)][0],
                candidate=answer,
                difference=key["difference"],
            )
        )
    return examples


def _answered(file: Path) -> pa.Table:
    """Return the keys of the responses that have a text."""
    found = [
        pa.table({name: batch[name] for name in _KEYS}).filter(pc.is_valid(batch["response"]))
        for batch in iter_batches([file], [*_KEYS, "response"])
    ]
    return pa.concat_tables(found) if found else _DIFFERENCES.empty_table().select(_KEYS)


def _answers(
    file: Path, keys: Sequence[Mapping[str, Any]], rewards: pa.Table | None, truth: pa.Table | None
) -> dict[_Key, tuple[Answer, tuple[Mapping[str, str], ...]]]:
    """Read the answers to a few prompts, and what they answer."""
    prompts = pa.array([key["prompt_id"] for key in keys])
    scores, real = _scored(rewards, prompts), _scored(truth, prompts)
    there = {*pq.read_schema(file).names}
    columns = [name for name in _SHOWN if name in there]
    found: dict[_Key, tuple[Answer, tuple[Mapping[str, str], ...]]] = {}
    for batch in iter_batches([file], columns):
        for row in batch.filter(pc.is_in(batch["prompt_id"], prompts)).to_pylist():
            found[_key(row)] = (
                Answer(
                    text=readable(row["response"] or ""),
                    reward=scores.get(_key(row)),
                    truth=real.get(_key(row)),
                    tokens=num_answer_tokens(row),
                    thought_tokens=row.get("thought_tokens") or 0,
                    cut_off=row["finish_reason"] == "length" or is_unanswered(row),
                ),
                tuple(
                    {"role": m["role"], "content": readable(m["content"] or "")}
                    for m in row["messages"] or ()
                ),
            )
    return found


def _scored(rewards: pa.Table | None, prompts: pa.Array) -> dict[_Key, float]:
    if rewards is None:
        return {}
    some = rewards.filter(pc.is_in(rewards["prompt_id"], prompts))
    return {_key(row): row["reward"] for row in rewards_of(some, split=None).to_pylist()}


def _key(row: Mapping[str, Any]) -> _Key:
    return (row["prompt_id"], row["sample"])
