"""Preparing a laboratory: every model is trained in its own Ray task, once per settings.

    initial --> aligned
    reward-model, guard-reward-model        (need nothing from the others)

A finished model is renamed into place and never trained again; `lab.json`, written last, marks
the laboratory as complete.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from expo_ray.checkpoints import atomic_write_json, atomic_write_text
from expo_ray.cluster import ray_session
from expo_ray.errors import EvaluationError, MissingExtraError
from expo_ray.lab.settings import CODE_VERSION, LabSettings
from expo_ray.progress import NullProgress, Progress, ProgressBar

INITIAL, ALIGNED = "initial", "aligned"
REWARD, GUARD = "reward-model", "guard-reward-model"
_RECORD = "lab.json"
_POLL_SECONDS = 0.5

Facts = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class LabResult:
    """Where the files of a finished laboratory lie."""

    folder: Path
    initial: Path
    aligned: Path
    reward_model: Path
    guard_reward_model: Path | None
    prompts: Path
    """JSONL of the held-out evaluation prompts."""

    @property
    def record(self) -> Path:
        """Settings and training facts, JSON."""
        return self.folder / _RECORD


def find_lab(cache: str | Path, settings: LabSettings) -> LabResult | None:
    """Return the finished laboratory of these settings; None where it must be trained."""
    result = _result(Path(cache), settings)
    return result if result.record.exists() else None


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

    Raises:
        MissingExtraError: TRL is not installed.
        EvaluationError: A training task failed.
    """
    result = _result(Path(cache), settings)
    if result.record.exists():
        return result
    missing = [name for name in ("trl", "datasets", "accelerate") if not _installed(name)]
    if missing:
        raise MissingExtraError(
            "training the laboratory needs optional packages",
            where="lab",
            got=f"{', '.join(missing)} not installed",
            hint="pip install -c constraints.txt 'expo-ray[lab]'",
        )
    result.folder.mkdir(parents=True, exist_ok=True)
    with ray_session(address):
        facts = _train_all(settings, result, progress or NullProgress())
    from expo_ray.lab.training import eval_prompts

    prompts = enumerate(eval_prompts(settings))
    lines = [json.dumps({"prompt_id": f"{n:04d}", "prompt": text}) for n, text in prompts]
    atomic_write_text(result.prompts, "\n".join(lines) + "\n")
    record = {
        "schema_version": 1,
        "code_version": CODE_VERSION,
        "settings": settings.model_dump(mode="json"),
        "models": facts,
    }
    atomic_write_json(result.record, record)
    return result


def _result(cache: Path, settings: LabSettings) -> LabResult:
    folder = cache / settings.digest()[:16]
    return LabResult(
        folder=folder,
        initial=folder / INITIAL,
        aligned=folder / ALIGNED,
        reward_model=folder / REWARD,
        guard_reward_model=folder / GUARD if settings.guard_reward_model else None,
        prompts=folder / "prompts.jsonl",
    )


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _train_all(settings: LabSettings, result: LabResult, progress: Progress) -> dict[str, Facts]:
    board = _StepBoard.remote()
    names = [INITIAL, REWARD, *([GUARD] if settings.guard_reward_model else []), ALIGNED]
    done = {name: _read_facts(result.folder, name) for name in names}
    # The aligned model waits for the initial one; the others start as soon as a CPU is free.
    initial_task = None
    tasks: dict[Any, str] = {}
    for name in names:
        if done[name] is None:
            waits_for = initial_task if name == ALIGNED else None
            task = _train_one.remote(name, settings, str(result.folder), board, waits_for)
            initial_task = task if name == INITIAL else initial_task
            tasks[task] = name
    bars = {name: progress.start(f"Training {name}", unit="steps") for name in tasks.values()}
    shown = dict.fromkeys(bars, 0)
    pending = list(tasks)
    while pending:
        ready, pending = ray.wait(pending, num_returns=1, timeout=_POLL_SECONDS)
        _advance(bars, shown, ray.get(board.read.remote()))
        for task in ready:
            done[tasks[task]] = _get(task, tasks[task])
            bars[tasks[task]].close()
    ray.kill(board)
    return {name: facts for name, facts in done.items() if facts is not None}


def _get(task: Any, name: str) -> Facts:
    try:
        facts: Facts = ray.get(task)
    except ray.exceptions.RayError as error:
        raise EvaluationError(
            "training a laboratory model failed",
            where=name,
            got=str(error)[-800:],
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


def _read_facts(folder: Path, name: str) -> Facts | None:
    path = folder / "facts" / f"{name}.json"
    if not path.exists() or not (folder / name).is_dir():
        return None
    facts: Facts = json.loads(path.read_text(encoding="utf-8"))
    return facts


@ray.remote(num_cpus=0)
class _StepBoard:
    """Where training tasks write how far they are, and the driver reads it."""

    def __init__(self) -> None:
        self._steps: dict[str, tuple[int, int]] = {}

    def report(self, name: str, num_done: int, total: int) -> None:
        self._steps[name] = (num_done, total)

    def read(self) -> dict[str, tuple[int, int]]:
        return self._steps


@ray.remote(num_cpus=1, max_retries=2)
def _train_one(
    name: str, settings: LabSettings, folder: str, board: Any, waits_for: object
) -> Facts:
    """Train one model in a worker; `waits_for` is only there to order the tasks."""
    import torch

    from expo_ray.lab import training

    torch.set_num_threads(1)
    root = Path(folder)
    partial = root / f".{name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    on_step = _throttled(lambda done, total: board.report.remote(name, done, total))
    start = time.monotonic()
    if name == INITIAL:
        facts = training.train_initial(settings, partial, on_step=on_step)
    elif name == ALIGNED:
        facts = training.train_aligned(settings, root / INITIAL, partial, on_step=on_step)
    elif name == REWARD:
        facts = training.train_reward_model(settings, "reward_model", partial, on_step=on_step)
    else:
        facts = training.train_reward_model(
            settings, "guard_reward_model", partial, on_step=on_step
        )
    facts = {**facts, "seconds": round(time.monotonic() - start, 2)}
    shutil.rmtree(root / name, ignore_errors=True)
    partial.rename(root / name)
    (root / "facts").mkdir(exist_ok=True)
    atomic_write_json(root / "facts" / f"{name}.json", facts)
    return facts


def _throttled(report: Callable[[int, int], None]) -> Callable[[int, int], None]:
    last = 0.0

    def on_step(num_done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last > _POLL_SECONDS or num_done == total:
            last = now
            report(num_done, total)

    return on_step
