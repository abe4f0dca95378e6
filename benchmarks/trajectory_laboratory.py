"""Trainings of the laboratory, forecast from their first 15, 30 and 50%: hits and misses.

    python -m benchmarks.trajectory_laboratory [--write] [--seeds N ...] [--methods dpo grpo]

Each training keeps 40 checkpoints. From those of its first part alone the back-test gives its
verdict and every fit its forecasts; the rest of the training is the truth, in weights and in the
hidden truth of sampled answers. DPO learns from labelled pairs, GRPO from the rule of the hidden
truth as a check: rewards that can be verified. Even seeds have a cosine rate, odd ones a constant
one. How fast GRPO learns was set on seed 0 alone. One line of JSON is kept per training, beside the
results: what is stopped goes on with the trainings that are missing, and `--write` makes the tables
of all lines there are. Trainings on one initial model differ in their data, its order and their
answers; the prompts that measure them are in no training data.

Needs: a CPU core. Takes: a minute for each training.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.trajectory_laboratory_tables import with_comment, written
from expo_ray.extrapolation.arithmetic.path_sums import PathSums, measure_path
from expo_ray.extrapolation.trajectories.backtest import (
    HORIZONS,
    NEAR_HORIZON,
    back_tests,
    forecast_errors,
)
from expo_ray.extrapolation.trajectories.forecasts import (
    FORECAST_KINDS,
    Forecast,
    can_forecast,
    forecast_weights,
)
from expo_ray.extrapolation.trajectories.path_shape import (
    path_shape,
    squared_distance,
    total_of,
)
from expo_ray.extrapolation.trajectories.verdict import judge
from expo_ray.lab.data import eval_prompts
from expo_ray.lab.on_policy import sample_answers
from expo_ray.lab.reinforcement import GrpoSettings, train_reinforced
from expo_ray.lab.settings import LabSettings
from expo_ray.lab.training import train_aligned, train_initial
from expo_ray.tables import Message

RESULT = Path(__file__).resolve().parent / "results" / "trajectory_laboratory.md"
ROWS = RESULT.with_suffix(".jsonl")
NUM_CHECKPOINTS = 40
NUM_STEPS = 80
SHARES = (0.15, 0.3, 0.5)
PER_INITIAL = 5
MEASURED = ("pair", "line", "rank1 from last", "wsm from last")
"""Forecasts whose answers are measured, besides that of the verdict; weights are of all."""
BATCH = 8
NUM_ANSWERS = 60
SMALL: Mapping[str, Any] = {
    "num_eval_prompts": 100,
    "num_sft_examples": 6000,
    "preference_fraction": 1.0,
    "num_preference_pairs": NUM_STEPS * BATCH,
    "dpo_batch_size": BATCH,
}
# On design seed 0 a rate of 3e-4 had learnt nearly all after a quarter of the steps.
GRPO = GrpoSettings(num_steps=NUM_STEPS, batch_size=BATCH, num_samples=8, learning_rate=5e-5)
Weights = dict[str, torch.Tensor]
Row = dict[str, Any]


class BranchSettings(LabSettings):
    """Settings of one training among several on one initial model."""

    initial_seed: int

    def derive_seed(self, label: str) -> int:
        """Deal requests and evaluation prompts as the initial model's settings do."""
        shared = label in ("split", "evaluation")
        seed = self.initial_seed if shared else self.seed
        return LabSettings(seed=seed).derive_seed(label)


Train = Callable[[BranchSettings, Path, Path], None]
"""Trains from an initial model; leaves `checkpoint-N` folders in the last argument."""


METHODS: Mapping[str, Callable[..., object]] = {
    "dpo": train_aligned,
    "grpo": partial(train_reinforced, grpo=GRPO),
}
RATES = {"cosine rate": "cosine", "constant rate": "constant_with_warmup"}
"""Each with the trainer's name of it."""


def _keeping_checkpoints(method: str, schedule: str) -> Train:
    def train(settings: BranchSettings, initial: Path, folder: Path) -> None:
        options = {
            "output_dir": str(folder),
            "save_strategy": "steps",
            "save_steps": NUM_STEPS // NUM_CHECKPOINTS,
            "save_only_model": True,
            "lr_scheduler_type": schedule,
        }
        METHODS[method](settings, initial, folder / "last", on_step=_quiet, options=options)

    return train


