"""`select` over target steps of half a training in the laboratory, beside its hidden truth.

    python -m benchmarks.trajectory_selection [--write] [--seeds N ...] [--trainings NAME ...]

The first half of a training by DPO or GRPO is known. Its back-test says which fit goes on from the
last checkpoint; candidates are 1.25, 1.5 and 2 times the steps known, chosen by a reward model that
saw other prompts, under the usual guards. The hidden truth of the same answers, which the choice
never sees, says whether it was right; the last candidate forecasts the end of the training.

Needs: two CPU cores. Takes: three minutes for each training.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.trajectory_laboratory import (
    SMALL,
    TRAININGS,
    Answers,
    BranchSettings,
    Path1,
    first_seed,
    initial_model,
    known_steps,
)
from expo_ray.extrapolation.trajectories.backtest import back_tests
from expo_ray.extrapolation.trajectories.verdict import judge
from expo_ray.lab.data import eval_prompts
from expo_ray.lab.settings import LabSettings
from expo_ray.lab.training import train_reward_model
from expo_ray.tables import read_table
from expo_ray.workflow.run import select

RESULT = Path(__file__).resolve().parent / "results" / "trajectory_selection.md"
CONSTANT = ("dpo, constant rate", "grpo, constant rate")
SHARE = 0.5
HORIZONS = (1.25, 1.5, 2.0)
HEADING = """# Target steps of a forecast, chosen by `select`

Written by `python -m benchmarks.trajectory_selection --write`: trainings with a constant rate, the
first half of their checkpoints known. Truth is the hidden score of the answers that the choice was
made from, at the end of the training of answers to 60 of the same prompts.

| training | seed | fit | verdict | chosen: times the steps | reward gain, held out | truth: last known | chosen | best candidate | end of the training | why |
|---|---|---|---|---|---|---|---|---|---|---|
"""  # noqa: E501


def reward_model(seed: int, folder: Path) -> Path:
    """Return the reward model beside an initial model, trained once."""
    place = folder / f"reward-{seed}"
    if not place.exists():
        partial, settings = folder / f".reward-{seed}", LabSettings(seed=seed, **SMALL)
        train_reward_model(settings, "reward_model", partial, on_step=lambda *_: None)
        partial.rename(place)
    return place


def chosen(name: str, seed: int, folder: Path) -> str:
    """Train, choose on the first half, and return a row of the table."""
    first = first_seed(seed)
    initial, reward = initial_model(first, folder), reward_model(first, folder)
    settings = BranchSettings(seed=seed, initial_seed=first, **SMALL)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        training = Path(scratch) / "training"
        TRAININGS[name](settings, initial, training)
        path = Path1(initial, training)
        num_known = known_steps(path.steps, SHARE)
        known = path.steps[:num_known]
        verdict = judge(back_tests(path.sums(num_known), known), known)
        fit = "line" if verdict.forecast is None else verdict.forecast.fit.value
        places = [initial, *(training / f"checkpoint-{step:g}" for step in known[1:])]
        points = [{"step": s, "checkpoint": str(p)} for s, p in zip(known, places, strict=True)]
        file = Path(scratch) / "trajectory.json"
        file.write_text(json.dumps(points))
        prompts = Path(scratch) / "prompts.jsonl"
        prompts.write_text("\n".join(map(json.dumps, eval_prompts(settings))))
        run = Path(scratch) / "run"
        result = select(
            trajectory=file,
            fit=fit,
            at_step=[h * known[-1] for h in HORIZONS],
            prompts=str(prompts),
            reward_models=[str(reward)],
            output=run,
            settings={"sampling": {"max_tokens": settings.max_new_tokens}},
        )["selection"]
        truths = _truths(run)
        end = Answers(settings, initial).truth(path.checkpoint(-1))
    return f"| {name} {_line(seed, fit, result, truths, end)}"


def _truths(run: Path) -> dict[float, float]:
    """Return the mean hidden truth of the answers by alpha."""
    files = sorted((run / "responses").glob("*.parquet"))
    rows = [row for file in files for row in read_table(file).to_pylist()]
    truth = LabSettings().lab_task.truth
    scores: dict[float, list[float]] = {}
    for row in rows:
        scores.setdefault(row["alpha"], []).append(truth(row["messages"], row["response"]))
    return {alpha: float(np.mean(found)) for alpha, found in scores.items()}


def _line(
    seed: int, fit: str, result: dict[str, Any], truths: dict[float, float], end: float
) -> str:
    alpha, heldout = result["best_alpha"], result["heldout"]
    gain = (
        "-"
        if not heldout
        else f"{heldout['gain']:+.2f} [{heldout['ci_low']:+.2f}, {heldout['ci_high']:+.2f}]"
    )
    best = max(truths, key=lambda one: truths[one])
    return (
        f"| {seed} | {fit} | {result['verdict']} | {1 + alpha:g} | {gain} | {truths[0.0]:.2f} | "
        f"{truths[alpha]:.2f} | {truths[best]:.2f} ({1 + best:g}) | {end:.2f} | "
        f"{result['reason']} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.name}")
    parser.add_argument("--seeds", type=int, nargs="+", default=[120, 121, 122])
    parser.add_argument("--trainings", nargs="+", default=CONSTANT, choices=TRAININGS)
    parser.add_argument("--folder", type=Path, default=Path("runs/trajectory_laboratory"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for name in given.trainings:
        for seed in given.seeds:
            lines.append(chosen(name, seed, given.folder))
            print(lines[-1], flush=True)
            if given.write:
                RESULT.write_text(HEADING + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
