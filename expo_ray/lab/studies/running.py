"""Running a study: one Ray task makes a model or measures a pair, each once for all studies.

Models lie in `CACHE/models/NAME`, curves in `CACHE/curves/NAME`, both named by all that they are
made from; a finished model is renamed into place. On a cluster the cache must be shared by all
nodes. A study that was stopped goes on where it was.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from expo_ray.checkpoints import atomic_write_json
from expo_ray.checkpoints.storages.folder_lock import owned_lock
from expo_ray.cluster import cancel_unfinished, get_within, ray_session
from expo_ray.errors import ConfigError, EvaluationError, argument
from expo_ray.extras import require_extra
from expo_ray.lab.settings import LabSettings
from expo_ray.lab.steps import train_into
from expo_ray.lab.studies.study import Arm, Model, Study, StudySettings, digest_of
from expo_ray.progress import NullProgress, Progress
from expo_ray.remote_errors import brought_home

_ANSWER_SECONDS = 60.0
_POLL_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One setting with one seed."""

    arm: Arm
    seed: int
    lab: LabSettings
    cache: Path

    @property
    def initial(self) -> Path:
        """Where its initial model lies."""
        return model_folder(self.cache, self.arm.initial, self.lab)

    @property
    def aligned(self) -> Path:
        """Where its aligned model lies."""
        return model_folder(self.cache, self.arm.aligned, self.lab)

    @property
    def asked(self) -> LabSettings:
        """The laboratory whose prompts it answers: that of its task, where it was trained."""
        return self.arm.aligned.settings_in(self.lab)

    @property
    def curve(self) -> Path:
        """Where its measurements lie."""
        names = [model.digest(self.lab) for model in (self.arm.initial, self.arm.aligned)]
        return self.cache / "curves" / digest_of({"pair": names, "asked": self.asked.task})


def model_folder(cache: Path, model: Model, lab: LabSettings) -> Path:
    """Return where a model lies, whether or not it exists."""
    return cache / "models" / model.digest(lab)


def cells_of(study: Study, settings: StudySettings) -> list[Cell]:
    """Return all cells, a whole seed after the other."""
    return [
        Cell(arm=arm, seed=seed, lab=settings.lab(seed), cache=Path(settings.cache).absolute())
        for seed in settings.seeds
        for arm in study.arms
    ]


def run_study(
    study: Study,
    settings: StudySettings,
    *,
    address: str | None = None,
    progress: Progress | None = None,
) -> list[Cell]:
    """Make every model of a study and measure every pair, as far as that is not done yet.

    Args:
        study: A record of `records.STUDIES`.
        settings: Seeds, sizes and where the cache is.
        address: Ray cluster; None means `RAY_ADDRESS`, else a local Ray.
        progress: Counts models and pairs.

    Returns:
        The cells, all measured: `curves.read_curve` reads one.

    Raises:
        MissingExtraError: TRL, or what it is used with, is not installed.
        ConfigError: mergekit is needed and is not there.
        EvaluationError: A task failed; what is finished is kept for the next call.
    """
    require_extra("lab", where="lab")
    cells = cells_of(study, settings)
    mergekit = _find_mergekit(cells, settings)
    with ray_session(address):
        _run_tasks(cells, study.alphas, mergekit, progress or NullProgress())
    return cells


def _find_mergekit(cells: Sequence[Cell], settings: StudySettings) -> str:
    """Return mergekit's command by its whole path; before any work, where a merge needs it."""
    found = shutil.which(settings.mergekit)
    merges = any(m.kind == "merge" for cell in cells for m in models_of(cell.arm))
    if merges and found is None:
        raise ConfigError(
            "the merging baselines need mergekit's command",
            where=argument("mergekit"),
            got=settings.mergekit,
            expected="the path of mergekit-yaml",
            hint="`python -m venv .venv-mergekit && .venv-mergekit/bin/pip install "
            "mergekit==0.1.5`, then name .venv-mergekit/bin/mergekit-yaml",
        )
    return found or settings.mergekit


def models_of(arm: Arm) -> Iterator[Model]:
    """Yield all models that an arm is made of, parents first; a model may come several times."""
    stack = [arm.initial, arm.aligned]
    for model in stack:
        stack += model.parents
    yield from reversed(stack)


def _run_tasks(
    cells: Sequence[Cell], alphas: Sequence[float], mergekit: str, progress: Progress
) -> None:
    make = ray.remote(num_cpus=1, max_retries=2)(_make_one)
    measure = ray.remote(num_cpus=1, max_retries=2)(_measure_one)
    made: dict[Path, Any] = {}
    names: dict[Any, str] = {}
    for cell in cells:
        for model in models_of(cell.arm):
            folder = model_folder(cell.cache, model, cell.lab)
            if folder in made:
                continue
            parents = [model_folder(cell.cache, one, cell.lab) for one in model.parents]
            waits = [made[parent] for parent in parents]
            made[folder] = task = make.remote(model, cell.lab, folder, parents, mergekit, *waits)
            names[task] = f"{model.kind} of seed {cell.seed} for {cell.arm.name}"
        waits = [made[cell.initial], made[cell.aligned]]
        task = measure.remote(cell, alphas, *waits)
        names[task] = f"{cell.arm.name}, seed {cell.seed}"
    with ExitStack() as stack:
        # After a failure nothing goes on writing unseen.
        stack.callback(cancel_unfinished, list(names), force=True)
        bar = progress.start("Models and curves", total=len(names), unit="tasks")
        stack.callback(bar.close)
        pending = list(names)
        while pending:
            ready, pending = ray.wait(pending, num_returns=1, timeout=_POLL_SECONDS)
            for task in ready:
                _require_done(task, names[task])
                bar.advance()


def _require_done(task: Any, name: str) -> None:
    try:
        get_within(_ANSWER_SECONDS, task, what=f"the end of {name}")
    except RayError as error:
        raise brought_home(
            error,
            "a task of the study failed",
            EvaluationError,
            where=name,
            hint="run the same command again; finished models and curves are kept",
        ) from error


def _make_one(
    model: Model, lab: LabSettings, folder: Path, parents: list[Path], mergekit: str, *_: object
) -> None:
    """Make one model in a worker, unless it is there; the last arguments only order the tasks."""
    with owned_lock(folder.with_suffix(".lock"), wait=True):
        if folder.exists():
            return
        from expo_ray.lab.studies.making import make_model

        partial = folder.with_suffix(".partial")
        how: dict[str, Any] = {"on_step": lambda *_: None, "mergekit": mergekit}
        facts = train_into(partial, lambda: make_model(model, lab, parents, partial, **how))
        atomic_write_json(partial / "training.json", facts)
        partial.rename(folder)


def _measure_one(cell: Cell, alphas: Sequence[float], *_: object) -> None:
    """Measure one pair in a worker; the last arguments only order the tasks."""
    import torch

    from expo_ray.lab.studies.curves import measure_curve

    torch.set_num_threads(1)
    with owned_lock(cell.curve.with_suffix(".lock"), wait=True):
        measure_curve(cell.initial, cell.aligned, cell.asked, alphas, cell.curve)
