"""Training models, each in its own Ray task, once: what is finished is never trained again.

A model's folder is renamed into place when it is whole, and its facts, `facts/NAME.json` beside it,
are written last.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from expo_ray.checkpoints import atomic_write_json
from expo_ray.checkpoints.storages.folder_lock import owned_lock
from expo_ray.cluster import cancel_unfinished, get_within
from expo_ray.errors import ConfigError, EvaluationError
from expo_ray.json_text import parse_json
from expo_ray.progress import Progress, ProgressBar
from expo_ray.remote_errors import brought_home

_POLL_SECONDS = 0.5
_ANSWER_SECONDS = 60.0

Facts = dict[str, Any]
OnStep = Callable[[int, int], None]
"""Called with (optimizer steps done, steps in all)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One model to train."""

    model: Path
    """Folder of its checkpoint; its name must be its own among the steps."""
    train: Callable[[Path, OnStep], Facts]
    """Writes the checkpoint into a folder and returns what a report shows; goes to a worker."""
    after: Path | None = None
    """A model of another step that it is made from; None for one that needs nothing."""


@contextmanager
def only_one(folder: Path, progress: Progress) -> Iterator[None]:
    """Wait until no other process works in a folder."""
    path = folder / ".lock"
    with ExitStack() as stack:
        try:
            stack.enter_context(owned_lock(path))
        except BlockingIOError:
            progress.message(f"another process prepares {folder}; waiting for it")
            stack.enter_context(owned_lock(path, wait=True))
        yield


def train_missing(steps: Sequence[Step], progress: Progress) -> dict[str, Facts]:
    """Train what is not there yet, on the Ray that is connected to.

    Args:
        steps: In the order in which they are begun; a step comes after the one that it waits for.
        progress: Shows the training steps of every model.

    Returns:
        The facts of all models, by their names.

    Raises:
        EvaluationError: A training failed; what is finished is kept for the next call.
    """
    facts = {step.model.name: _read_facts(step.model) for step in steps}
    for step in steps:
        if step.after is not None and facts[step.after.name] is None:
            facts[step.model.name] = None  # It continues from the weights to come.
    train = ray.remote(num_cpus=1, max_retries=2)(_train_one)
    with _step_board() as board, ExitStack() as stack:
        names: dict[Any, str] = {}
        bars: dict[str, ProgressBar] = {}
        tasks: dict[Path | None, Any] = {}
        for step in steps:
            name = step.model.name
            if facts[name] is not None:
                continue
            bars[name] = progress.start(f"Training {name}", unit="steps")
            stack.callback(bars[name].close)
            task = train.remote(step.train, str(step.model), board, tasks.get(step.after))
            tasks[step.model], names[task] = task, name
            # After a failure nothing goes on writing unseen.
            stack.callback(cancel_unfinished, [task], force=True)
        shown = dict.fromkeys(bars, 0)
        pending = list(names)
        while pending:
            ready, pending = ray.wait(pending, num_returns=1, timeout=_POLL_SECONDS)
            num_done = get_within(
                _ANSWER_SECONDS, board.read.remote(), what="steps of the training"
            )
            _advance(bars, shown, num_done)
            for task in ready:
                facts[names[task]] = _get_facts(task, names[task])
                bars[names[task]].close()
    return {name: found for name, found in facts.items() if found is not None}


def train_into(partial: Path, train: Callable[[], Facts]) -> Facts:
    """Train in a worker, with what an attempt before left out of the way.

    Args:
        partial: The folder that the training writes; it does not exist when it begins.
        train: Writes it.

    Returns:
        The facts, with `seconds` and `cpu_seconds`.
    """
    import torch

    # One thread: the task asked for one CPU, and the order of sums must not hang on the machine.
    torch.set_num_threads(1)
    shutil.rmtree(partial, ignore_errors=True)
    start, cpu_start = time.monotonic(), time.process_time()
    facts = train()
    facts["seconds"] = time.monotonic() - start
    facts["cpu_seconds"] = time.process_time() - cpu_start
    return facts


def _get_facts(task: Any, name: str) -> Facts:
    try:
        what = f"the record of {name}, which is trained"
        facts: Facts = get_within(_ANSWER_SECONDS, task, what=what)
    except RayError as error:
        raise brought_home(
            error,
            "training a laboratory model failed",
            EvaluationError,
            where=name,
            hint="run the same command again; finished models are kept",
        ) from error
    return facts


def _advance(
    bars: dict[str, ProgressBar], shown: dict[str, int], steps: dict[str, tuple[int, int]]
) -> None:
    for name, (num_done, total) in steps.items():
        bars[name].set_total(total)
        bars[name].advance(num_done - shown[name])
        shown[name] = num_done


def _facts_path(model: Path) -> Path:
    return model.parent / "facts" / f"{model.name}.json"


def _read_facts(model: Path) -> Facts | None:
    path = _facts_path(model)
    if not path.exists() or not model.is_dir():
        return None
    try:
        facts: Facts = parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError("not valid JSON", where=path, got=error) from error
    return facts


class _StepBoard:
    """Where training tasks write how far they are, and the driver reads it."""

    def __init__(self) -> None:
        self._steps: dict[str, tuple[int, int]] = {}

    def report(self, name: str, num_done: int, total: int) -> None:
        self._steps[name] = (num_done, total)

    def read(self) -> dict[str, tuple[int, int]]:
        return self._steps


@contextmanager
def _step_board() -> Iterator[Any]:
    board = ray.remote(num_cpus=0)(_StepBoard).remote()
    try:
        yield board
    finally:
        ray.kill(board)


def _train_one(
    train: Callable[[Path, OnStep], Facts], output: str, board: Any, waits_for: object
) -> Facts:
    """Train one model in a worker; `waits_for` is only there to order the tasks."""
    model = Path(output)
    partial = model.with_name(f".{model.name}.partial")
    last_report = 0.0

    def on_step(num_done: int, total: int) -> None:
        nonlocal last_report
        if num_done == total or time.monotonic() - last_report > _POLL_SECONDS:
            last_report = time.monotonic()
            board.report.remote(model.name, num_done, total)

    facts = train_into(partial, lambda: train(partial, on_step))
    # The facts say that a model is finished: gone before it is replaced, back after it.
    _facts_path(model).unlink(missing_ok=True)
    shutil.rmtree(model, ignore_errors=True)
    partial.rename(model)
    _facts_path(model).parent.mkdir(exist_ok=True)
    atomic_write_json(_facts_path(model), facts)
    return facts
