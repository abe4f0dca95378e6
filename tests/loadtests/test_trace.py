from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from expo_ray.errors import TableError
from expo_ray.loadtests.loads import Load
from expo_ray.loadtests.prompting import PromptSource
from expo_ray.loadtests.records import REQUESTS_SCHEMA
from expo_ray.loadtests.trace import TraceRequest, read_trace
from expo_ray.tables import Message, Prompt
from tests.loadtests.test_metrics import record

PROMPTS = [
    Prompt(prompt_id=name, messages=({"role": "user", "content": name},)) for name in ("a", "b")
]


def write(folder: Path, *lines: object) -> Path:
    path = folder / "trace.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_published_traces_and_ones_own(tmp_path: Path) -> None:
    mooncake = {"timestamp": 27482, "input_length": 6955, "output_length": 52, "hash_ids": [46]}
    trace = read_trace(
        write(
            tmp_path,
            {"seconds": 28.482, "prompt": "Why?", "max_tokens": 7},
            mooncake,
            {"seconds": 27.982, "messages": [{"role": "user", "content": "Who?"}]},
        ),
        speed=2,
    )
    assert [r.due_seconds for r in trace] == pytest.approx([0.0, 0.25, 0.5])
    assert [r.max_tokens for r in trace] == [52, None, 7]
    jobs = PromptSource(PROMPTS).replay(Load(trace=trace))
    assert [job.messages[0]["content"] for job in jobs] == ["a", "Who?", "Why?"]
    assert [job.max_tokens for job in jobs] == [52, None, 7]
    assert Load(trace=trace).offered_rate == pytest.approx(4)


def test_an_earlier_load_test_is_a_trace(tmp_path: Path) -> None:
    records = [
        record(0, intended_seconds=5.0, phase="warmup"),
        record(1, intended_seconds=1.5),
        record(2, intended_seconds=1.0),
    ]
    rows = [r.as_row(point=0) for r in records] + [records[1].as_row(point=1)]
    pq.write_table(pa.Table.from_pylist(rows, schema=REQUESTS_SCHEMA), tmp_path / "r.parquet")
    assert [r.due_seconds for r in read_trace(tmp_path / "r.parquet")] == [0.0, 0.5]


@pytest.mark.parametrize(
    "line", [{}, {"seconds": "soon"}, {"seconds": -1}, [1], {"timestamp": None}]
)
def test_a_line_that_is_no_request_is_named(tmp_path: Path, line: object) -> None:
    with pytest.raises(TableError, match="no request") as error:
        read_trace(write(tmp_path, {"seconds": 0}, line))
    assert str(error.value.where).endswith("trace.jsonl:2")


def test_files_that_are_no_trace(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="empty"):
        read_trace(write(tmp_path))
    with pytest.raises(TableError, match="cannot be read"):
        read_trace(tmp_path / "none.jsonl")
    (tmp_path / "junk.parquet").write_bytes(b"junk")
    with pytest.raises(TableError, match="cannot be read"):
        read_trace(tmp_path / "junk.parquet")


def test_prompts_are_taken_in_turn_and_made_unique() -> None:
    plain = PromptSource(PROMPTS)
    assert [job.prompt_id for job in plain.take(2, "measured")] == ["a", "b"]
    assert plain.prefix_cache == "once"
    assert [job.prompt_id for job in plain.take(2, "cooldown")] == ["a", "b"]
    assert plain.prefix_cache == "reused"

    first, again, other = (
        [job.messages[0]["content"] for job in PromptSource(PROMPTS, salt).take(4, "measured")]
        for salt in ("x", "x", "y")
    )
    assert first == again
    assert len({*first, *other}) == 8
    assert [text.split("] ")[1] for text in first] == ["a", "b", "a", "b"]
    assert PromptSource(PROMPTS, "x").prefix_cache == "unique"


def test_prompts_that_repeat_are_told_wherever_they_come_from() -> None:
    same = (Message(role="user", content="same"),)
    trace = tuple(TraceRequest(due_seconds=i, messages=same) for i in range(2))
    replayed = PromptSource(PROMPTS)
    replayed.replay(Load(trace=trace[:1]))
    assert replayed.prefix_cache == "once"
    replayed.replay(Load(trace=trace[1:]))
    assert replayed.prefix_cache == "reused"

    twice = PromptSource([PROMPTS[0], PROMPTS[0]])
    twice.take(2, "measured")
    assert twice.prefix_cache == "reused"

    # A service that lives on knows what an earlier source has sent.
    seen: set[bytes] = set()
    for expected in ("once", "reused"):
        source = PromptSource(PROMPTS, seen=seen)
        source.take(2, "measured")
        assert source.prefix_cache == expected
    for expected in ("unique", "reused"):
        source = PromptSource(PROMPTS, "the same letters", seen=seen)
        source.take(2, "measured")
        assert source.prefix_cache == expected
