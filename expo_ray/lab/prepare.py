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
from functools import partial
from pathlib import Path

from expo_ray.checkpoints import atomic_write_json, atomic_write_text
from expo_ray.cluster import ray_session
from expo_ray.extras import require_extra
from expo_ray.lab.data import eval_prompts
from expo_ray.lab.result import LabResult, find_lab, lab_paths
from expo_ray.lab.settings import CODE_VERSION, LabSettings
from expo_ray.lab.steps import Facts, OnStep, Step, only_one, train_missing
from expo_ray.progress import NullProgress, Progress


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
        EvaluationError: A training failed; what is finished is kept for the next call.
    """
    cache = Path(cache).absolute()  # workers are called elsewhere
    finished = find_lab(cache, settings)
    if finished is not None:
        return finished
    require_extra("lab", where="lab")
    result = lab_paths(cache, settings)
    result.folder.mkdir(parents=True, exist_ok=True)
    progress = progress or NullProgress()
    with only_one(result.folder, progress):
        return find_lab(cache, settings) or _prepare(settings, result, address, progress)


def _prepare(
    settings: LabSettings, result: LabResult, address: str | None, progress: Progress
) -> LabResult:
    with ray_session(address):
        facts = train_missing(_steps(settings, result), progress)
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


def _steps(settings: LabSettings, result: LabResult) -> list[Step]:
    def step(model: Path, after: Path | None = None) -> Step:
        return Step(model=model, train=partial(_train, settings, model), after=after)

    aligned = step(result.aligned, result.initial)
    guard = result.guard_reward_model
    first = [step(result.initial), step(result.reward_model)]
    if guard is None:
        return [*first, aligned]
    if settings.num_on_policy_pairs:
        return [*first, aligned, step(guard, result.aligned)]
    # Before aligned, which has to wait for initial and is short.
    return [*first, step(guard), aligned]


def _train(settings: LabSettings, model: Path, output: Path, on_step: OnStep) -> Facts:
    from expo_ray.lab import on_policy, training

    initial, aligned = model.with_name("initial"), model.with_name("aligned")
    match model.name:
        case "initial":
            return training.train_initial(settings, output, on_step=on_step)
        case "aligned":
            return training.train_aligned(settings, initial, output, on_step=on_step)
        case "reward-model":
            return training.train_reward_model(settings, "reward_model", output, on_step=on_step)
        case _:
            pairs = on_policy.draw_on_policy_pairs(settings, initial, aligned)
            return training.train_reward_model(
                settings, "guard_reward_model", output, on_step=on_step, on_policy_pairs=pairs
            )