TRAININGS: Mapping[str, Train] = {
    f"{method}, {rate}": _keeping_checkpoints(method, schedule)
    for method in METHODS
    for rate, schedule in RATES.items()
}


def _quiet(done: int, total: int) -> None:
    pass


class Answers:
    """Measures the hidden truth of weights by the answers that they sample."""

    def __init__(self, settings: LabSettings, model: Path) -> None:
        self._settings = settings
        self._tokenizer = AutoTokenizer.from_pretrained(model)
        self._model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        self._chats: list[list[Message]] = [
            [{"role": "user", "content": row["prompt"]}]
            for row in eval_prompts(settings)[:NUM_ANSWERS]
        ]

    def truth(self, weights: Weights) -> float:
        """Return the mean hidden truth of one sampled answer per prompt."""
        found = self._model.load_state_dict(weights, strict=False)
        assert not found.unexpected_keys, found
        answers = sample_answers(
            self._settings, self._model, self._tokenizer, self._chats, purpose="truth-sampling"
        )
        truth = self._settings.lab_task.truth
        scores = [truth(chat, one) for chat, one in zip(self._chats, answers, strict=True)]
        return float(np.mean(scores))


class Path1:
    """The checkpoints of one training in memory, one matrix [N, values] per tensor."""

    def __init__(self, initial: Path, training: Path) -> None:
        places = {int(p.name.split("-")[1]): p for p in training.glob("checkpoint-*")}
        self.steps = [0.0, *map(float, sorted(places))]
        models = [_weights(initial), *(_weights(places[int(step)]) for step in self.steps[1:])]
        self._shapes = {name: tensor.shape for name, tensor in models[0].items()}
        self._rows = {name: torch.stack([m[name].flatten() for m in models]) for name in models[0]}

    def sums(self, num_known: int | None = None) -> dict[str, PathSums]:
        """Return the sums over the first checkpoints, or over all."""
        return {name: measure_path(list(rows[:num_known])) for name, rows in self._rows.items()}

    def checkpoint(self, index: int) -> Weights:
        """Return one of the checkpoints."""
        return {name: rows[index].view(self._shapes[name]) for name, rows in self._rows.items()}

    def forecast(self, kind: Forecast, early: Mapping[str, PathSums], target: float) -> Weights:
        """Return what a fit over the first checkpoints says of a step."""
        num_known = len(next(iter(early.values())).gram)
        found = {}
        for name, rows in self._rows.items():
            (weights,) = forecast_weights(kind, self.steps[:num_known], [target], early[name].gram)
            # As `extrapolate`: changes from the first checkpoint, summed.
            changes = rows[:num_known].double() - rows[0].double()
            moved = torch.from_numpy(weights) @ changes
            found[name] = (rows[0].double() + moved).float().view(self._shapes[name])
        return found


def _weights(folder: Path) -> Weights:
    found: Weights = {}
    for file in sorted(folder.glob("*.safetensors")):
        found.update(load_file(file))
    return found


def measured(settings: BranchSettings, name: str, initial: Path, training: Path) -> Row:
    """Compare what the first parts of a training promise with the rest of it."""
    path, answers = Path1(initial, training), Answers(settings, initial)
    whole = path.sums()
    total = total_of(whole.values())
    assert total is not None
    shape = path_shape(total, path.steps)
    return {
        "seed": settings.seed,
        "initial_seed": settings.initial_seed,
        "training": name,
        "num_steps": NUM_STEPS,
        "num_checkpoints": len(path.steps),
        "straightness": shape.straightness,
        "r2_line": shape.r2_line,
        "truth_initial": answers.truth(path.checkpoint(0)),
        "truth_last": answers.truth(path.checkpoint(-1)),
        "parts": [_part(path, share, whole, total, answers) for share in SHARES],
    }


