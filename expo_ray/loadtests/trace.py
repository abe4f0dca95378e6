"""Replay of recorded traffic: when requests arrived, and where known what they asked.

A trace is JSON lines. When: `seconds`, or `timestamp` in milliseconds as in published traces
(Mooncake, vLLM, AIPerf). What, all optional: a question, as in files of prompts (otherwise those of
the load test are taken in turn), and `output_length` or `max_tokens`. The requests.parquet of an
earlier load test is a trace too: its measured requests of point 0 with their intended times.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from expo_ray.errors import TableError
from expo_ray.json_text import parse_json
from expo_ray.tables import Message
from expo_ray.tables.questions import QuestionReader

_COLUMNS = ("seconds", "timestamp", "output_length", "max_tokens")


@dataclass(frozen=True, kw_only=True, slots=True)
class TraceRequest:
    """One request of a trace."""

    due_seconds: float
    """Since the first request."""
    messages: tuple[Message, ...] | None = None
    """None takes the next of the load test's own prompts."""
    max_tokens: int | None = None
    """Longest answer; None takes that of the load test."""


def read_trace(path: str | Path, *, speed: float = 1.0) -> tuple[TraceRequest, ...]:
    """Read a trace.

    Args:
        path: JSON lines, or the requests.parquet of a load test.
        speed: Replay so many times as fast.

    Returns:
        Its requests in the order of their times, the first at second 0.

    Raises:
        TableError: It cannot be read, is empty, or a line is no request.
    """
    path = Path(path)
    try:
        read = _recorded(path) if path.suffix == ".parquet" else _lines(path)
        requests = sorted(read, key=lambda r: r.due_seconds)
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
        raise TableError("the trace cannot be read", where=path, got=error) from error
    if not requests:
        raise TableError("the trace is empty", where=path, expected="one request or more")
    first = requests[0].due_seconds
    return tuple(
        TraceRequest(
            due_seconds=(r.due_seconds - first) / speed,
            messages=r.messages,
            max_tokens=r.max_tokens,
        )
        for r in requests
    )


def _recorded(path: Path) -> Iterator[TraceRequest]:
    rows = pq.read_table(path, columns=["point", "phase", "intended_seconds"]).to_pylist()
    for row in rows:
        if row["point"] == 0 and row["phase"] == "measured":
            yield TraceRequest(due_seconds=row["intended_seconds"])


def _lines(path: Path) -> Iterator[TraceRequest]:
    questions = QuestionReader(known=_COLUMNS)
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            try:
                row = parse_json(line)
                question = questions.read(row, where)
                yield _parse(row, question.turns if question.column else None)
            except (ValueError, OverflowError, TypeError, KeyError, AttributeError) as error:
                raise TableError(
                    "this line of the trace is no request",
                    where=where,
                    got=line.strip()[:100],
                    expected='{"seconds": 0.5} or {"timestamp": 500}, with or without a prompt',
                ) from error
    questions.tell(path)


def _parse(row: Mapping[str, Any], messages: tuple[Message, ...] | None) -> TraceRequest:
    seconds = float(row["seconds"]) if "seconds" in row else float(row["timestamp"]) / 1e3
    limit = row.get("output_length", row.get("max_tokens"))
    if not 0 <= seconds < float("inf") or (limit is not None and int(limit) < 1):
        raise ValueError("out of range")
    return TraceRequest(
        due_seconds=seconds,
        messages=messages,
        max_tokens=None if limit is None else int(limit),
    )
