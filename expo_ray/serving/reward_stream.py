"""Tables of any size: Ray Data streams the responses past the reward replicas.

Blocks of rows are read, cleared of what is done, laid together by length and scored, a bounded
number at a time; the driver receives rewards alone, never the texts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
from ray import serve

from expo_ray.cluster import get_within
from expo_ray.errors import TableError
from expo_ray.ray_internals import quiet_data
from expo_ray.rewards import RewardScore
from expo_ray.serving.chunked_calls import call_in_chunks, split
from expo_ray.serving.reward_rows import (
    CHUNK_ROWS,
    KEY,
    CheckedColumns,
    ReferenceTable,
    chat_of,
    is_scorable,
    num_chars,
    reward_rows,
)
from expo_ray.tables import RESPONSES_SCHEMA, REWARDS_SCHEMA
from expo_ray.tables.schemas import require_schema
from expo_ray.tables.streamed import Digests, iter_batches, key_digests
from expo_ray.tables.thoughts import Reasoning

_BLOCK_ROWS = 1024
_BLOCK_BYTES = 2**20
_NUM_BLOCKS_AT_ONCE = 2
_FETCH_SECONDS = 600.0


def count_rows(files: Sequence[Path]) -> int:
    """Return the rows of responses tables, from their footers.

    Raises:
        TableError: A file is not Parquet or has other columns.
    """
    for file in files:
        require_schema(file, RESPONSES_SCHEMA)
    return sum(int(pq.read_metadata(file).num_rows) for file in files)


def stream_rewards(
    files: Sequence[Path],
    *,
    app_name: str,
    done: Digests,
    references: ReferenceTable | CheckedColumns | None,
    name: str,
    revision: str,
    reasoning: Reasoning,
) -> Iterator[pa.Table]:
    """Yield tables of rewards in any order, as they are scored.

    Args:
        files: Responses tables.
        app_name: The Serve application of the replicas.
        done: Digests of the keys that need no score, ascending.
        references: What responses are compared with, or checked against.
        name: The reward model's name.
        revision: What pins it.
        reasoning: How thoughts are marked, which are not scored.

    Raises:
        TableError: The files cannot be read.
    """
    who = {"name": name, "revision": revision}
    try:
        # A data set keeps the settings under which it was made; those of the process stay.
        with _settings():
            dataset = ray.data.read_parquet(
                [str(file.absolute()) for file in files], num_cpus=0
            ).map_batches(
                _BlockScorer,
                fn_constructor_args=(
                    app_name,
                    ray.put(done),
                    ray.put(references),
                    who,
                    reasoning,
                ),
                batch_size=_BLOCK_ROWS,
                batch_format="pyarrow",
                # They wait for replicas; CPUs are for those.
                num_cpus=0,
                compute=ray.data.ActorPoolStrategy(min_size=1, max_size=_NUM_BLOCKS_AT_ONCE),
            )
        with quiet_data():
            for block in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
                yield block.cast(REWARDS_SCHEMA)
    except pa.ArrowException as error:
        raise TableError("the responses cannot be read", where=files[0], got=error) from error


@contextmanager
def _settings() -> Iterator[None]:
    context = ray.data.DataContext.get_current()
    ours = {
        "enable_progress_bars": False,  # we show our own
        # A worker keeps what it scored until a block is full, and a killed run loses it.
        "target_max_block_size": _BLOCK_BYTES,
        "target_min_block_size": _BLOCK_BYTES // 2,
    }
    before = {name: getattr(context, name) for name in ours}
    try:
        for name, value in ours.items():
            setattr(context, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(context, name, value)


def count_rewards(path: Path) -> dict[str, Any]:
    """Return counts and mean reward of a rewards table, read in batches."""
    num_rows, num_fine, num_truncated, num_unreadable, total = 0, 0, 0, 0, 0.0
    later = {"unreadable"} & {*pq.read_schema(path).names}
    for batch in iter_batches([path], ["reward", "truncated", *later]):
        column = batch.column("reward")
        num_rows += batch.num_rows
        num_fine += batch.num_rows - column.null_count
        num_truncated += pc.sum(batch.column("truncated")).as_py() or 0
        total += pc.sum(column).as_py() or 0.0
        for name in later:
            num_unreadable += batch.num_rows - batch.column(name).null_count
    return {
        "num_rows": num_rows,
        "num_errors": num_rows - num_fine,
        "num_truncated": num_truncated,
        "num_unreadable": num_unreadable,
        "mean_reward": total / num_fine if num_fine else None,
    }


class _BlockScorer:
    """Scores blocks of responses by the replicas of an application."""

    def __init__(
        self,
        app_name: str,
        done: Any,
        references: Any,
        who: dict[str, str],
        reasoning: Reasoning,
    ) -> None:
        self._handle = serve.get_app_handle(app_name)
        what = "the list of finished rows and the references, from the driver"
        found = get_within(_FETCH_SECONDS, [done, references], what=what)
        self._done: Digests = found[0]
        self._references: ReferenceTable | CheckedColumns | None = found[1]
        self._who = who
        self._reasoning = reasoning

    def __call__(self, block: pa.Table) -> pa.Table:
        known = np.isin(key_digests(block, KEY), self._done) if len(self._done) else None
        rows = (block if known is None else block.filter(pa.array(~known))).to_pylist()
        reasoning = self._reasoning
        chats = {i: chat_of(row, reasoning) for i, row in enumerate(rows) if is_scorable(row)}
        hopeless = [row for i, row in enumerate(rows) if i not in chats]
        found = reward_rows(hopeless, (), **self._who)
        order = sorted(chats, key=lambda i: -num_chars(chats[i]))
        references = self._references

        def send(chunk: Sequence[int]) -> Any:
            compared = None if references is None else [references.of(rows[i]) for i in chunk]
            return self._handle.score.remote([chats[i] for i in chunk], compared)

        chunks = split(order, max_rows=CHUNK_ROWS, num_replicas=1)
        for chunk, scored in call_in_chunks(send, chunks, num_in_flight=2):
            scores: list[RewardScore] = scored.scores
            found += reward_rows([rows[i] for i in chunk], scores, **self._who)
        return pa.Table.from_pylist(found, schema=REWARDS_SCHEMA)