def _part(
    path: Path1, share: float, whole: Mapping[str, PathSums], total: PathSums, answers: Answers
) -> Row:
    steps = path.steps
    num_known = known_steps(steps, share)
    known = steps[:num_known]
    early = path.sums(num_known)
    verdict = judge(back_tests(early, known), known)
    targets = targets_of(steps, num_known)
    errors = {}
    for kind in FORECAST_KINDS:
        if can_forecast(kind, known):
            at = list(targets.values())
            squares, _ = forecast_errors(kind, whole, total, steps, num_known, at)
            still = [squared_distance(total, num_known - 1, k) for k in at]
            found = np.sqrt(squares / np.array(still)).tolist()
            errors[kind.name] = dict(zip(targets, found, strict=True))
    kinds = [kind for kind in FORECAST_KINDS if kind.name in MEASURED or kind == verdict.forecast]
    truths = {k.name: answers.truth(path.forecast(k, early, steps[-1])) for k in kinds}
    promised = None
    if verdict.forecast is not None and verdict.at_step is not None:
        promised = truths[verdict.forecast.name]
        if verdict.at_step < steps[-1]:
            promised = answers.truth(path.forecast(verdict.forecast, early, verdict.at_step))
    return {
        "share": share,
        "num_known": num_known,
        "last_step": known[-1],
        "verdict": verdict.as_dict(),
        "errors": errors,
        "truth_known": answers.truth(path.checkpoint(num_known - 1)),
        "truths": truths,
        "truth_promised": promised,
    }


def targets_of(steps: Sequence[float], num_known: int) -> dict[str, int]:
    """Return the checkpoint that stands for each horizon, and for the end of the training."""
    found = {}
    for horizon in HORIZONS:
        misses = {
            k: abs(np.log(steps[k] / steps[num_known - 1] / horizon))
            for k in range(num_known, len(steps))
        }
        nearest = min(misses, key=lambda k: misses[k])
        if misses[nearest] <= np.log(NEAR_HORIZON):
            found[f"{horizon:g}"] = nearest
    return {**found, "end": len(steps) - 1}


def known_steps(steps: Sequence[float], share: float) -> int:
    """Return how many checkpoints lie in the first share of a training, step 0 among them."""
    return 1 + sum(step <= share * steps[-1] for step in steps[1:])


def first_seed(seed: int) -> int:
    """Return the seed of the initial model that a training starts from."""
    return seed - seed % PER_INITIAL


def initial_model(seed: int, folder: Path) -> Path:
    """Return the initial model of a seed, trained once."""
    place = folder / f"initial-{seed}"
    if not place.exists():
        partial = folder / f".initial-{seed}"
        train_initial(LabSettings(seed=seed, **SMALL), partial, on_step=_quiet)
        partial.rename(place)
    return place


def read_rows(file: Path) -> list[Row]:
    """Return the lines of all trainings that are done."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def asked(seeds: Sequence[int], methods: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Yield seeds and trainings: one of each method for every seed, with the rates in turn."""
    rates = list(RATES)
    for method in methods:
        for seed in seeds:
            yield seed, f"{method}, {rates[seed % len(rates)]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.name}")
    parser.add_argument("--seeds", type=int, nargs="*", default=range(100, 120))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--folder", type=Path, default=Path("runs/trajectory_laboratory"))
    parser.add_argument("--rows", type=Path, default=ROWS, help=f"kept lines, not {ROWS.name}")
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.folder.mkdir(parents=True, exist_ok=True)
    done = {(row["seed"], row["training"]) for row in read_rows(given.rows)}
    for seed, name in asked(given.seeds, given.methods):
        if (seed, name) in done:
            continue
        first = first_seed(seed)
        initial = initial_model(first, given.folder)
        settings = BranchSettings(seed=seed, initial_seed=first, **SMALL)
        with tempfile.TemporaryDirectory(dir=given.folder) as scratch:
            TRAININGS[name](settings, initial, Path(scratch))
            row = measured(settings, name, initial, Path(scratch))
        # One write: what is stopped leaves no half of a line.
        with given.rows.open("a") as lines:
            lines.write(json.dumps(row) + "\n")
            lines.flush()
            os.fsync(lines.fileno())
        print(f"{name}, seed {seed}: truth {row['truth_initial']:.2f} to {row['truth_last']:.2f}, "
              f"{[part['verdict']['decision'] for part in row['parts']]}", flush=True)  # fmt: skip
    text = written([{"num_steps": NUM_STEPS, **row} for row in read_rows(given.rows)])
    print(text)
    if given.write:
        RESULT.write_text(with_comment(text, RESULT.read_text() if RESULT.exists() else ""))


if __name__ == "__main__":
    main()
