"""AlpacaEval 2.0: the outputs file that its judges read, generated through the replicas."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from expo_ray.checkpoints import atomic_write_text
from expo_ray.checkpoints.storages.local_output import require_writable_file
from expo_ray.errors import EvaluationError
from expo_ray.evaluation.identity import identity_of
from expo_ray.progress import Progress
from expo_ray.serving.alpha_setting import RulesLike
from expo_ray.serving.sampling import SamplingParams
from expo_ray.tables import Prompt, read_prompts, read_table
from expo_ray.tables.prompt_files import pin_prompts, prompt_files
from expo_ray.tables.prompt_rows import read_rows
from expo_ray.tables.thoughts import Reasoning

SCHEMA_VERSION = 1
_DATASPLIT = "eval"


def alpaca_eval_outputs(
    model: str,
    *,
    prompts: str | Path,
    output: str | Path,
    initial: str | None = None,
    alpha: float | None = None,
    alpha_rules: RulesLike | None = None,
    extra_tensors: Sequence[str] = (),
    engine: str = "auto",
    sampling: SamplingParams | None = None,
    reasoning: str = "auto",
    num_replicas: int = 1,
    address: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Answer the instructions and write the official outputs file.

    The responses go to a table beside the file first (`OUTPUT` with the suffix
    `.responses.parquet`), so that a run that was interrupted continues.

    Args:
        model: The model; with `initial` and `alpha` it is extrapolated while it loads.
        prompts: The instructions, in official order, from wherever prompts may lie; `dataset` is
            carried over.
        output: JSON file: a list of instruction, output, generator, dataset, datasplit, and of what
            made them: weights_digest, sampling, chat_template (as texts).
        initial: theta0.
        alpha: How far to extrapolate; beside rules, for tensors without a rule.
        alpha_rules: Alpha by part of the model: a YAML file as for `extrapolate`, or its table.
        extra_tensors: `copy:PATTERN`: tensors that one side may lack, as for `extrapolate`.
        engine: `auto`, `transformers` or `vllm`.
        sampling: The paper's settings where None.
        reasoning: How thoughts are marked, which are no part of an answer: `auto`, `off`, or a tag,
            as for `generate`.
        num_replicas: Replicas that answer.
        address: Ray cluster.
        progress: Where to report.

    Returns:
        `{"schema_version", "output", "generator", "weights_digest", "sampling",
        "chat_template", "num_outputs", "avg_length"}`.

    Raises:
        RequestError: Prompts or model are wrong; nothing was written.
        EvaluationError: Some responses failed; a rerun tries those again.

    Example:
        >>> from expo_ray.serving import SamplingParams
        >>> made = expo_ray.alpaca_eval_outputs(
        ...     "dpo",
        ...     prompts="p.jsonl",
        ...     output="outputs.json",
        ...     sampling=SamplingParams(temperature=0, max_tokens=16),
        ... )
        >>> made["generator"], made["num_outputs"]
        ('dpo', 12)
    """
    from expo_ray.serving import PAPER_SAMPLING, generate
    from expo_ray.serving.commands import model_source

    output = require_writable_file(output)
    marks = Reasoning.parse(reasoning)
    prompts = pin_prompts(prompts)
    rows = read_prompts(prompts)
    instructions = [_instruction(prompt) for prompt in rows]
    datasets = _datasets(prompts)
    source = model_source(model, initial, alpha, alpha_rules, extra_tensors)
    sampling = (sampling or PAPER_SAMPLING).model_copy(update={"num_samples": 1})
    table_path = output.with_suffix(".responses.parquet")
    made = generate(
        model,
        prompts=prompts,
        output=table_path,
        initial=initial,
        alpha=alpha,
        alpha_rules=alpha_rules,
        extra_tensors=extra_tensors,
        engine=engine,
        sampling=sampling,
        reasoning=reasoning,
        num_replicas=num_replicas,
        address=address,
        progress=progress,
    )
    responses = {row["prompt_id"]: row for row in read_table(table_path).to_pylist()}
    failed = [p.prompt_id for p in rows if responses[p.prompt_id]["error"] is not None]
    if failed:
        raise EvaluationError(
            f"{len(failed)} of {len(rows)} responses failed, so no outputs file was written",
            where=table_path,
            got=f"{failed[0]}: {responses[failed[0]]['error']}",
            hint="run the same command again: only these are generated",
        )
    texts = [str(responses[prompt.prompt_id]["response"]) for prompt in rows]
    settings = sampling.model_dump(mode="json", exclude={"num_samples"})
    settings |= {"engine": made["engine"]}
    identity = identity_of(made["weights_digest"], settings, source.open(), marks)
    outputs = [
        {
            "instruction": instruction,
            "output": text,
            "generator": source.name,
            "dataset": dataset,
            "datasplit": _DATASPLIT,
            **identity,
        }
        for instruction, text, dataset in zip(instructions, texts, datasets, strict=True)
    ]
    atomic_write_text(output, json.dumps(outputs, ensure_ascii=False, indent=2) + "\n")
    return {
        "schema_version": SCHEMA_VERSION,
        "output": str(output),
        "generator": source.name,
        **identity,
        "num_outputs": len(outputs),
        "avg_length": sum(map(len, texts)) // len(texts),
    }


def _instruction(prompt: Prompt) -> str:
    return prompt.messages[-1]["content"]


def _datasets(prompts: str) -> list[str | None]:
    """Return the `dataset` of every row, which prompts do not carry; None where not given."""
    rows = itertools.chain.from_iterable(read_rows(file) for file in prompt_files(prompts))
    return [row.get("dataset") if isinstance(row, dict) else None for _, row in rows]
