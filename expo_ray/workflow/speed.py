"""The load test of a run: the aligned and the chosen model by turns, so that noise meets both."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray

from expo_ray.checkpoints import atomic_write_json
from expo_ray.cluster import ray_session
from expo_ray.extrapolation import checkpoint_name
from expo_ray.extrapolation.planning.alpha import ALIGNED_ALPHA
from expo_ray.loadtests import Contender, LoadtestOptions, compare_targets, loadtest
from expo_ray.tables.prompts import write_prompts
from expo_ray.workflow.run_dir import read_json
from expo_ray.workflow.stages import Run


def tested_alpha(selection: Mapping[str, Any]) -> float | None:
    """Return the alpha whose speed is worth knowing, beside that of the aligned model.

    That is the chosen one; under keep-aligned the candidate that came nearest, None where no
    candidate could be measured.
    """
    kept = selection["verdict"] == "extrapolate"
    alpha = selection["best_alpha" if kept else "rejected_alpha"]
    return None if alpha is None else float(alpha)


def measure_throughput(run: Run, selection: Mapping[str, Any]) -> None:
    """Load-test the aligned and the chosen (or best rejected) model by turns at the same points.

    `loadtest/comparison.json` has the ratios with their intervals; the folder of each model the
    files of its middle round.
    """
    settings = run.recipe.loadtest
    if settings is None:
        return
    alpha = tested_alpha(selection)
    tested = {"aligned": ALIGNED_ALPHA} | ({} if alpha is None else {checkpoint_name(alpha): alpha})
    with run.stage("load test", done=run.directory.compared_file.exists()) as todo:
        if not todo:
            return
        if alpha is None:
            run.progress.message(
                "no candidate could be measured: the aligned model is tested alone"
            )
        write_prompts(run.directory.loadtest_prompts, run.prompts)
        shared: dict[str, Any] = {
            "prompts": str(run.directory.loadtest_prompts),
            "concurrency": settings.concurrency,
            "num_requests": settings.num_requests,
            "max_tokens": settings.max_tokens,
            "options": _loadtest_options(run, num_replicas=settings.num_replicas),
            "address": run.address,
            "progress": run.progress,
        }
        sides = {label: _contender(run, setting) for label, setting in tested.items()}
        if alpha is None:
            loadtest(sides["aligned"].target, output=run.directory.loadtest("aligned"), **shared)
        else:
            compare_targets(
                *sides.values(),
                output=run.directory.compared_file.parent,
                rounds=settings.rounds,
                together=_fits_twice(run, num_replicas=settings.num_replicas),
                **shared,
            )
            for side, label in zip(("baseline", "candidate"), sides, strict=True):
                _keep_middle_round(run.directory.loadtest(side), run.directory.loadtest(label))
        atomic_write_json(
            run.directory.compared_file,
            {
                "baseline": "aligned",
                "candidate": None if alpha is None else checkpoint_name(alpha),
                "candidate_rejected": alpha is not None and selection["verdict"] != "extrapolate",
            },
        )


def _contender(run: Run, alpha: float) -> Contender:
    source = run.source(alpha)
    return Contender(target=source.model, initial=source.initial, alpha=source.alpha)


def _fits_twice(run: Run, *, num_replicas: int) -> bool:
    """Say whether the cluster has room for both models at once, as it is now."""
    with ray_session(run.address):
        free, total = ray.available_resources(), ray.cluster_resources()
    per_replica = run.recipe.generators.options.num_workers
    kind, needed = ("GPU", per_replica) if total.get("GPU") else ("CPU", 1)
    return bool(free.get(kind, 0) >= 2 * num_replicas * needed)


def _keep_middle_round(rounds: Path, folder: Path) -> None:
    """Copy the files of the round of median throughput at the highest load."""

    def speed(one: Path) -> float:
        return float(read_json(one / "summary.json")["points"][-1]["request_throughput"] or 0)

    ranked = sorted(rounds.glob("round-*"), key=speed)
    shutil.copytree(ranked[len(ranked) // 2], folder, dirs_exist_ok=True)


def _loadtest_options(run: Run, *, num_replicas: int) -> LoadtestOptions:
    """Decode as the evaluation did, so that answers have the same lengths."""
    sampling = run.recipe.sampling.model_dump(
        mode="json", exclude={"max_tokens", "num_samples", "seed"}
    )
    return LoadtestOptions(
        extra_body=sampling,
        engine=run.recipe.generators.engine,
        engine_options=run.recipe.generators.options,
        num_replicas=num_replicas,
        seed=run.recipe.seed,
    )
