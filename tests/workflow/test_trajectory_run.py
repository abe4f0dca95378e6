"""A run along a trajectory: candidates of `extrapolate --trajectory`, and the rest as ever."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from expo_ray.errors import ConfigError, RequestError
from expo_ray.extrapolation import extrapolate_trajectory
from expo_ray.workflow.plan import plan_run
from expo_ray.workflow.recipe_check import check_recipe
from expo_ray.workflow.run import run, select
from tests.bent_path import STEPS, bent_path
from tests.workflow.test_run import snapshot, write_recipe

NO_PAIR: dict[str, Any] = {"initial": None, "aligned": None}


@pytest.fixture
def training(tmp_path: Path, pico_pair: tuple[Path, Path]) -> Path:
    return bent_path(tmp_path, pico_pair)


def recipe_along(training: Path, reward_model: Path, **changes: Any) -> Path:
    keys = {
        "trajectory": {"file": "trajectory.yaml", "fit": "line:window=3"},
        "extrapolation": {"alphas": [0.5, 2.0], "max_shard_size": "20KB"},
        "loadtest": None,
        **NO_PAIR,
        **changes,
    }
    return write_recipe(training.parent, (training, training), reward_model, **keys)


def test_candidates_lie_along_the_fit_and_the_run_goes_on_as_ever(
    training: Path, pico_reward_model: Path, ray_cluster: str
) -> None:
    recipe = recipe_along(training, pico_reward_model)
    directory = training.parent / "run"
    run(recipe, address=ray_cluster)
    by_hand = extrapolate_trajectory(
        training, training.parent / "by-hand", fit="line:window=3", alpha=[0.5, 2.0],
        max_shard_size="20KB", address="inline",
    )  # fmt: skip
    digests = {output.alpha: output.weights_digest for output in by_hand.outputs}
    selection = json.loads((directory / "selection.json").read_text())
    assert [one["alpha"] for one in selection["candidates"]] == [0.0, 0.5, 2.0]
    assert {guard["alpha"] for guard in selection["guards"]} == {0.5, 2.0}
    for alpha in (0.5, 2.0):
        table = pq.read_table(directory / "responses" / f"alpha-{alpha:g}.parquet")
        assert set(table["weights_digest"].to_pylist()) == {digests[alpha]}
    resolved = json.loads((directory / "resolved.json").read_text())
    assert resolved["steps"] == list(STEPS)
    assert resolved["step 100"]["uri"] == str(training.parent / "step-100")
    page = (directory / "report.html").read_text()
    assert "the fitted change over the checkpoints" in page
    assert f"--trajectory {training} --fit line:window=3" in page
    assert "step-100" in page
    kept = sorted(path.name for path in (directory / "checkpoints").glob("*"))
    assert kept == [f"alpha-{selection['best_alpha']:g}"] * bool(selection["best_alpha"])
    answers = snapshot(directory / "responses")
    run(recipe, address=ray_cluster)
    assert snapshot(directory / "responses") == answers

    rows = yaml.safe_load(training.read_text())
    training.write_text(yaml.safe_dump([*rows[:-1], {**rows[-1], "step": 500}]))
    with pytest.raises(ConfigError, match="the steps of the trajectory have changed"):
        run(recipe, address=ray_cluster)
    training.write_text(yaml.safe_dump(rows))
    shutil.rmtree(training.parent / "step-100")
    with pytest.raises(RequestError, match="step 100"):
        run(recipe, address=ray_cluster)


def test_a_plan_reads_every_checkpoint_once(training: Path, pico_reward_model: Path) -> None:
    recipe = recipe_along(training, pico_reward_model)
    assert check_recipe(recipe) is not None
    (stage,) = [s for s in plan_run(recipe)["stages"] if s["stage"] == "extrapolation"]
    along = extrapolate_trajectory(
        training, training.parent / "out", fit="line:window=3", alpha=[0.5, 2.0],
        max_shard_size="20KB", dry_run=True,
    )  # fmt: skip
    assert stage["bytes_in"] == along.plan["bytes_in"]
    assert stage["bytes_out"] == along.plan["bytes_out"]
    assert "note" not in stage  # nothing of it is computed inside replicas


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"initial": "sft"}, "trajectory brings its models; remove initial"),
        ({"lab": {}}, "trajectory brings its models; remove lab"),
        ({"extrapolation": {"vocab_policy": "common-rows"}}, "have one vocabulary"),
        ({"adaptive": {"num_trials": 4}}, "needs initial and aligned"),
        ({"trajectory": {"file": "none.yaml"}}, "the trajectory cannot be read"),
        ({"trajectory": {"file": "trajectory.yaml", "fit": "cubic"}}, "unknown fit"),
        ({"trajectory": {"file": "trajectory.yaml", "weights": [1, 0]}}, "makes its own"),
    ],
)
def test_what_does_not_fit_a_trajectory_is_refused(
    training: Path, pico_reward_model: Path, changes: dict[str, Any], expected: str
) -> None:
    recipe = recipe_along(training, pico_reward_model, **changes)
    with pytest.raises(RequestError, match=expected):
        plan_run(recipe)


def test_candidates_of_select_may_be_steps(training: Path, pico_reward_model: Path) -> None:
    how: dict[str, Any] = {
        "prompts": str(recipe_along(training, pico_reward_model).parent / "prompts.jsonl"),
        "output": training.parent / "selected",
        "trajectory": training,
        "dry_run": True,
    }
    assert select(at_step=[600, 480], **how)["alphas"] == [0.0, 0.2, 0.5]
    with pytest.raises(ConfigError, match="alpha and a step are given for the same thing"):
        select(at_step=[600], alphas=[0.3], **how)
    assert not (training.parent / "selected").exists()
