"""MT-Bench: 80 questions of two turns, answered through the replicas (arXiv 2306.05685).

Every category has its temperature, the second question follows the first answer, and the file is
the one that FastChat's judge reads. The chat template is the tokenizer's own; FastChat has
templates of its own for many models, so compare like with like.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from expo_ray.checkpoints import atomic_write_text
from expo_ray.checkpoints.storages.local_output import require_writable_file
from expo_ray.errors import EvaluationError
from expo_ray.evaluation.identity import identity_of
from expo_ray.evaluation.mt_bench_files import NUM_TURNS, TEMPERATURES, Question, read_questions
from expo_ray.progress import Progress
from expo_ray.serving.alpha_setting import RulesLike
from expo_ray.serving.sampling import SamplingParams
from expo_ray.tables import Message, Prompt
from expo_ray.tables.thoughts import Reasoning

SCHEMA_VERSION = 1
MAX_TOKENS = 1024
"""Longest answer, as in FastChat."""


def mt_bench_answers(
    model: str,
    *,
    questions: str | Path,
    output: str | Path,
    initial: str | None = None,
    alpha: float | None = None,
    alpha_rules: RulesLike | None = None,
    extra_tensors: Sequence[str] = (),
    max_tokens: int = MAX_TOKENS,
    seed: int = 42,
    reasoning: str = "auto",
    engine: str = "auto",
    num_replicas: int = 1,
    address: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Answer MT-Bench's questions and write the answers file that FastChat's tools read.

    The responses go to tables in `OUTPUT.turns/` first, so that a run that was interrupted
    continues.

    Args:
        model: The model; with `initial` and `alpha` it is extrapolated while it loads.
        questions: MT-Bench's `question.jsonl`.
        output: JSONL file to write.
        initial: theta0.
        alpha: How far to extrapolate; beside rules, for tensors without a rule.
        alpha_rules: Alpha by part of the model: a YAML file as for `extrapolate`, or its table.
        extra_tensors: `copy:PATTERN`: tensors that one side may lack, as for `extrapolate`.
        max_tokens: Longest answer.
        seed: Of the run; every answer derives its own.
        reasoning: How thoughts are marked, which are no part of an answer: `auto`, `off`, or a tag,
            as for `generate`.
        engine: `auto`, `transformers` or `vllm`.
        num_replicas: Replicas that answer.
        address: Ray cluster.
        progress: Where to report.

    Returns:
        `{"schema_version", "output", "model", "weights_digest", "sampling", "chat_template",
        "num_questions"}`.

    Raises:
        RequestError: Questions or model are wrong; nothing was written.
        EvaluationError: Some answers failed; a rerun tries those again.

    Example:
        >>> made = expo_ray.mt_bench_answers(
        ...     "dpo", questions="question.jsonl", output="answers.jsonl", max_tokens=8
        ... )
        >>> made["model"], made["num_questions"]
        ('dpo', 2)
    """
    from expo_ray.cluster import ray_session
    from expo_ray.serving.commands import model_source
    from expo_ray.serving.generator_replicas import GeneratorReplicas

    output = require_writable_file(output)
    marks = Reasoning.parse(reasoning)
    rows = read_questions(questions)
    source = model_source(model, initial, alpha, alpha_rules, extra_tensors).pinned()
    folder = output.with_name(f"{output.name}.turns")
    turns: dict[int, list[str]] = {question.question_id: [] for question in rows}
    with (
        ray_session(address, for_handles=True),
        GeneratorReplicas(num_replicas, engine, reasoning=marks) as replicas,
    ):
        for turn in range(NUM_TURNS):
            for temperature in sorted({TEMPERATURES[question.category] for question in rows}):
                asked = [q for q in rows if TEMPERATURES[q.category] == temperature]
                table = folder / f"turn-{turn + 1}-temperature-{temperature}.parquet"
                table.parent.mkdir(parents=True, exist_ok=True)
                made = replicas.write_responses(
                    source,
                    [_prompt(question, turns[question.question_id]) for question in asked],
                    table,
                    sampling=SamplingParams(
                        temperature=temperature,
                        top_p=1,
                        top_k=0,
                        max_tokens=max_tokens,
                        seed=seed + turn,
                    ),
                    progress=progress,
                )
                _take(table, asked, turns)
    sampling = {"max_tokens": max_tokens, "seed": seed, "engine": made["engine"]}
    identity = identity_of(made["weights_digest"], sampling, source.open(), marks)
    made_by = {**identity, "seed": seed}
    answers = [
        _answer(question, turns[question.question_id], made["model"], made_by) for question in rows
    ]
    atomic_write_text(output, "".join(json.dumps(a, ensure_ascii=False) + "\n" for a in answers))
    return {
        "schema_version": SCHEMA_VERSION,
        "output": str(output),
        "model": made["model"],
        **identity,
        "num_questions": len(rows),
    }


def _prompt(question: Question, answers: Sequence[str]) -> Prompt:
    messages = [Message(role="user", content=question.turns[0])]
    for answer, text in zip(answers, question.turns[1:], strict=False):
        messages += [
            Message(role="assistant", content=answer),
            Message(role="user", content=text),
        ]
    return Prompt(prompt_id=str(question.question_id), messages=tuple(messages))


def _take(table: Path, asked: Sequence[Question], turns: dict[int, list[str]]) -> None:
    from expo_ray.tables import read_table

    found = {row["prompt_id"]: row for row in read_table(table).to_pylist()}
    for question in asked:
        row = found[str(question.question_id)]
        if row["error"] is not None:
            raise EvaluationError(
                "an answer failed, so no answers file was written",
                where=table,
                got=f"question {question.question_id}: {row['error']}",
                hint="run the same command again: only these are generated",
            )
        turns[question.question_id].append(str(row["response"]))


def _answer(
    question: Question, turns: Sequence[str], model: str, made_by: dict[str, Any]
) -> dict[str, Any]:
    name = f"{made_by['weights_digest']} {question.question_id} {made_by['seed']}"
    return {
        "question_id": question.question_id,
        "answer_id": hashlib.sha256(name.encode()).hexdigest()[:22],
        "model_id": model,
        "choices": [{"index": 0, "turns": list(turns)}],
        "tstamp": 0.0,  # the same answers are the same file
        "expo_ray": made_by,
    }
