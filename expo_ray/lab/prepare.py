"""Preparing a laboratory: every model is trained in its own Ray task, once per settings.

    initial --> aligned
    reward-model, guard-reward-model        (need nothing from the others, but the guard waits for
                                             aligned where it is trained on answers of the pair)

A finished model is renamed into place and never trained again; `lab.json`, written last, marks
the laboratory as complete. On a cluster the cache folder must be shared by all nodes. Processes
that want the same laboratory at once take turns: the second finds it finished.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from expo_ray.checkpoints import atomic_write_json, atomic_write_text
from expo_ray.checkpoints.storages.folder_lock import owned_lock
from expo_ray.cluster import cancel_unfinished, get_within, ray_session
from expo_ray.errors import ConfigError, EvaluationError
from expo_ray.extras import require_extra
from expo_ray.json_text import parse_json
from expo_ray.lab.data import eval_prompts
from expo_ray.lab.result import LabResult, find_lab, lab_paths
from expo_ray.lab.settings import CODE_VERSION, LabSettings
from expo_ray.progress import NullProgress, Progress, ProgressBar
from expo_ray.remote_errors import brought_home

_POLL_SECONDS = 0.5
_ANSWER_SECONDS = 60.0

Facts = dict[str, Any]


def prepare_lab(
    cache: str | Path,
    settings: LabSettings,
    *,
    address: str | None = None,
    progress: Progress | None = None,
) -> LabResult:
    """Train the laboratory of these settings, or return the finished one.

    Args:
        cache: Folder of laboratories; each lies in a folder named after its settings.
        settings: What to train.
        address: Ray cluster; None means `RAY_ADDRESS`, else a local Ray.
        progress: Shows the training steps of every model.

    Returns:
        Where everything lies.

    Raises:
        MissingExtraError: TRL, or what it is used with, is not installed.
        EvaluationError: A training task failed; what is finished is kept for the next call.
    """
    finished = find_lab(cache, settings)
    if finished is not None:
        return finished
    require_extra("lab", where="lab")
    result = lab_paths(cache, settings)
    result.folder.mkdir(parents=True, exist_ok=True)
    progress = progress or NullProgress()
    with _only_one(result.folder, progress):
        return find_lab(cache, settings) or _prepare(settings, result, address, progress)


@contextmanager
def _only_one(folder: Path, progress: Progress) -> Iterator[None]:
    """Wait until no other process prepares the same laboratory."""
    path = folder / ".lock"
    with ExitStack() as stack:
        try:
            stack.enter_context(owned_lock(path))
        except BlockingIOError:
            progress.message(f"another process prepares {folder}; waiting for it")
            stack.enter_context(owned_lock(path, wait=True))
        yield


def _prepare(
    settings: LabSettings, result: LabResult, address: str | None, progress: Progress
) -> LabResult:
    with ray_session(address):
        facts = _train_missing(settings, result, progress)
    rows = ({"prompt_id": f"{i:04d}", **row} for i, row in enumerate(eval_prompts(settings)))
    atomic_write_text(result.prompts, "".join(json.dumps(row) + "\n" for row in rows))
    record = {
        "schema_version": 1,
        "code_version": CODE_VERSION,
        "settings": settings.model_dump(mode="json"),
        "models": facts,
    }
    atomic_write_json(result.record, record)
    return result


def _train_missing(
    settings: LabSettings, result: LabResult, progress: Progress
) -> dict[str, Facts]:
    """Train what is not there yet and return the facts of all models."""
    models = [result.initial, result.reward_model, result.aligned]
    guard = result.guard_reward_model
    waits_for = {result.aligned: result.initial}
    if guard is not None and settings.num_on_policy_pairs:
        models.append(guard)
        waits_for[guard] = result.aligned
    elif guard is not None:
        # Before aligned, which has to wait for initial and is short.
        models.insert(2, guard)
    facts = {model.name: _read_facts(model) for model in models}
    for model in waits_for:
        if facts[waits_for[model].name] is None:
            facts[model.name] = None  # It continues from the weights to come.
    wanted = [model for model in models if facts[model.name] is None]
    train = ray.remote(num_cpus=1, max_retries=2)(_train_one)
    with _step_board() as board, ExitStack() as stack:
        names: dict[Any, str] = {}
        bars: dict[str, ProgressBar] = {}
        tasks: dict[Path, Any] = {}
        for model in wanted:
            bars[model.name] = progress.start(f"Training {model.name}", unit="steps")
            stack.callback(bars[model.name].close)
            earlier = tasks.get(waits_for.get(model, model))
            task = tasks[model] = train.remote(settings, str(model), board, earlier)
            names[task] = model.name
            # After a failure nothing goes on writing unseen.
            stack.callback(cancel_unfinished, [task], force=True)
        shown = dict.fromkeys(bars, 0)
        pending = list(names)
        while pending:
            ready, pending = ray.wait(pending, num_returns=1, timeout=_POLL_SECONDS)
            steps = get_within(_ANSWER_SECONDS, board.read.remote(), what="steps of the training")
            _advance(bars, shown, steps)
            for task in ready:
                facts[names[task]] = _get_facts(task, names[task])
                bars[names[task]].close()
    return {name: found for name, found in facts.items() if found is not None}


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


def _train_one(settings: LabSettings, output: str, board: Any, waits_for: object) -> Facts:
    """Train one model in a worker; `waits_for` is only there to order the tasks."""
    import torch

    from expo_ray.lab import on_policy, training

    # One thread: the task asked for one CPU, and the order of sums must not hang on the machine.
    torch.set_num_threads(1)
    model = Path(output)
    partial = model.with_name(f".{model.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    last_report = 0.0

    def on_step(num_done: int, total: int) -> None:
        nonlocal last_report
        if num_done == total or time.monotonic() - last_report > _POLL_SECONDS:
            last_report = time.monotonic()
            board.report.remote(model.name, num_done, total)

    start, cpu_start = time.monotonic(), time.process_time()
    match model.name:
        case "initial":
            facts = training.train_initial(settings, partial, on_step=on_step)
        case "aligned":
            initial = model.with_name("initial")
            facts = training.train_aligned(settings, initial, partial, on_step=on_step)
        case "reward-model":
            facts = training.train_reward_model(settings, "reward_model", partial, on_step=on_step)
        case _:
            pairs = on_policy.draw_on_policy_pairs(
                settings, model.with_name("initial"), model.with_name("aligned")
            )
            facts = training.train_reward_model(
                settings, "guard_reward_model", partial, on_step=on_step, on_policy_pairs=pairs
            )
    facts["seconds"] = time.monotonic() - start
    facts["cpu_seconds"] = time.process_time() - cpu_start
    # The facts say that a model is finished: gone before it is replaced, back after it.
    _facts_path(model).unlink(missing_ok=True)
    shutil.rmtree(model, ignore_errors=True)
    partial.rename(model)
    _facts_path(model).parent.mkdir(exist_ok=True)
    atomic_write_json(_facts_path(model), facts)
    return facts
