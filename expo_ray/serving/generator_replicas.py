"""Responses in bulk: one Serve application whose replicas go through the candidates."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from expo_ray.errors import ConfigError, ServingError
from expo_ray.progress import NullProgress, Progress
from expo_ray.serving.chunked_calls import call_in_chunks, split
from expo_ray.serving.engines.interface import Generated
from expo_ray.serving.engines.options import EngineOptions
from expo_ray.serving.engines.precision import describe_precision
from expo_ray.serving.engines.registry import require_options, resolve_engine
from expo_ray.serving.generator import MAX_BATCH_ROWS
from expo_ray.serving.launching import application, ensure_serve
from expo_ray.serving.loaded import Answered, ChatRow, Loaded
from expo_ray.serving.sampling import SamplingParams
from expo_ray.serving.source import ModelSource
from expo_ray.tables import Prompt, ResumableTable, row_seed
from expo_ray.tables.checked_columns import CHECKED_COLUMNS
from expo_ray.tables.schemas import responses_schema
from expo_ray.tables.thoughts import AUTO, Reasoning, is_unanswered
from expo_ray.tables.turns import shown

_SCHEMA_VERSION = 1
_KEY = ("prompt_id", "sample", "weights_digest")
_NO_OPTIONS = EngineOptions()


class GeneratorReplicas:
    """Generator replicas on the connected Ray, started with the first work that needs them.

    Args:
        num_replicas: How many; each takes one CPU, and one GPU where the cluster has any.
        engine: `auto`, `transformers` or `vllm`.
        options: Settings of the engine.
        reasoning: How thoughts are marked: what is thought is no part of a response, and thoughts
            of earlier turns are not sent.

    Raises:
        ConfigError: The engine is unknown, or has no such settings.
        MissingExtraError: The engine's package is not installed.
    """

    def __init__(
        self,
        num_replicas: int = 1,
        engine: str = "transformers",
        *,
        options: EngineOptions = _NO_OPTIONS,
        reasoning: Reasoning = AUTO,
    ) -> None:
        self._num_replicas = num_replicas
        self._engine = resolve_engine(engine)
        require_options(self._engine, options)
        self._options = options
        # As many as a replica computes at the same time, and one that waits there.
        self.chunks_in_flight = 1 + -(-self._engine.max_batch_rows(options) // MAX_BATCH_ROWS)
        self._reasoning = reasoning
        self._stack = ExitStack()
        self._handle: Any = None
        self._launched: ModelSource | None = None
        self._precision = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._close()

    def _close(self) -> None:
        self._handle = self._launched = None
        self._stack.close()

    def write_responses(
        self,
        source: ModelSource,
        prompts: Sequence[Prompt],
        output_path: str | Path,
        *,
        sampling: SamplingParams,
        splits: Mapping[str, str] | None = None,
        alpha: float | None = None,
        progress: Progress | None = None,
    ) -> dict[str, Any]:
        """Answer every prompt and write the responses table; rows that are done stay.

        Args:
            source: Which weights answer.
            prompts: What is asked.
            output_path: Parquet file to write.
            sampling: Settings; `num_samples` responses per prompt.
            splits: `tuning` or `heldout` per prompt id; None leaves the column null.
            alpha: What the table records; None takes the source's, or its record's.
            progress: Where progress is shown.

        Returns:
            A summary: counts, tokens, seconds, weights digest, and on a CPU the precision.

        Raises:
            CheckpointError: The weights cannot be loaded.
            ConfigError: The output was made under other settings, or by other weights.
            ServingError: Replicas failed, or answered by other weights than asked for.
        """
        progress = progress or NullProgress()
        started = time.monotonic()
        source = source.pinned()  # a wrong path shows before any replica starts
        table = ResumableTable(
            output_path,
            responses_schema({name for prompt in prompts for name in prompt.checked}),
            key=_KEY,
            identity={
                "sampling": sampling.model_dump(mode="json", exclude={"num_samples"}),
                "engine": self._engine.name,
                # Tables from before this setting stay valid.
                **({} if self._reasoning == AUTO else {"reasoning": str(self._reasoning)}),
            },
        )
        prompts = [
            replace(each, messages=self._reasoning.without_thoughts(each.messages))
            for each in prompts
        ]
        _refuse_other_prompts(table, prompts)
        wanted = [(prompt, i) for prompt in prompts for i in range(sampling.num_samples)]
        # Only a table that looks complete is worth reading the weights for.
        answered = {key[:2] for key in table.done}
        looks_complete = all((prompt.prompt_id, i) in answered for prompt, i in wanted)
        digest = source.known_digest(read_weights=looks_complete)
        if digest is not None:
            _refuse_other_weights(table, digest)
        todo = _missing(wanted, table, digest)
        if todo or digest is None:
            digest = self._load(source, digest, progress)
            _refuse_other_weights(table, digest)
            todo = _missing(wanted, table, digest)
        if todo:
            fixed = {
                "model": source.name,
                "alpha": source.known_alpha() if alpha is None else alpha,
                "weights_digest": digest,
            }
            fixed |= dict.fromkeys(set(CHECKED_COLUMNS) & set(table.columns))
            self._answer(source, todo, table, fixed, sampling, splits or {}, progress)
        rows = table.finish().to_pylist()
        return {
            "schema_version": _SCHEMA_VERSION,
            "output": str(output_path),
            "model": source.name,
            "weights_digest": digest,
            "engine": self._engine.name,
            "precision": self._precision or None,
            "num_rows": len(rows),
            "num_generated": len(todo),
            "num_resumed": len(wanted) - len(todo),
            "num_errors": sum(row["error"] is not None for row in rows),
            "prompt_tokens": sum(row["prompt_tokens"] for row in rows),
            "completion_tokens": sum(row["completion_tokens"] for row in rows),
            "reasoning": str(self._reasoning),
            **count_thoughts(rows),
            "seconds": round(time.monotonic() - started, 3),
        }

    def _load(self, source: ModelSource, expected: str | None, progress: Progress) -> str:
        before = self._launched
        if before is not None and not self._engine.loads_in_place(before, source):
            self._close()
        if self._handle is None:
            source.check()
            self._precision = describe_precision(self._engine, source, self._options)
            told = f"starting {self._num_replicas} {self._engine.name} generator replica(s)"
            progress.message(f"{told} ({self._precision})" if self._precision else told)
            deployment = self._engine.deployment(self._num_replicas, self._options)
            # Room for all of one replica where the router takes another for fuller than it is.
            deployment |= {"max_ongoing_requests": 2 * self.chunks_in_flight}
            app = self._engine.bulk_app(source, self._options, deployment=deployment)
            ensure_serve()
            self._handle, _ = self._stack.enter_context(application(app, label="generator"))
            self._launched = source
        [(_, loaded)] = call_in_chunks(self._handle.load.remote, [source], num_in_flight=1)
        return _checked(source, loaded, expected)

    def _answer(
        self,
        source: ModelSource,
        todo: list[tuple[Prompt, int]],
        table: ResumableTable,
        fixed: dict[str, Any],
        sampling: SamplingParams,
        splits: Mapping[str, str],
        progress: Progress,
    ) -> None:
        # Prompts of like length share a batch, which saves padding; texts do not depend on it.
        todo = sorted(todo, key=lambda pair: -sum(len(m["content"]) for m in pair[0].messages))
        bar = progress.start(f"Generating {source.name}", len(todo), "responses")

        def call(chunk: Sequence[tuple[Prompt, int]]) -> Any:
            rows = [
                ChatRow(
                    messages=prompt.messages,
                    params=sampling,
                    seed=row_seed(sampling.seed, prompt.prompt_id, sample),
                    reasoning=self._reasoning,
                )
                for prompt, sample in chunk
            ]
            return self._handle.answer.remote(source, rows)

        try:
            chunks = split(todo, max_rows=MAX_BATCH_ROWS, num_replicas=self._num_replicas)
            for chunk, answered in call_in_chunks(
                call, chunks, num_in_flight=self.chunks_in_flight * self._num_replicas
            ):
                made: Answered = answered
                _checked(source, made.loaded, fixed["weights_digest"])
                table.append(
                    _table_row(prompt, sample, response, fixed, sampling, splits)
                    for (prompt, sample), response in zip(chunk, made.responses, strict=True)
                )
                bar.advance(len(chunk))
        finally:
            bar.close()


def count_thoughts(rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Return what a table says of thoughts: responses with one, those that ended in it, tokens."""
    return {
        "num_thoughts": sum(row["thought"] is not None for row in rows),
        "num_unanswered": sum(is_unanswered(row) for row in rows),
        "thought_tokens": sum(row["thought_tokens"] or 0 for row in rows),
    }


