"""MT-Bench's files: questions, answers, reference answers, judge prompts, as FastChat writes them.

questions    {"question_id": 81, "category": "writing", "turns": [Q1, Q2], "reference": [...]}
answers      {"question_id": 81, "model_id": M, "choices": [{"index": 0, "turns": [A1, A2]}]}
prompts      {"name": "single-v1", "type": "single", "system_prompt", "prompt_template"}
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from expo_ray.errors import TableError
from expo_ray.evaluation.identity import IDENTITY
from expo_ray.tables.prompt_files import prompt_files
from expo_ray.tables.prompt_rows import read_rows

NUM_TURNS = 2
# Temperatures of FastChat's generation (fastchat/llm_judge/common.py).
TEMPERATURES = {
    "writing": 0.7,
    "roleplay": 0.7,
    "extraction": 0.0,
    "math": 0.0,
    "coding": 0.0,
    "reasoning": 0.0,
    "stem": 0.1,
    "humanities": 0.1,
}
REFERENCED = frozenset({"math", "reasoning", "coding"})
"""Categories whose judge sees a reference answer."""

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """One question of two turns."""

    question_id: int
    category: str
    turns: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What a model answered, or a reference."""

    question_id: int
    model: str
    turns: tuple[str, ...]
    identity: Mapping[str, str | None]
    """See `IDENTITY`; None where another tool wrote it."""


class JudgePrompt(NamedTuple):
    """One of the official prompts."""

    name: str
    system_prompt: str
    template: str


def read_questions(path: str | Path) -> list[Question]:
    """Read the questions.

    Raises:
        TableError: The file is missing or malformed, or a category has no temperature.
    """

    def parse(row: dict[str, Any], where: str) -> Question:
        category = row.get("category")
        if category not in TEMPERATURES:
            raise TableError(
                "a question is of no category of MT-Bench",
                where=where,
                got=repr(category),
                expected=", ".join(TEMPERATURES),
            )
        turns = _texts(row.get("turns"), where)
        return Question(question_id=_id(row, where), category=category, turns=turns)

    return _read(path, parse)


def read_answers(path: str | Path) -> dict[int, Answer]:
    """Read one model's answers, by question.

    Raises:
        TableError: The file is missing or malformed, or of several models.
    """

    def parse(row: dict[str, Any], where: str) -> Answer:
        choices = row.get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            raise TableError("an answer has no choices", where=where)
        made_by = row.get("expo_ray")
        known = made_by if isinstance(made_by, dict) else {}
        return Answer(
            question_id=_id(row, where),
            model=str(row.get("model_id")),
            turns=_texts(choices[0].get("turns"), where),
            identity={k: None if known.get(k) is None else str(known[k]) for k in IDENTITY},
        )

    answers = _read(path, parse)
    makers = {(answer.model, *answer.identity.values()) for answer in answers}
    if len(makers) > 1:
        raise TableError(
            "the answers are of several models",
            where=path,
            got=", ".join(sorted(model or "unknown" for model, *_ in makers)),
            hint="one file per model",
        )
    return {answer.question_id: answer for answer in answers}


def read_judge_prompts(path: str | Path) -> dict[str, JudgePrompt]:
    """Read the official prompts for a single answer, by name.

    Raises:
        TableError: The file is missing or malformed, or lacks one of the four.
    """

    def parse(row: dict[str, Any], where: str) -> JudgePrompt:
        name, system_prompt, template = (
            row.get(key) for key in ("name", "system_prompt", "prompt_template")
        )
        texts = (name, system_prompt, template)
        if not all(isinstance(text, str) for text in texts):
            raise TableError("a judge prompt is malformed", where=where)
        return JudgePrompt(*map(str, texts))

    found = {prompt.name: prompt for prompt in _read(path, parse)}
    missing = {prompt_name(m, t) for m in (True, False) for t in range(NUM_TURNS)} - found.keys()
    if missing:
        raise TableError(
            "the file lacks judge prompts",
            where=path,
            got=", ".join(sorted(found)),
            expected=", ".join(sorted(missing)),
            hint="take fastchat/llm_judge/data/judge_prompts.jsonl",
        )
    return found


def prompt_name(is_referenced: bool, turn: int) -> str:
    """Return the name of the official prompt for one answer; turns count from 0."""
    return f"single-{'math-' if is_referenced else ''}v1{'-multi-turn' if turn else ''}"


def _read(path: str | Path, parse: Callable[[dict[str, Any], str], _T]) -> list[_T]:
    found: dict[int, _T] = {}
    rows = itertools.chain.from_iterable(read_rows(file) for file in prompt_files(path))
    for number, (where, row) in enumerate(rows):
        if not isinstance(row, dict):
            raise TableError("a row is not an object", where=where, got=type(row).__name__)
        parsed = parse(row, where)
        key = getattr(parsed, "question_id", -number - 1)
        if key in found:
            raise TableError("a question is there twice", where=where, got=key)
        found[key] = parsed
    if not found:
        raise TableError("the file has no rows", where=path)
    return list(found.values())


def _id(row: dict[str, Any], where: str) -> int:
    found = row.get("question_id")
    if type(found) is not int:
        raise TableError("a row has no question_id", where=where, got=repr(found))
    return found


def _texts(value: Any, where: str) -> tuple[str, ...]:
    is_list = isinstance(value, list) and len(value) == NUM_TURNS
    if not is_list or not all(isinstance(text, str) for text in value):
        raise TableError(
            "a row does not have the texts of two turns", where=where, got=type(value).__name__
        )
    return tuple(value)
