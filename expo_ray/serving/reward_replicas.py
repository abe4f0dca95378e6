"""Rewards in bulk: one Serve application of reward replicas, tables in, tables out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from ray import serve

from expo_ray.progress import NullProgress, Progress
from expo_ray.rewards import RewardModelSpec, RewardScore, pin_reward_model
from expo_ray.serving.chunked_calls import call_in_chunks, split
from expo_ray.serving.launching import application, ensure_serve, replica_options
from expo_ray.serving.rewarder import Rewarder, Scored
from expo_ray.tables import RESPONSES_SCHEMA, REWARDS_SCHEMA, Message, ResumableTable, read_table

_SCHEMA_VERSION = 1
_KEY = ("prompt_id", "sample", "weights_digest")
_CHUNK_ROWS = 64


class RewardReplicas:
    """Replicas of one reward model on the connected Ray.

    Args:
        spec: What `--reward-model` says.
        num_replicas: How many; each takes one CPU, and one GPU where the cluster has any.
        initial: For an implicit reward: the checkpoint before alignment.
        aligned: For an implicit reward: the aligned one.

    Raises:
        ConfigError: The spec cannot be parsed, or an implicit reward lacks its pair.
        CheckpointError: A checkpoint is missing or malformed.
    """

    def __init__(
        self,
        spec: RewardModelSpec | str,
        num_replicas: int = 1,
        *,
        initial: str | Path | None = None,
        aligned: str | Path | None = None,
    ) -> None:
        asked = RewardModelSpec.parse(spec) if isinstance(spec, str) else spec
        self._label = asked.short_name
        self._num_replicas = num_replicas
        self._pinned = pin_reward_model(asked, initial=initial, aligned=aligned)
        self._stack = ExitStack()
        self._handle: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._handle = None
        self._stack.close()

    def write_rewards(
        self,
        responses_path: str | Path,
        output_path: str | Path,
        *,
        progress: Progress | None = None,
    ) -> dict[str, Any]:
        """Score every response and write the rewards table; rows that are done stay.

        A response with an error, and a chat that cannot be scored, get a null reward that says
        why.

        Args:
            responses_path: A responses table.
            output_path: Parquet file to write.
            progress: Where progress is shown.

        Returns:
            A summary: counts, mean reward, seconds.

        Raises:
            TableError: The responses are missing or malformed.
            CheckpointError: The reward model cannot be loaded, or is none.
            ConfigError: The output was made by another reward model.
            ServingError: Replicas failed.
        """
        progress = progress or NullProgress()
        started = time.monotonic()
        responses = read_table(responses_path, RESPONSES_SCHEMA).to_pylist()
        scorer = self._scorer(progress)
        table = ResumableTable(
            output_path,
            REWARDS_SCHEMA,
            key=_KEY,
            identity={"reward_model": scorer.name, "revision": scorer.revision},
        )
        done = table.done
        todo = [row for row in responses if tuple(row[name] for name in _KEY) not in done]
        bar = progress.start(f"Scoring with {self._label}", len(todo), "responses")
        try:
            chunks = split(todo, max_rows=_CHUNK_ROWS, num_replicas=self._num_replicas)
            for chunk, scored in call_in_chunks(
                self._call, chunks, num_in_flight=2 * self._num_replicas
            ):
                table.append(_table_rows(chunk, scored))
                bar.advance(len(chunk))
        finally:
            bar.close()
        rewards = table.finish().column("reward").to_pylist()
        fine = [reward for reward in rewards if reward is not None]
        return {
            "schema_version": _SCHEMA_VERSION,
            "output": str(output_path),
            "reward_model": scorer.name,
            "reward_model_revision": scorer.revision,
            "num_rows": len(rewards),
            "num_scored": len(todo),
            "num_resumed": len(responses) - len(todo),
            "num_errors": len(rewards) - len(fine),
            "mean_reward": sum(fine) / len(fine) if fine else None,
            "seconds": round(time.monotonic() - started, 3),
        }

    def _scorer(self, progress: Progress) -> Scored:
        if self._handle is None:
            progress.message(f"starting {self._num_replicas} reward replica(s)")
            ensure_serve()
            deployment = serve.deployment(Rewarder).options(
                max_ongoing_requests=8, **replica_options(self._num_replicas)
            )
            app = application(deployment.bind(*self._pinned), label="rewarder")
            self._handle, _ = self._stack.enter_context(app)
        [(_, scorer)] = call_in_chunks(self._handle.score.remote, [[]], num_in_flight=1)
        if scorer.error is not None:
            raise scorer.error
        known: Scored = scorer
        return known

    def _call(self, chunk: Sequence[dict[str, Any]]) -> Any:
        return self._handle.score.remote([_chat(row) for row in chunk if _is_scorable(row)])


def _is_scorable(row: dict[str, Any]) -> bool:
    return row["error"] is None and row["response"] is not None


def _chat(row: dict[str, Any]) -> list[Message]:
    return [*row["messages"], Message(role="assistant", content=row["response"])]


def _table_rows(chunk: Sequence[dict[str, Any]], scored: Scored) -> list[dict[str, Any]]:
    scores = iter(scored.scores)
    return [
        {
            **{name: row[name] for name in (*_KEY, "split", "alpha", "seed")},
            **_score_columns(
                next(scores)
                if _is_scorable(row)
                else RewardScore.failed(f"no response: {row['error']}")
            ),
            "reward_model": scored.name,
            "reward_model_revision": scored.revision,
        }
        for row in chunk
    ]


def _score_columns(score: RewardScore) -> dict[str, Any]:
    return {
        "reward": score.reward,
        "tokens": score.tokens,
        "truncated": score.truncated,
        "error": score.error,
    }