def _checked(source: ModelSource, loaded: Loaded, expected: str | None) -> str:
    """Return the digest that a replica reports, if it is the right one."""
    if loaded.error is not None:
        raise loaded.error
    is_other = loaded.model != source.name or expected not in (None, loaded.weights_digest)
    if loaded.weights_digest is None or is_other:
        raise ServingError(
            "a replica loaded other weights than asked for",
            where=source.name,
            got=f"{loaded.model}, digest {loaded.weights_digest}",
            expected=f"{source.name}, digest {expected or 'of any value'}",
            hint="the checkpoint may have changed meanwhile: start again with another output",
        )
    return loaded.weights_digest


def _missing(
    wanted: list[tuple[Prompt, int]], table: ResumableTable, digest: str | None
) -> list[tuple[Prompt, int]]:
    done = table.done
    return [(p, sample) for p, sample in wanted if (p.prompt_id, sample, digest) not in done]


def _refuse_other_weights(table: ResumableTable, digest: str) -> None:
    others = {row["weights_digest"] for row in table.rows} - {digest}
    if others:
        raise ConfigError(
            "the responses table was made by other weights",
            where=table.path,
            got=", ".join(sorted(others)),
            expected=digest,
            hint="give another output, or remove the old table",
        )


def _refuse_other_prompts(table: ResumableTable, prompts: Sequence[Prompt]) -> None:
    """Refuse to go on with answers to other questions, or with other right answers, than now."""
    known = {prompt.prompt_id: prompt for prompt in prompts}
    for row in table.rows:
        prompt = known.get(row["prompt_id"])
        if prompt is None:
            continue
        if row["messages"] != list(prompt.messages):
            raise ConfigError(
                "the responses table answers other prompts than these",
                where=f"{table.path}, prompt_id {row['prompt_id']!r}",
                got=shown(row["messages"][-1]["content"] if row["messages"] else None),
                expected=shown(prompt.messages[-1]["content"]),
                hint="give another output, or remove the old table",
            )
        now = prompt.checked
        before = {name: row[name] for name in CHECKED_COLUMNS if row.get(name) is not None}
        for name in CHECKED_COLUMNS:
            if now.get(name) == before.get(name):
                continue
            raise ConfigError(
                "the responses table has other answers to check against than the prompts",
                where=f"{table.path}, prompt_id {row['prompt_id']!r}, {name}",
                got=shown(before.get(name)),
                expected=shown(now.get(name)),
                hint="give another output, or remove the old table",
            )


def _table_row(
    prompt: Prompt,
    sample: int,
    response: Generated,
    fixed: dict[str, Any],
    sampling: SamplingParams,
    splits: Mapping[str, str],
) -> dict[str, Any]:
    fine = response.error is None
    return {
        **fixed,
        **prompt.checked,
        "prompt_id": prompt.prompt_id,
        "sample": sample,
        "split": splits.get(prompt.prompt_id),
        "messages": list(prompt.messages),
        "response": response.text if fine else None,
        "seed": row_seed(sampling.seed, prompt.prompt_id, sample),
        "finish_reason": response.finish_reason if fine else None,
        "prompt_tokens": response.prompt_tokens,
        "completion_tokens": response.completion_tokens,
        "error": response.error,
        "thought": response.thought if fine else None,
        "thought_tokens": response.thought_tokens if fine else None,
    }
