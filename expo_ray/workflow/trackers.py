"""Experiment trackers: how each of them is told of a finished run.

A tracker runs in a process of its own (see `tracking`), so that its threads, its output and its
waiting are no part of the run. To add one, write its function and its record in `TRACKERS`, and
name its extra in `expo_ray/extras.py`.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Protocol

EXPERIMENT = "expo-ray"
"""Experiment or project of runs, where the environment names none."""

TrackerName = Literal["mlflow", "wandb"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """Figures along an axis."""

    axis: str
    """The figure that is the axis: `alpha`, `concurrency`."""
    rows: Sequence[Mapping[str, float]]
    """The figures at each point, that of the axis among them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What a tracker is told of a run; nothing in it is secret."""

    name: str
    params: Mapping[str, str]
    """What was asked for: dotted keys of the recipe."""
    tags: Mapping[str, str]
    """Verdict, digests, inputs, versions."""
    metrics: Mapping[str, float]
    series: Mapping[str, Series]
    texts: Mapping[str, str]
    """Files to keep, by name."""


class Tracker(Protocol):
    """A function that logs a run."""

    def __call__(
        self, facts: Facts, run_id: str | None, keep_id: Callable[[str], object], /
    ) -> None:
        """Log a run, or log it again.

        Args:
            facts: What is logged.
            run_id: The tracker's own run that an earlier call made for this one; None at first.
            keep_id: To be called with the id of the tracker's run as soon as it is known.
        """


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackerKind:
    """One tracker."""

    title: str
    log: Tracker
    target: str
    """Variable of the environment that says where runs go, which the tracker reads itself."""
    default: str
    """Where they go without it."""


def log_to_mlflow(facts: Facts, run_id: str | None, keep_id: Callable[[str], object], /) -> None:
    """Log to the MLflow that `MLFLOW_TRACKING_URI` names; see `Tracker`."""
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param, RunTag
    from mlflow.exceptions import MlflowException

    client = MlflowClient()
    run = None
    if run_id is not None:
        try:
            run = client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
    if run is None:
        experiment = os.environ.get("MLFLOW_EXPERIMENT_ID")
        if experiment is None:
            wanted = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
            found = client.get_experiment_by_name(wanted)
            experiment = found.experiment_id if found else client.create_experiment(wanted)
        run = client.create_run(experiment, run_name=facts.name)
    run_id = run.info.run_id
    keep_id(run_id)
    # A parameter cannot be set twice, and a resumed run may be served by other replicas.
    new = {key: value for key, value in facts.params.items() if key not in run.data.params}
    now = round(time.time() * 1000)
    metrics = [Metric(key, value, now, 0) for key, value in facts.metrics.items()]
    metrics += [
        Metric(f"{name}/{key}", value, now, step)
        for name, series in facts.series.items()
        for step, row in enumerate(series.rows)
        for key, value in row.items()
    ]
    tags = [RunTag(key, value) for key, value in facts.tags.items()]
    # So many at a time are taken.
    for start in range(0, max(len(metrics), len(new), len(tags)), 100):
        part = slice(start, start + 100)
        client.log_batch(
            run_id,
            metrics=metrics[part],
            params=[Param(key, value) for key, value in list(new.items())[part]],
            tags=tags[part],
        )
    for name, text in facts.texts.items():
        client.log_text(run_id, text, name)
    client.set_terminated(run_id)


def log_to_wandb(facts: Facts, run_id: str | None, keep_id: Callable[[str], object], /) -> None:
    """Log to Weights & Biases, as `WANDB_*` and `wandb login` set it up; see `Tracker`."""
    import wandb

    run_id = run_id or uuid.uuid4().hex[:8]
    keep_id(run_id)
    # It would add facts of this process, which are none of the run's: its output, its machine.
    settings = wandb.Settings(
        console="off",
        silent=True,
        disable_git=True,
        x_disable_meta=True,
        x_disable_stats=True,
        x_disable_machine_info=True,
    )
    with (
        tempfile.TemporaryDirectory() as folder,
        wandb.init(
            project=os.environ.get("WANDB_PROJECT", EXPERIMENT),
            id=run_id,
            name=facts.name,
            resume="allow",
            config={**facts.params, **facts.tags},
            settings=settings,
        ) as run,
    ):
        for name, series in facts.series.items():
            run.define_metric(f"{name}/*", step_metric=f"{name}/{series.axis}")
            for row in series.rows:
                run.log({f"{name}/{key}": value for key, value in row.items()})
        run.summary.update(dict(facts.metrics))
        artifact = wandb.Artifact(f"run-{run_id}", type="report")
        for name, text in facts.texts.items():
            (Path(folder) / name).write_text(text, encoding="utf-8")
        artifact.add_dir(folder)
        run.log_artifact(artifact)


TRACKERS: Final[Mapping[TrackerName, TrackerKind]] = {
    "mlflow": TrackerKind(
        title="MLflow",
        log=log_to_mlflow,
        target="MLFLOW_TRACKING_URI",
        default="a database in this folder, mlflow.db",
    ),
    "wandb": TrackerKind(
        title="Weights & Biases",
        log=log_to_wandb,
        target="WANDB_BASE_URL",
        default="wandb.ai, or the folder wandb under WANDB_MODE=offline",
    ),
}


def main() -> None:
    """Log the run that stands on stdin by the tracker that is named; says the id on stdout."""
    kind = TRACKERS[sys.argv[1]]  # type: ignore[index]
    # Trackers greet on stdout.
    answer = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    told = json.load(sys.stdin)
    series = {name: Series(**one) for name, one in told["facts"].pop("series").items()}
    facts = Facts(**told["facts"], series=series)
    try:
        kind.log(facts, told["run_id"], lambda run_id: answer.write(run_id.encode()))
    except Exception as error:  # noqa: BLE001  (whatever a tracker raises is told in one line)
        text = " ".join(str(error).split())
        sys.exit(f"{type(error).__name__}: {text}")
