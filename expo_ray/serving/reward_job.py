"""Scoring one responses table: whole where it fits into memory, streamed where it may not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expo_ray.errors import ConfigError, argument
from expo_ray.progress import Progress
from expo_ray.serving.reward_rows import (
    KEY,
    CheckedColumns,
    ReferenceTable,
    chat_of,
    is_scorable,
    num_chars,
    read_references,
    reward_rows,
)
from expo_ray.serving.reward_stream import count_rewards, count_rows, stream_rewards
from expo_ray.serving.rewarder import Scored
from expo_ray.tables import RESPONSES_SCHEMA, REWARDS_SCHEMA, ResumableTable, read_table
from expo_ray.tables.streamed import StreamedTable, iter_batches, parquet_files
from expo_ray.tables.thoughts import AUTO

if TYPE_CHECKING:
    from expo_ray.serving.reward_replicas import RewardReplicas

STREAMED_ROWS = 50_000
"""Tables from this size on, and folders of tables, are streamed and never held whole."""


class RewardJob:
    """One table to score."""

    def __init__(
        self,
        replicas: RewardReplicas,
        responses_path: str | Path,
        output_path: str | Path,
        references_path: str | Path | None,
        progress: Progress,
    ) -> None:
        self._replicas = replicas
        self._files = parquet_files(responses_path)
        self._num_responses = count_rows(self._files)
        self._output = Path(output_path)
        self._references_path = references_path
        self._progress = progress
        self._reasoning = replicas.reasoning
        self.is_large = Path(responses_path).is_dir() or self._num_responses >= STREAMED_ROWS

    @cached_property
    def scorer(self) -> Scored:
        """Who scores."""
        scorer = self._replicas.start(self._progress)
        is_compared = scorer.needs_reference and not self._replicas.reads_columns
        if is_compared and self._references_path is None:
            raise ConfigError(
                "a pairwise reward model compares each response with another one",
                where=scorer.name,
                hint=f"give the aligned model's responses to the same prompts: "
                f"{argument('reference', 'TABLE')}",
            )
        return scorer

    @cached_property
    def _references(self) -> ReferenceTable | CheckedColumns | None:
        if self._replicas.reads_columns:
            return CheckedColumns()
        if not self.scorer.needs_reference:
            return None
        return read_references(self._references_path, self._reasoning)

    @cached_property
    def _identity(self) -> dict[str, Any]:
        scorer = self.scorer
        made_by = {
            "reward_model": scorer.name,
            "revision": scorer.revision,
            "settings": scorer.settings,
        }
        compared = {}
        if isinstance(self._references, ReferenceTable):
            compared = {"reference": self._references.digest}
        # Tables from before this setting stay valid.
        told = {} if self._reasoning == AUTO else {"reasoning": str(self._reasoning)}
        return {**made_by, **compared, **told}

    def score_whole(self) -> dict[str, Any]:
        """Score a table that fits into memory, and merge it in the order of its keys."""
        responses = read_table(self._files[0], RESPONSES_SCHEMA).to_pylist()
        table = ResumableTable(self._output, REWARDS_SCHEMA, key=KEY, identity=self._identity)
        done = table.done
        todo = [row for row in responses if tuple(row[name] for name in KEY) not in done]
        bar = self._replicas.bar(self._progress, len(todo))
        num_cached = 0
        try:
            self._test(row for row in todo or responses)
            for rows, num_known in self._scored(todo):
                table.append(rows)
                num_cached += num_known
                bar.advance(len(rows))
        finally:
            bar.close()
        table.finish()
        return {
            "num_scored": len(todo),
            "num_cached": num_cached,
            "num_resumed": len(responses) - len(todo),
            **count_rewards(self._output),
        }

    def stream(self) -> dict[str, Any]:
        """Score a table of any size in bounded memory."""
        table = StreamedTable(self._output, REWARDS_SCHEMA, key=KEY, identity=self._identity)
        self._test(row for batch in iter_batches(self._files[:1]) for row in batch.to_pylist())
        done = table.done()
        todo = self._num_responses - len(done)
        bar = self._replicas.bar(self._progress, todo)
        num_scored = 0
        try:
            for rows in stream_rewards(
                self._files,
                app_name=self._replicas.app_name,
                done=done,
                references=self._references,
                name=self.scorer.name,
                revision=self.scorer.revision,
                reasoning=self._reasoning,
            ):
                table.append(rows)
                num_scored += rows.num_rows
                bar.advance(rows.num_rows)
        finally:
            bar.close()
        table.finish()
        return {
            "num_scored": num_scored,
            "num_resumed": self._num_responses - num_scored,
            **count_rewards(self._output),
        }

    def _test(self, rows: Iterable[dict[str, Any]]) -> None:
        some = [row for _, row in zip(range(8), filter(is_scorable, rows), strict=False)]
        chats = [chat_of(row, self._reasoning) for row in some]
        references = self._references and [self._references.of(row) for row in some]
        self._replicas.test_once(
            chats, self._progress, output=self._output, references=references or None
        )

    def _scored(self, todo: list[dict[str, Any]]) -> Iterator[tuple[list[dict[str, Any]], int]]:
        """Yield finished rows; those of like length stand together, so that batches are full."""
        reasoning = self._reasoning
        chats = {i: chat_of(row, reasoning) for i, row in enumerate(todo) if is_scorable(row)}
        references = self._references and [self._references.of(row) for row in todo]
        hopeless = [row for i, row in enumerate(todo) if i not in chats]
        yield reward_rows(hopeless, (), name=self.scorer.name, revision=self.scorer.revision), 0
        order = sorted(chats, key=lambda i: -num_chars(chats[i]))
        for chunk, scored in self._replicas.call(order, chats, references):
            rows = reward_rows(
                [todo[i] for i in chunk], scored.scores, name=scored.name, revision=scored.revision
            )
            yield rows, scored.num_cached
