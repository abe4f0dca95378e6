"""A check in a process of its own, with limits in time and memory that nothing escapes.

What is checked was written by a model, and how, often by a user: a pattern that backtracks for
hours, a formula that fills the memory, a function that waits for ever. The process is ended where
it does not answer in time and started again for the next row. It gets one JSON object a line and
answers each with one.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import selectors
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from typing import IO, Any

from expo_ray.child_python import child_command
from expo_ray.json_text import parse_json
from expo_ray.rewards.checks.kind import Arguments, BrokenCheckError, Check, Checked, CheckKind

_START_SECONDS = 120.0
"""For its imports, on a machine that is busy."""
_MAX_ANSWER_BYTES = 2**16
_MAX_TOLD = 300
_DIES_WITH_PARENT = 1  # PR_SET_PDEATHSIG


class OwnProcess(Check):
    """A check of some kind in a process, started with the first answer.

    Args:
        kind: Of the check.
        arguments: Pinned ones.
    """

    def __init__(self, kind: CheckKind, arguments: Arguments) -> None:
        self._kind, self._arguments = kind, arguments
        self._process: subprocess.Popen[bytes] | None = None

    def reward(self, checked: Checked) -> float:
        """Return what the check says; a row that it cannot bear is that row's fault.

        Raises:
            BrokenCheckError: It cannot say, or takes too long or too much memory over it.
        """
        return float(self._ask({"checked": asdict(checked)}))

    def unreadable(self, checked: Checked) -> str | None:
        """Return what a wrong answer lacks that could be checked at all; None where it has it."""
        try:
            lacks = self._ask({"wrong": asdict(checked)})
        except BrokenCheckError:  # it was told from wrong once: that stands
            return None
        return None if lacks is None else str(lacks)

    def target_fault(self, target: str) -> str | None:
        """Return why nothing can be checked against a value; None where it can."""
        try:
            fault = self._ask({"target": target})
        except BrokenCheckError as error:
            return str(error)
        return None if fault is None else str(fault)

    def start(self) -> None:
        """Load the check.

        Raises:
            BrokenCheckError: It cannot be loaded.
        """
        if self._process is not None:
            return
        limits = {"max_memory_bytes": self._kind.max_memory_bytes, "parent": os.getpid()}
        # The child's check belongs to a row or to the loading; its own words go nowhere.
        self._process = subprocess.Popen(
            child_command(serve_check),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            how = {"kind": self._kind.name, "arguments": dict(self._arguments), **limits}
            self._exchange(how, _START_SECONDS)
        except BrokenCheckError:
            self.close()
            raise

    def close(self) -> None:
        """End the process and all that it started."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # what it did not read any more
                    pipe.close()

    def __del__(self) -> None:
        self.close()

    def _ask(self, request: dict[str, Any]) -> Any:
        self.start()
        return self._exchange(request, self._kind.max_row_seconds)

    def _exchange(self, request: dict[str, Any], seconds: float) -> Any:
        if self._process is None or self._process.stdin is None or self._process.stdout is None:
            raise AssertionError("there is no process without its pipes")
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
            line = _read_line(self._process.stdout, seconds)
            answer = parse_json(line)
        except TimeoutError as error:
            self.close()
            raise BrokenCheckError(f"the check takes more than {seconds:g} s") from error
        except (OSError, ValueError) as error:
            self.close()
            raise BrokenCheckError("the process of the check ended") from error
        if answer.get("ends"):  # nothing can be relied on after that
            self.close()
        if "broken" in answer:
            raise BrokenCheckError(answer["broken"])
        return answer["value"]


def _read_line(pipe: IO[bytes], seconds: float) -> bytes:
    """Read up to a line's end.

    Raises:
        TimeoutError: It did not come in time.
        ValueError: The other side ended, or wrote too much.
    """
    deadline = time.monotonic() + seconds
    line = bytearray()
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while not line.endswith(b"\n"):
            if not selector.select(max(0.0, deadline - time.monotonic())):
                raise TimeoutError
            piece = os.read(pipe.fileno(), 4096)
            line += piece
            if not piece or len(line) > _MAX_ANSWER_BYTES:
                raise ValueError("no answer")
    return bytes(line)


def serve_check() -> None:
    """Be the process: load what the first line asks for, then answer one line with another."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a function prints is no answer
    how = json.loads(sys.stdin.buffer.readline())
    _limit(how["max_memory_bytes"], how["parent"])
    check = _answered(answers, lambda: _open(how), shows=False)
    for line in sys.stdin.buffer:
        request = json.loads(line)
        if "target" in request:
            _answered(answers, lambda: check.target_fault(request["target"]))  # noqa: B023
        elif "wrong" in request:
            _answered(answers, lambda: check.unreadable(Checked(**request["wrong"])))  # noqa: B023
        else:
            _answered(answers, lambda: check.reward(Checked(**request["checked"])))  # noqa: B023


def _open(how: dict[str, Any]) -> Check:
    from expo_ray.rewards.checks.registry import CHECK_KINDS

    return CHECK_KINDS[how["kind"]].open(how["arguments"])


def _answered(answers: IO[bytes], work: Any, *, shows: bool = True) -> Any:
    """Do what was asked and write what came of it; return it."""
    value, answer, asked = None, {}, os.getpid()
    try:
        value = work()
        answer = {"value": value if shows else None}
    except BrokenCheckError as error:
        answer = {"broken": str(error)[:_MAX_TOLD]}
    except MemoryError:
        answer = {"broken": "the check takes too much memory", "ends": True}
    except Exception as error:  # noqa: BLE001 - a parser may raise anything over such texts
        answer = {"broken": f"the check fails: {type(error).__name__}: {error}"[:_MAX_TOLD]}
    if os.getpid() != asked:  # a function forked: its child was asked nothing
        os._exit(0)
    answers.write(json.dumps(answer).encode() + b"\n")
    answers.flush()
    return value


def _limit(max_memory_bytes: int, parent: int) -> None:
    ctypes.CDLL(None).prctl(_DIES_WITH_PARENT, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before this was said
        sys.exit(1)
    resource.setrlimit(resource.RLIMIT_AS, (max_memory_bytes, max_memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
