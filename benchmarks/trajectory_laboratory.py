"""A DPO training of the laboratory, judged at its half: does the rest of it agree?

    python -m benchmarks.trajectory_laboratory [--write] [--seeds N ...]

Each seed trains an initial model, then DPO on all preference data with 20 checkpoints, once with
the laboratory's cosine schedule and once with a constant rate. The first half of the checkpoints is
judged; the verdict's promise is compared with the rest of the run, in weights, and in the hidden
truth of the answers of the last checkpoint known, of its forecast of the last step, and of the last
checkpoint itself. Where the verdict is to keep, the forecast is that of `rank1 from last`.

Needs: two CPU cores. Takes: about two minutes a seed.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from expo_ray.extrapolation import extrapolate_trajectory
from expo_ray.extrapolation.arithmetic.path_sums import PathSums
from expo_ray.extrapolation.trajectories.backtest import back_tests, forecast_errors
from expo_ray.extrapolation.trajectories.forecasts import FORECAST_KINDS, Forecast
from expo_ray.extrapolation.trajectories.gram import measure_path_sums
from expo_ray.extrapolation.trajectories.path_shape import (
    path_shape,
    squared_distance,
    total_of,
)
from expo_ray.extrapolation.trajectories.trajectory import open_trajectory
from expo_ray.extrapolation.trajectories.verdict import Verdict, judge
from expo_ray.lab.settings import LabSettings
from expo_ray.lab.training import measure_truth, train_aligned, train_initial

RESULT = Path(__file__).resolve().parent / "results" / "trajectory_laboratory.md"
NUM_CHECKPOINTS = 20
SCHEDULES = ("cosine", "constant_with_warmup")
IN_DOUBT = next(kind for kind in FORECAST_KINDS if kind.name == "rank1 from last")
SMALL: Mapping[str, Any] = {"num_sft_examples": 6000, "preference_fraction": 1.0}


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One training."""

    seed: int
    schedule: str
    straightness: float
    r2_line: float
    verdict: Verdict
    errors: Mapping[str, float]
    """By forecast, at the last step, relative to the last checkpoint known."""
    truths: tuple[float, float, float]
    """Of the last checkpoint known, of the forecast of the last step, of the last checkpoint."""


def saved(settings: LabSettings, initial: Path, folder: Path, schedule: str) -> Path:
    """Train with checkpoints on the way; the model it starts from is step 0, in float32 too."""
    num_steps = settings.num_dpo_pairs // settings.dpo_batch_size
    training = folder / schedule
    options = {
        "output_dir": str(training),
        "save_strategy": "steps",
        "save_steps": max(1, num_steps // NUM_CHECKPOINTS),
        "save_only_model": True,
        "lr_scheduler_type": schedule,
    }
    train_aligned(
        settings, initial, folder / f"{schedule}-last", on_step=lambda *_: None, options=options
    )
    first = training / "checkpoint-0"
    AutoModelForCausalLM.from_pretrained(initial, dtype=torch.float32).save_pretrained(first)
    AutoTokenizer.from_pretrained(initial).save_pretrained(first)
    return training


def judged(settings: LabSettings, training: Path, schedule: str, folder: Path) -> Row:
    """Judge the first half of a training and compare with the rest."""
    opened = open_trajectory(training)
    steps = opened.steps
    num_known = (len(steps) + 1) // 2
    sums = measure_path_sums(opened, address="inline")
    total = total_of(sums.values())
    assert total is not None
    early = {name: first_part(one, num_known) for name, one in sums.items()}
    verdict = judge(back_tests(early, steps[:num_known]), steps[:num_known])
    last = len(steps) - 1
    still = squared_distance(total, num_known - 1, last)
    errors = {
        kind.name: float(
            np.sqrt(forecast_errors(kind, sums, total, steps, num_known, [last])[0][0] / still)
        )
        for kind in FORECAST_KINDS
    }
    shape = path_shape(total, steps)
    forecast = verdict.forecast or IN_DOUBT
    known = [p.model_dump() for p in opened.points[:num_known]]
    ahead = folder / f"{schedule}-forecast"
    write_forecast(forecast, known, steps[last], ahead)
    places = (known[-1]["checkpoint"], ahead, opened.points[-1].checkpoint)
    truths = [measure_truth(settings, Path(place))["mean_truth"] for place in places]
    return Row(
        seed=settings.seed,
        schedule=schedule,
        straightness=shape.straightness or 0.0,
        r2_line=shape.r2_line or 0.0,
        verdict=verdict,
        errors=errors,
        truths=(truths[0], truths[1], truths[2]),
    )


def first_part(sums: PathSums, num_known: int) -> PathSums:
    """Return the sums over the first checkpoints."""
    found = PathSums(num_known)
    found.num_elements = sums.num_elements
    found.gram = sums.gram[:num_known, :num_known].copy()
    found.rounding = sums.rounding[:num_known].copy()
    found.num_moved = sums.num_moved[: num_known - 1].copy()
    return found


def write_forecast(forecast: Forecast, known: list[dict[str, Any]], step: float, out: Path) -> None:
    """Write the forecast of a step; averages without a time axis as they are."""
    points = [known[0], known[-1]] if forecast.takes_two else known
    at = {} if forecast.is_average else {"at_step": step}
    extrapolate_trajectory(
        points, out, fit=forecast.fit.value, start=forecast.start.value, address="inline", **at
    )


def line_of(row: Row) -> str:
    """Return a row of the table."""
    forecast = row.verdict.forecast
    promise = "keep" if forecast is None else f"{forecast.name}, {row.verdict.horizon:g} times"
    name = (forecast or IN_DOUBT).name
    best = min(row.errors, key=lambda one: row.errors[one])
    known, ahead, last = row.truths
    return (
        f"| {row.seed} | {row.schedule.split('_')[0]} | {row.straightness:.2f} | "
        f"{row.r2_line:.2f} | {promise} | {name}: {row.errors[name]:.2f} | "
        f"{best}: {row.errors[best]:.2f} | {row.errors['pair']:.2f} | "
        f"{known:.2f} / {ahead:.2f} / {last:.2f} |"
    )


HEADING = """# A DPO training of the laboratory, judged at its half

Written by `python -m benchmarks.trajectory_laboratory --write`. Errors are distances in weights from \
the last checkpoint, relative to that of the checkpoint at half time (below 1: nearer). Truth: hidden \
score of 300 answers of the checkpoint at half time / of the forecast / of the last checkpoint.

| seed | rate | straightness | R^2 | verdict at half time | its forecast | best in hindsight | pair | truth |
|---|---|---|---|---|---|---|---|---|
"""  # noqa: E501


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.name}")
    parser.add_argument("--seeds", type=int, nargs="+", default=[2, 3, 4], help="of the trainings")
    given = parser.parse_args()
    torch.set_num_threads(1)
    lines = []
    for seed in given.seeds:
        settings = LabSettings(seed=seed, **SMALL)
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            train_initial(settings, folder / "initial", on_step=lambda *_: None)
            for schedule in SCHEDULES:
                training = saved(settings, folder / "initial", folder, schedule)
                lines.append(line_of(judged(settings, training, schedule, folder)))
                print(lines[-1], flush=True)
                if given.write:
                    RESULT.write_text(HEADING + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
