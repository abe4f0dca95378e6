"""Measures texts, on all cores where there are many.

The workers are processes of this module's own and talk through pipes, see `child_python`.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from queue import SimpleQueue
from typing import IO, cast

import numpy as np
import numpy.typing as npt

from expo_ray.child_python import child_command
from expo_ray.cores import num_cores
from expo_ray.errors import WorkError
from expo_ray.selection.languages import languages
from expo_ray.selection.repetition import repeated_share
from expo_ray.selection.text_signs import echoes, leaks_markers

FloatArray = npt.NDArray[np.float64]
Texts = tuple[Sequence[str | None], Sequence[str]]
"""Questions, None where unknown, and their answers."""

SIGNS = ("repetition", "echoes", "markers", "drifts")
MIN_ROWS = 20_000
"""Fewer take about the two seconds that a worker needs to start."""
MAX_WORKERS = 8
"""Each holds a table of 250 MB to tell languages."""


def measure_texts(questions: Sequence[str | None], answers: Sequence[str]) -> FloatArray:
    """Return one row per answer, one column per sign; NaN where the question is unknown.

    Args:
        questions: The last turn of each prompt; equal ones may recur.
        answers: As many.
    """
    signs = np.full((len(answers), len(SIGNS)), np.nan)
    signs[:, 0] = [repeated_share(answer) for answer in answers]
    asked = list(dict.fromkeys(question for question in questions if question is not None))
    language_of = dict(zip(asked, languages(asked), strict=True))
    for row, (question, answer, answered) in enumerate(
        zip(questions, answers, languages(answers), strict=True)
    ):
        if question is not None:
            asked_in = language_of[question]
            drifts = asked_in is not None and answered is not None and asked_in != answered
            signs[row, 1:] = echoes(question, answer), leaks_markers(question, answer), drifts
    return signs


def measure_blocks(blocks: Iterable[Texts], *, num_rows: int) -> Iterator[FloatArray]:
    """Measure blocks of texts and yield their signs in the same order.

    Args:
        blocks: Texts, read as they are needed.
        num_rows: How many all blocks hold; few are measured in this process.

    Raises:
        WorkError: A worker ended.
    """
    num_workers = min(num_cores(), MAX_WORKERS)
    if num_rows < MIN_ROWS or num_workers < 2:
        yield from (measure_texts(*texts) for texts in blocks)
        return
    with ExitStack() as stack:
        idle: SimpleQueue[_Worker] = SimpleQueue()
        for _ in range(num_workers):
            idle.put(stack.enter_context(_Worker()))

        def measure(texts: Texts) -> FloatArray:
            worker = idle.get()
            try:
                return worker.measure(texts)
            finally:
                idle.put(worker)  # one that has ended, too: whoever takes it next is told

        threads = ThreadPoolExecutor(num_workers)
        # Before the workers are ended: nothing more is begun, and what waits for one fails then.
        stack.callback(threads.shutdown, wait=False, cancel_futures=True)
        waiting: list[Future[FloatArray]] = []
        for texts in blocks:
            waiting.append(threads.submit(measure, texts))
            if len(waiting) > 2 * num_workers:
                yield waiting.pop(0).result()
        yield from (future.result() for future in waiting)


class _Worker:
    """A process that measures one block after another."""

    def __enter__(self) -> _Worker:
        # A Ctrl-C is for this process, which ends its workers.
        self._process = subprocess.Popen(
            child_command(serve),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        return self

    def measure(self, texts: Texts) -> FloatArray:
        """Return what `measure_texts` does."""
        asks, answers = (cast(IO[bytes], p) for p in (self._process.stdin, self._process.stdout))
        try:
            pickle.dump(texts, asks)
            asks.flush()
            found: FloatArray = pickle.load(answers)  # noqa: S301 - of our own process
        except (EOFError, OSError, pickle.UnpicklingError) as error:
            raise WorkError(
                "a process that reads texts has ended",
                where="signs of the texts",
                got=error,
                hint="was it killed for memory? run the same again",
            ) from error
        return found

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()


def serve() -> None:
    """Measure what comes through standard input until it ends."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever prints must not end up among the answers
    with ExitStack() as stack:
        stack.enter_context(answers)
        while True:
            try:
                texts: Texts = pickle.load(sys.stdin.buffer)  # noqa: S301 - of our own process
            except EOFError:
                return
            pickle.dump(measure_texts(*texts), answers)
            answers.flush()
