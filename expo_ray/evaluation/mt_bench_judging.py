"""MT-Bench's single-answer judging, and the scores that come of it.

The official prompts, a judge at temperature 0, reference answers where the category has them. A
judge that gives no rating is asked once more; an answer without one then has no score, and is
counted. The first rating of a judgement counts, as in FastChat.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from expo_ray.checkpoints import atomic_write_text
from expo_ray.checkpoints.storages.local_output import require_writable_file
from expo_ray.errors import EvaluationError, TableError, first_names
from expo_ray.evaluation.judging import Judge, ask_all
from expo_ray.evaluation.mt_bench_files import (
    NUM_TURNS,
    REFERENCED,
    Answer,
    JudgePrompt,
    Question,
    prompt_name,
    read_answers,
    read_judge_prompts,
    read_questions,
)
from expo_ray.progress import Progress
from expo_ray.rewards.judge_service import JudgeService
from expo_ray.selection.bootstrap import bootstrap_mean
from expo_ray.tables import Message, ResumableTable

SCHEMA_VERSION = 1
BENCHMARK = "mt-bench"
CONFIDENCE = 0.95
_SAMPLING = {"temperature": 0, "max_tokens": 2048}
_NUM_ASKED = 2
_RATINGS = tuple(re.compile(p) for p in (r"\[\[(\d+\.?\d*)\]\]", r"\[(\d+\.?\d*)\]"))
_SCHEMA = pa.schema(
    [
        pa.field("question_id", pa.int64()),
        pa.field("turn", pa.int32()),
        pa.field("category", pa.string()),
        pa.field("prompt_name", pa.string()),
        pa.field("user_prompt", pa.string()),
        pa.field("judgement", pa.string()),
        pa.field("score", pa.float64()),
        pa.field("error", pa.string()),
    ]
)


class Case(NamedTuple):
    """One answer to judge."""

    question: Question
    turn: int
    prompt: JudgePrompt
    text: str


def mt_bench_scores(
    answers: str | Path,
    *,
    questions: str | Path,
    judge: str,
    judge_prompts: str | Path,
    references: str | Path | None = None,
    output: str | Path,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Let a judge rate a model's answers, and return the scores.

    The judgements go to a table beside the file first (`OUTPUT` with the suffix
    `.judgements.parquet`), so that a run that was interrupted continues.

    Args:
        answers: Answers file in FastChat's format.
        questions: MT-Bench's `question.jsonl`.
        judge: `judge:URL#model`; its key is read from EXPO_RAY_JUDGE_API_KEY.
        judge_prompts: The official `judge_prompts.jsonl`.
        references: Answers file of the reference model, for math, reasoning and coding.
        output: JSONL file of judgements to write, in FastChat's format.
        progress: Where to report.

    Returns:
        `{"schema_version", "benchmark", "model", "weights_digest", "sampling", "chat_template",
        "judge", "judge_prompts" (SHA-256), "average", "first_turn", "second_turn", "categories",
        "num_judged", "num_unrated"}`; a score has `mean`, `ci_low`, `ci_high` (95%, bootstrap over
        questions) and `num_questions`.

    Raises:
        RequestError: A file is wrong; nothing was written.
        EvaluationError: The judge rated nothing.

    Example:
        >>> scores = expo_ray.mt_bench_scores(
        ...     "mt-bench.jsonl",
        ...     questions="question.jsonl",
        ...     judge="judge:http://127.0.0.1:8000/v1#judge",
        ...     judge_prompts="judge_prompts.jsonl",
        ...     output="judgements.jsonl",
        ... )
        >>> scores["first_turn"]["mean"], scores["second_turn"]["mean"]
        (8.0, 6.0)
    """
    output = require_writable_file(output)
    service = Judge.parse(judge)
    asked = read_questions(questions)
    given = read_answers(answers)
    prompts = read_judge_prompts(judge_prompts)
    known = {} if references is None else read_answers(references)
    cases = list(_cases(asked, given, prompts, known))
    model = next(iter(given.values()))
    table = ResumableTable(
        output.with_suffix(".judgements.parquet"),
        _SCHEMA,
        key=("question_id", "turn"),
        identity={
            "judge": service.address,
            "sampling": _SAMPLING,
            # What the judge reads: its prompts, the questions, the answers.
            "cases": hashlib.sha256(
                json.dumps([_read_by_judge(c) for c in cases]).encode()
            ).hexdigest(),
            "model": model.model,
            **model.identity,
        },
    )
    todo = [case for case in cases if (case.question.question_id, case.turn + 1) not in table.done]
    ask_all(table, todo, lambda case: _judge(service.service, case), progress)
    rows = table.finish().to_pylist()
    lines = [_line(row, model.model, service.model) for row in rows]
    atomic_write_text(output, "".join(json.dumps(x, ensure_ascii=False) + "\n" for x in lines))
    return {
        "schema_version": SCHEMA_VERSION,
        "benchmark": BENCHMARK,
        "model": model.model,
        **model.identity,
        "judge": service.model,
        "judge_prompts": hashlib.sha256(repr(sorted(prompts.items())).encode()).hexdigest(),
        **summarize(rows, where=output),
    }


