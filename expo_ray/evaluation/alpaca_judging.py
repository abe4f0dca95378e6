"""AlpacaEval 2.0's judging by its own package, with any judge behind an OpenAI-compatible URL.

Prompts, order of the two answers, reading of what the judge says: `alpaca_eval`. Asking, with
answers on disk before the next question: ours, because its own client logs keys and asks again
after an interruption.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from expo_ray.checkpoints import atomic_write_text
from expo_ray.checkpoints.storages.local_output import require_writable_file
from expo_ray.errors import ConfigError, EvaluationError, TableError, argument, first_names
from expo_ray.evaluation.alpaca_eval import (
    AlpacaEvalMetrics,
    alpaca_eval_metrics,
    one_name,
    read_rows,
)
from expo_ray.evaluation.identity import IDENTITY
from expo_ray.evaluation.judging import Judge, ask_all
from expo_ray.evaluation.length_control import calm_logs
from expo_ray.extras import require_extra
from expo_ray.progress import Progress
from expo_ray.tables import ResumableTable

ANNOTATOR = "weighted_alpaca_eval_gpt4_turbo"
"""AlpacaEval 2.0's: a preference weighted by the judge's log probabilities."""
_CLIENT_SETTINGS = frozenset({"model_name", "is_strip", "num_procs", "batch_size"})
"""Of the package's own client; everything else is sent to the judge."""
_SENT = ("instruction", "output", "generator", "dataset")
_SCHEMA = pa.schema([(name, pa.string()) for name in ("prompt", "choice", "error")])


