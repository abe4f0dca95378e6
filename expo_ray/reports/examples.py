"""Responses side by side: which prompts are shown, and how their rewards compare."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from expo_ray.reports.run_files import Rows
from expo_ray.tables.thoughts import is_unanswered, num_answer_tokens

MAX_CHARACTERS = 4000
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


def differences(
    rewards: Mapping[float, Rows], alpha: float, *, split: str | None
) -> dict[tuple[str, int], float]:
    """Return reward of `alpha` minus reward of aligned, per prompt and sample."""
    aligned = _scored(rewards.get(0.0, ()), split)
    candidate = _scored(rewards.get(alpha, ()), split)
    return {key: candidate[key] - aligned[key] for key in sorted(candidate.keys() & aligned.keys())}


def count_outcomes(deltas: Mapping[Any, float]) -> Outcome:
    """Count rises, falls and ties."""
    better = sum(value > 0 for value in deltas.values())
    worse = sum(value < 0 for value in deltas.values())
    return Outcome(better=better, equal=len(deltas) - better - worse, worse=worse)


def choose_examples(
    responses: Mapping[float, Rows],
    rewards: Mapping[float, Rows],
    truth: Mapping[float, Rows],
    alpha: float,
    deltas: Mapping[tuple[str, int], float],
) -> list[Example]:
    """Take the prompts at the quartiles of the reward difference: no picking by hand."""
    aligned = _answers(0.0, responses, rewards, truth)
    candidate = _answers(alpha, responses, rewards, truth)
    messages = {_key(row): row["messages"] for row in responses.get(alpha, ())}
    ranked = sorted(
        (key for key in deltas if key in aligned and key in candidate),
        key=lambda key: (deltas[key], key),
    )
    examples: dict[tuple[str, int], Example] = {}
    for quantile, place in PLACES:
        if not ranked:
            break
        key = ranked[round(quantile * (len(ranked) - 1))]
        examples.setdefault(
            key,
            Example(
                place=place,
                prompt_id=key[0],
                messages=tuple(
                    {"role": m["role"], "content": readable(m["content"] or "")}
                    for m in messages[key] or ()
                ),
                aligned=aligned[key],
                candidate=candidate[key],
                difference=deltas[key],
            ),
        )
    return list(examples.values())


def _key(row: Mapping[str, Any]) -> tuple[str, int]:
    return (row["prompt_id"], row["sample"])


def _scored(rows: Rows, split: str | None = None) -> dict[tuple[str, int], float]:
    return {
        _key(row): row["reward"]
        for row in rows
        if row["reward"] is not None and split in (None, row["split"])
    }


def _answers(
    alpha: float,
    responses: Mapping[float, Rows],
    rewards: Mapping[float, Rows],
    truth: Mapping[float, Rows],
) -> dict[tuple[str, int], Answer]:
    scores, real = _scored(rewards.get(alpha, ())), _scored(truth.get(alpha, ()))
    return {
        _key(row): Answer(
            text=readable(row["response"]),
            reward=scores.get(_key(row)),
            truth=real.get(_key(row)),
            tokens=num_answer_tokens(row),
            thought_tokens=row.get("thought_tokens") or 0,
            cut_off=row["finish_reason"] == "length" or is_unanswered(row),
        )
        for row in responses.get(alpha, ())
        if row["response"] is not None
    }
