"""A run asks whether the pair is fit before it generates anything."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path

import pytest

from expo_ray.errors import WorkError
from expo_ray.progress import NullProgress
from expo_ray.workflow import stages
from expo_ray.workflow.inputs import prepare_models
from expo_ray.workflow.recipe import load_recipe
from expo_ray.workflow.run import run
from expo_ray.workflow.run_dir import RunDir
from tests.pico import save_pair
from tests.workflow.test_run import write_recipe

Pair = tuple[Path, Path]


@pytest.fixture
def unrelated(pico_pair: Pair, tmp_path: Path) -> Pair:
    return save_pair(tmp_path / "other", seed=5)[0], pico_pair[1]


def test_unrelated_models_end_a_run_before_it_generates(
    ray_cluster: str, unrelated: Pair, pico_reward_model: Path, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path, unrelated, pico_reward_model)
    with pytest.raises(WorkError, match="not fit") as caught:
        run(recipe, address=ray_cluster)
    assert "unrelated" in str(caught.value.got)
    assert "--allow-unfit" in str(caught.value.hint)
    directory = RunDir(tmp_path / "run")
    assert not directory.diagnosis_file.exists()
    assert not (directory.path / "responses").exists()


def test_they_may_be_asked_for_and_are_read_once(
    ray_cluster: str, unrelated: Pair, pico_reward_model: Path, tmp_path: Path
) -> None:
    settings = {"alphas": [0.5], "allow_unfit": True}
    recipe = load_recipe(
        write_recipe(tmp_path, unrelated, pico_reward_model, extrapolation=settings)
    )
    directory = RunDir(recipe.output)
    with directory.claim(recipe_text="", digest=recipe.digest()), ExitStack() as stack:
        this = stages.Run(
            recipe=recipe,
            directory=directory,
            address=ray_cluster,
            progress=NullProgress(),
            stack=stack,
        )
        prepare_models(this)
        stages.check_pair(this)
        written = directory.diagnosis_file.stat().st_mtime_ns
        stages.check_pair(this)
    assert json.loads(directory.diagnosis_file.read_text())["fit"] is False
    assert directory.diagnosis_file.stat().st_mtime_ns == written