def alpaca_eval_judgements(
    answers: str | Path,
    *,
    baseline: str | Path,
    judge: str,
    output: str | Path,
    annotator: str = ANNOTATOR,
    length_control: str | Path | None = None,
    progress: Progress | None = None,
) -> AlpacaEvalMetrics:
    """Let a judge prefer a model's outputs or the baseline's, and return the leaderboard's row.

    What the judge said goes to a table beside the file first (`OUTPUT` with the suffix
    `.judge.parquet`), so that a run that was interrupted continues.

    Args:
        answers: The model's outputs file.
        baseline: Outputs file of the model it is compared with, of the same instructions in the
            same order; AlpacaEval 2.0's is that of gpt4_1106_preview.
        judge: `judge:URL#model`; its key is read from EXPO_RAY_JUDGE_API_KEY.
        output: JSON file of annotations to write, in AlpacaEval's format.
        annotator: Name of one of the package's evaluators that ask a chat model about one pair; its
            model is replaced by the judge.
        length_control: Folder with `df_gamed.csv`, see `alpaca_eval_metrics`.
        progress: Where to report.

    Returns:
        See `alpaca_eval_metrics`.

    Raises:
        MissingExtraError: The package `alpaca_eval` is not installed.
        RequestError: A file, the annotator or the judge is wrong; nothing was written.
        EvaluationError: The judge answered nothing.

    Example:
        >>> metrics = expo_ray.alpaca_eval_judgements(
        ...     "alpaca-dpo.json",
        ...     baseline="alpaca-gpt4.json",
        ...     judge="judge:http://127.0.0.1:8000/v1#judge",
        ...     output="judged.json",
        ... )
        >>> metrics["judge"], metrics["win_rate"], metrics["n_total"]
        ('weighted_alpaca_eval_gpt4_turbo by judge', 25.0, 4)
    """
    require_extra("alpaca-eval", where=argument("annotator", annotator))
    output = require_writable_file(output)
    asked = Judge.parse(judge)
    rows, others = read_rows(Path(answers)), read_rows(Path(baseline))
    _require_same_instructions(rows, others, answers, baseline)
    pairwise = _official(annotator)
    [single] = pairwise.annotators.values()
    identity = {name: one_name(rows, name, Path(answers)) for name in IDENTITY}
    settings = {k: v for k, v in single.completions_kwargs.items() if k not in _CLIENT_SETTINGS}
    table = ResumableTable(
        output.with_suffix(".judge.parquet"),
        _SCHEMA,
        key=("prompt",),
        identity={
            "judge": asked.address,
            "annotator": annotator,
            "sampling": settings,
            "model": one_name(rows, "generator", Path(answers)),
            **identity,
        },
    )
    single.fn_completions = _completions(asked, table, progress)
    name = annotator
    if asked.model != single.completions_kwargs["model_name"]:
        name += f" by {asked.model}"
    with calm_logs():
        found = pairwise.annotate_head2head(
            *([{k: row.get(k) for k in _SENT} for row in some] for some in (others, rows)),
            is_ordered=True,
            chunksize=None,
        )
    for row in found:
        row |= {"annotator": name, **{k: v for k, v in identity.items() if v is not None}}
    text = json.dumps([_plain(row) for row in found], ensure_ascii=False, indent=2)
    atomic_write_text(output, text + "\n")
    return alpaca_eval_metrics(output, length_control=length_control)


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row with null where pandas has its own word for nothing."""
    return {key: None if value != value else value for key, value in row.items()}


def _require_same_instructions(
    rows: Sequence[Mapping[str, Any]],
    others: Sequence[Mapping[str, Any]],
    answers: str | Path,
    baseline: str | Path,
) -> None:
    for path, some in ((answers, rows), (baseline, others)):
        for number, row in enumerate(some):
            if not all(isinstance(row.get(k), str) for k in ("instruction", "output", "generator")):
                raise TableError(
                    "an output lacks a text",
                    where=f"{path} row {number}",
                    got=", ".join(row),
                    expected="instruction, output and generator",
                )
    asked = [[row["instruction"] for row in some] for some in (rows, others)]
    if asked[0] != asked[1]:
        differ = [a for a, b in zip(*asked, strict=False) if a != b]
        raise TableError(
            "the model and the baseline do not answer the same instructions in one order",
            where=f"{answers} and {baseline}",
            got=f"{len(asked[0])} and {len(asked[1])} instructions"
            + (f", the first that differs is {differ[0][:60]!r}" if differ else ""),
            hint="answer the baseline's instructions, in its order",
        )


def _official(name: str) -> Any:
    """Return the package's pairwise annotator.

    Raises:
        ConfigError: There is none of that name, or it does not ask a chat model about one pair.
    """
    with calm_logs():
        from alpaca_eval.annotators import PairwiseAnnotator
        from alpaca_eval.constants import EVALUATORS_CONFIG_DIR

        known = sorted(file.parent.name for file in EVALUATORS_CONFIG_DIR.glob("*/configs.yaml"))
        if name not in known:
            raise ConfigError(
                "alpaca_eval has no such annotator",
                where=argument("annotator"),
                got=name,
                expected=first_names(known),
            )
        pairwise = PairwiseAnnotator(
            annotators_config=name, caching_path=None, is_avoid_reannotations=False
        )
    singles = list(pairwise.annotators.values())
    is_chat = all(each.fn_completions.__name__ == "openai_completions" for each in singles)
    if len(singles) != 1 or not is_chat or singles[0].batch_size != 1:
        raise ConfigError(
            "the annotator does not ask one chat model about one pair at a time",
            where=argument("annotator"),
            got=name,
            expected=f"{ANNOTATOR}, or another one of the kind",
        )
    return pairwise


def _completions(
    judge: Judge, table: ResumableTable, progress: Progress | None
) -> Callable[..., dict[str, list[Any]]]:
    """Return what takes the place of the package's own client."""

    def ask(prompts: Sequence[str], **settings: Any) -> dict[str, list[Any]]:
        from alpaca_eval.utils import prompt_to_chatml

        sent = {k: v for k, v in settings.items() if k not in _CLIENT_SETTINGS}
        keys = {hashlib.sha256(prompt.encode()).hexdigest(): prompt for prompt in prompts}

        def row_of(key: str) -> dict[str, Any]:
            said = judge.service.choose(prompt_to_chatml(keys[key].strip()), **sent)
            error = said.error or _lacking(said.fields, sent)
            choice = None if error else json.dumps(said.fields, sort_keys=True)
            return {"prompt": key, "choice": choice, "error": error}

        ask_all(table, [key for key in keys if (key,) not in table.done], row_of, progress)
        rows = {row["prompt"]: row for row in table.finish().to_pylist()}
        failed = [rows[key]["error"] for key in keys if rows[key]["error"] is not None]
        if len(failed) == len(keys):
            raise EvaluationError(
                "the judge preferred no answer",
                where=table.path,
                got=failed[0],
                hint="run the same command again: only what failed is asked",
            )
        choices = [_choice(rows[hashlib.sha256(p.encode()).hexdigest()]) for p in prompts]
        return {"completions": [c["text"] for c in choices], "completions_all": choices}

    return ask


def _lacking(choice: Mapping[str, Any], sent: Mapping[str, Any]) -> str | None:
    """Return what an answer lacks that the annotator reads."""
    found = choice.get("logprobs")
    if sent.get("logprobs") and not (isinstance(found, dict) and found.get("content")):
        return "the judge gives no log probabilities: choose an annotator that reads its text"
    return None


def _choice(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a choice with its text, as the package's own client has it; empty if it failed."""
    choice = {} if row["choice"] is None else json.loads(row["choice"])
    message = choice.get("message") or {}
    calls = message.get("tool_calls") or [{"function": message.get("function_call")}]
    called = (calls[0].get("function") or {}).get("arguments")
    return {**choice, "text": called or message.get("content") or " "}