def _cases(
    questions: Sequence[Question],
    answers: Mapping[int, Answer],
    prompts: Mapping[str, JudgePrompt],
    references: Mapping[int, Answer],
) -> Iterator[Case]:
    missing = [str(q.question_id) for q in questions if q.question_id not in answers]
    unknown = [str(i) for i in answers.keys() - {q.question_id for q in questions}]
    if missing or unknown:
        raise TableError(
            "the answers are not those of the questions",
            where="answers",
            got=f"{len(missing)} missing, {len(unknown)} unknown",
            expected=f"one each; first {first_names(sorted(missing or unknown))}",
        )
    for question in questions:
        number = question.question_id
        has_reference = question.category in REFERENCED
        if has_reference and number not in references:
            raise TableError(
                "a question has no reference answer",
                where=f"question {number}, {question.category}",
                hint="give FastChat's reference_answer/gpt-4.jsonl",
            )
        for turn in range(NUM_TURNS):
            prompt = prompts[prompt_name(has_reference, turn)]
            texts = {"question": question.turns[0], "answer": answers[number].turns[0]}
            for i in range(NUM_TURNS):
                texts[f"question_{i + 1}"] = question.turns[i]
                texts[f"answer_{i + 1}"] = answers[number].turns[i]
                if has_reference:
                    texts[f"ref_answer_{i + 1}"] = references[number].turns[i]
            yield Case(question, turn, prompt, _fill(prompt, texts))


def _read_by_judge(case: Case) -> list[Any]:
    place = [case.question.question_id, case.turn, case.question.category]
    return [*place, case.prompt.name, case.prompt.system_prompt, case.text]


def _fill(prompt: JudgePrompt, texts: Mapping[str, str]) -> str:
    # Not str.format: a template is data, and so are braces in an answer.
    def text_of(match: re.Match[str]) -> str:
        if match[1] not in texts:
            raise TableError(
                "a judge prompt asks for an unknown text",
                where=prompt.name,
                got=match[0],
                expected=", ".join(f"{{{name}}}" for name in texts),
            )
        return texts[match[1]]

    return re.sub(r"\{(\w+)\}", text_of, prompt.template)


def _judge(service: JudgeService, case: Case) -> dict[str, Any]:
    messages = [
        Message(role="system", content=case.prompt.system_prompt),
        Message(role="user", content=case.text),
    ]
    row = {
        "question_id": case.question.question_id,
        "turn": case.turn + 1,
        "category": case.question.category,
        "prompt_name": case.prompt.name,
        "user_prompt": case.text,
        "judgement": None,
        "score": None,
        "error": None,
    }
    for _ in range(_NUM_ASKED):
        said = service.ask(messages, **_SAMPLING)
        if said.error is not None:
            return {**row, "error": said.error}
        row |= {"judgement": said.text, "score": rating_of(said.text)}
        if row["score"] is not None:
            return row
    return {**row, "error": "no rating from 1 to 10 in the judge's answer"}


def rating_of(judgement: str) -> float | None:
    """Return the first `[[N]]`, else the first `[N]`; None without one from 1 to 10."""
    for pattern in _RATINGS:
        found = pattern.search(judgement)
        if found:
            rating = float(found[1])
            return rating if 1 <= rating <= 10 else None
    return None


def summarize(rows: Sequence[Mapping[str, Any]], *, where: object) -> dict[str, Any]:
    """Return the scores by turn and by category, and in all.

    Args:
        rows: With question_id, turn, category and score.
        where: The judgements, for messages.

    Raises:
        EvaluationError: The judge rated nothing.
    """
    rated = [row for row in rows if row["score"] is not None]
    if not rated:
        raise EvaluationError(
            "the judge rated no answer",
            where=where,
            got=next((row["error"] for row in rows), "no answers"),
            hint="run the same command again: only what failed is asked",
        )
    categories = list(dict.fromkeys(str(row["category"]) for row in rated))
    return {
        "average": _score(rated),
        "first_turn": _score([row for row in rated if row["turn"] == 1]),
        "second_turn": _score([row for row in rated if row["turn"] == 2]),
        "categories": {
            name: _score([row for row in rated if row["category"] == name]) for name in categories
        },
        "num_judged": len(rated),
        "num_unrated": len(rows) - len(rated),
        "confidence": CONFIDENCE,
    }


def _score(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the mean over all ratings; the turns of a question are one draw of the bootstrap."""
    by_question: dict[int, list[float]] = {}
    for row in rows:
        by_question.setdefault(row["question_id"], []).append(float(row["score"]))
    means = np.array([sum(scores) / len(scores) for scores in by_question.values()])
    low, high = bootstrap_mean(means, num_resamples=10_000, seed=42).interval(CONFIDENCE)
    scores = [score for some in by_question.values() for score in some]
    return {
        "mean": sum(scores) / len(scores) if scores else None,
        "ci_low": low,
        "ci_high": high,
        "num_questions": len(by_question),
    }


def _line(row: Mapping[str, Any], model: str, judge: str) -> dict[str, Any]:
    """Return a judgement as FastChat writes it; it has -1 where there is no score."""
    return {
        "question_id": row["question_id"],
        "model": model,
        "judge": [judge, row["prompt_name"]],
        "user_prompt": row["user_prompt"],
        "judgment": row["judgement"] or "",
        "score": -1 if row["score"] is None else row["score"],
        "turn": row["turn"],
        "tstamp": 0.0,
    }
