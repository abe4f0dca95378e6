"""Rewards in bulk: one Serve application of reward replicas, tables in, tables out."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from ray import serve

from expo_ray.checkpoints import atomic_write_json
from expo_ray.errors import ExpoError
from expo_ray.progress import NullProgress, Progress, ProgressBar
from expo_ray.rewards import RewardModelSpec, RewardScore, SelfTest, pin_reward_model
from expo_ray.rewards.anchors import AnchorPair
from expo_ray.rewards.interface import Chat, References
from expo_ray.serving.chunked_calls import call_in_chunks, split
from expo_ray.serving.engines.registry import resolve_reward_engine
from expo_ray.serving.launching import (
    application,
    ensure_serve,
    replica_options,
    replica_threads,
)
from expo_ray.serving.reward_job import RewardJob
from expo_ray.serving.reward_rows import CHUNK_ROWS, num_chars
from expo_ray.serving.rewarder import Rewarder, Scored
from expo_ray.serving.self_test_file import self_test_file
from expo_ray.tables.thoughts import AUTO, Reasoning

_SCHEMA_VERSION = 1


class RewardReplicas:
    """Replicas of one reward model on the connected Ray.

    Args:
        spec: What `--reward-model` says.
        num_replicas: How many; each takes one CPU, and one GPU where the cluster has any.
        engine: `transformers` or `vllm`.
        initial: For an implicit reward: the checkpoint before alignment.
        aligned: For an implicit reward: the aligned one.
        self_test: Whether the reward model is tested before it scores a table.
        anchors: Pairs that the self-test must see rank right; None takes general ones, which
            are only counted.
        use_cache: Whether scores are remembered on each node, and looked up there.
        allow_truncation: Whether chats longer than the reward model reads are cut at their
            beginning, scored and marked, instead of refused.
        reasoning: How thoughts are marked, which are not scored; where a table tells them apart
            already, they are not looked for.
        tests: What self-tests found, by the text of `spec`; filled here. One that is there is
            not made, or told, again.

    Raises:
        ConfigError: The spec cannot be parsed, an implicit reward lacks its pair, or the engine
            does not compute this reward model.
        CheckpointError: A checkpoint is missing or malformed.
    """

    def __init__(
        self,
        spec: RewardModelSpec | str,
        num_replicas: int = 1,
        engine: str = "transformers",
        *,
        initial: str | Path | None = None,
        aligned: str | Path | None = None,
        self_test: bool = True,
        anchors: Sequence[AnchorPair] | None = None,
        use_cache: bool = True,
        allow_truncation: bool = False,
        reasoning: Reasoning = AUTO,
        tests: dict[str, SelfTest] | None = None,
    ) -> None:
        asked = RewardModelSpec.parse(spec) if isinstance(spec, str) else spec
        self._label, self._text = asked.short_name, asked.text
        self._num_replicas = num_replicas
        self._pinned = pin_reward_model(asked, initial=initial, aligned=aligned)
        self.reads_columns = asked.kind.reads_columns
        """Whether it is told what the prompts say that answers are checked against."""
        self._wants_test, self._anchors = self_test, anchors
        self.reasoning = reasoning
        self._how = {
            "load": resolve_reward_engine(engine, self._pinned[0]).load_reward_model,
            "use_cache": use_cache,
            "truncate": allow_truncation,
        }
        self._tests = {} if tests is None else tests
        self._stack = ExitStack()
        self._handle: Any = None
        self._app_name = ""

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
        references_path: str | Path | None = None,
        progress: Progress | None = None,
    ) -> dict[str, Any]:
        """Score every response and write the rewards table; rows that are done stay.

        A response with an error, and a chat that cannot be scored, get a null reward that says
        why. The first time, the reward model tests itself; what it found lies beside the table.

        Args:
            responses_path: A responses table; a large one, or a folder of them, is streamed.
            output_path: Parquet file to write.
            references_path: For a pairwise reward model: responses to the same prompts that these
                are compared with, naturally those of the aligned model.
            progress: Where progress is shown.

        Returns:
            A summary: counts, mean reward, the spread that batching causes, seconds.

        Raises:
            TableError: The responses are missing or malformed.
            CheckpointError: The reward model cannot be loaded, or is none.
            ConfigError: The output was made by another reward model, or references are missing.
            EvaluationError: The self-test found the reward model unusable.
            ServingError: Replicas failed.
        """
        started = time.monotonic()
        job = RewardJob(
            self, responses_path, output_path, references_path, progress or NullProgress()
        )
        counts = job.stream() if job.is_large else job.score_whole()
        tested = self._tests.get(self._text)
        return {
            "schema_version": _SCHEMA_VERSION,
            "output": str(output_path),
            "reward_model": job.scorer.name,
            "reward_model_revision": job.scorer.revision,
            "reasoning": str(self.reasoning),
            **counts,
            "spread": None if tested is None else tested.spread,
            "seconds": round(time.monotonic() - started, 3),
        }

    def score(
        self,
        chats: Sequence[Chat],
        references: References | None = None,
        *,
        progress: Progress | None = None,
    ) -> list[RewardScore]:
        """Score chats, in the order given.

        Args:
            chats: Chats whose last turn is the assistant's.
            references: For a pairwise reward model: what each last turn is compared with.
            progress: Where progress is shown.

        Raises:
            CheckpointError: The reward model cannot be loaded, or is none.
            ServingError: Replicas failed.
        """
        progress = progress or NullProgress()
        self.start(progress)
        bar = progress.start(f"Scoring with {self._label}", len(chats), "chats")
        found: dict[int, RewardScore] = {}
        try:
            order = sorted(range(len(chats)), key=lambda i: -num_chars(chats[i]))
            for chunk, scored in self.call(order, chats, references):
                found.update(zip(chunk, scored.scores, strict=True))
                bar.advance(len(chunk))
        finally:
            bar.close()
        return [found[i] for i in range(len(chats))]

    def call(
        self, order: Sequence[int], chats: Mapping[int, Chat] | Sequence[Chat], references: Any
    ) -> Iterator[tuple[Sequence[int], Scored]]:
        """Yield (numbers of chats, their scores), a chunk at a time, in the order given."""

        def send(chunk: Sequence[int]) -> Any:
            compared = None if references is None else [references[i] for i in chunk]
            return self._handle.score.remote([chats[i] for i in chunk], compared)

        chunks = split(order, max_rows=CHUNK_ROWS, num_replicas=self._num_replicas)
        return call_in_chunks(send, chunks, num_in_flight=2 * self._num_replicas)

    def start(self, progress: Progress) -> Scored:
        """Start the replicas, unless they run, and return who scores."""
        if self._handle is None:
            progress.message(f"starting {self._num_replicas} reward replica(s)")
            ensure_serve()
            options = replica_options(self._num_replicas)
            deployment = serve.deployment(Rewarder).options(max_ongoing_requests=8, **options)
            num_threads = replica_threads(options)
            bound = deployment.bind(*self._pinned, **self._how, num_threads=num_threads)
            self._handle, _ = self._stack.enter_context(application(bound, label="rewarder"))
        [(_, scorer)] = call_in_chunks(self._handle.score.remote, [[]], num_in_flight=1)
        if scorer.error is not None:
            raise scorer.error
        known: Scored = scorer
        return known

    def test_once(
        self,
        chats: Sequence[Chat],
        progress: Progress,
        *,
        output: Path | None = None,
        references: References | None = None,
    ) -> SelfTest | None:
        """Test the reward model, unless it was, and write what was found beside the table.

        Args:
            chats: Chats like those to be scored.
            progress: Where progress is shown.
            output: The rewards table; None where there is none.
            references: What a check finds right answers to the chats by.

        Raises:
            EvaluationError: It is unusable.
        """
        if not self._wants_test:
            return None
        if self._text not in self._tests:
            [(_, result)] = call_in_chunks(
                lambda some: self._handle.self_test.remote(some, self._anchors, references),
                [list(chats)],
                num_in_flight=1,
            )
            if isinstance(result, ExpoError):
                raise result
            self._tests[self._text] = result
            progress.message(f"self-test of {self._label}: {_found(result)}")
            for warning in result.warnings:
                progress.message(f"warning: {warning}")
        tested = self._tests[self._text]
        if output is not None:
            self_test_file(output).parent.mkdir(parents=True, exist_ok=True)
            atomic_write_json(self_test_file(output), tested.as_dict())
        return tested

    def bar(self, progress: Progress, total: int) -> ProgressBar:
        """Open the line of a table."""
        return progress.start(f"Scoring with {self._label}", total, "responses")

    @property
    def app_name(self) -> str:
        """Under which name tasks find the replicas."""
        return str(self._handle.app_name)


def _found(result: SelfTest) -> str:
    text = f"batching moves a score by up to {result.spread:.2g}"
    if not result.num_anchors:
        return text
    text += f"; {result.num_anchors_right} of {result.num_anchors} anchors rank right"
    if result.num_anchors_right == result.num_anchors:
        return text
    return f"{text} (general knowledge; a model for one task need not have it)"
