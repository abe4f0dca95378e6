"""What a recipe says of its reward models reaches them, or is refused before hours are spent."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from expo_ray.cli.main import app
from expo_ray.errors import ConfigError, TableError
from expo_ray.lab import LabSettings
from expo_ray.lab.result import lab_paths
from expo_ray.progress import NullProgress
from expo_ray.rewards import load_reward_model, run_self_test
from expo_ray.rewards.anchors import read_anchors
from expo_ray.serving.engines.registry import ENGINES
from expo_ray.serving.self_test_file import measured_spread
from expo_ray.workflow import run, stages
from expo_ray.workflow.inputs import check_request, prepare_models
from expo_ray.workflow.plan import plan_recipe
from expo_ray.workflow.recipe import Recipe, RewarderSettings
from expo_ray.workflow.recipe_check import check_recipe
from expo_ray.workflow.recipe_file import load_recipe
from expo_ray.workflow.run_dir import RunDir
from tests.serving.vllm_here import require_vllm
from tests.workflow.test_run import write_recipe

ANCHORS = '{"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}\n'


@pytest.fixture
def anchors(tmp_path: Path) -> Path:
    path = tmp_path / "anchors.jsonl"
    path.write_text(ANCHORS)
    return path


def prepared(recipe: Recipe, stack: ExitStack) -> stages.Run:
    directory = RunDir(recipe.output)
    stack.enter_context(directory.claim(recipe_text="", digest=recipe.digest()))
    this = stages.Run(
        recipe=recipe, directory=directory, address=None, progress=NullProgress(), stack=stack
    )
    prepare_models(this)
    return this


def test_anchors_reach_every_reward_model(
    pico_pair: tuple[Path, Path], pico_reward_model: Path, anchors: Path, tmp_path: Path
) -> None:
    recipe = load_recipe(
        write_recipe(tmp_path, pico_pair, pico_reward_model, rewarders={"anchors": anchors.name})
    )
    assert recipe.rewarders.anchors == str(anchors)
    plain = load_recipe(write_recipe(tmp_path, pico_pair, pico_reward_model))
    assert recipe.digest() == plain.digest(), "they stop a run, they change none"
    with ExitStack() as stack:
        this = prepared(recipe, stack)
        for label in this.reward_models:
            replicas = this.reward_replicas(label)
            assert replicas._anchors == read_anchors(anchors)
            assert replicas._how["truncate"] is False


def test_a_reward_model_tests_itself_once_however_often_its_replicas_are_made(
    pico_pair: tuple[Path, Path], pico_reward_model: Path, tmp_path: Path
) -> None:
    """A race that makes room for other replicas starts these anew for every round."""
    recipe = load_recipe(write_recipe(tmp_path, pico_pair, pico_reward_model))
    with ExitStack() as stack:
        this = prepared(recipe, stack)
        label = next(iter(this.reward_models))
        found = run_self_test(load_reward_model(str(pico_reward_model)))
        this.self_tests[this.reward_models[label].text] = found
        for table in ("one.parquet", "two.parquet"):
            # No replica runs here that could be asked.
            replicas = this.reward_replicas(label)
            tested = replicas.test_once([], this.progress, output=tmp_path / table)
            assert tested == found
            assert measured_spread([tmp_path / table]) == found.spread


def test_anchors_that_nobody_would_read_are_refused(
    pico_pair: tuple[Path, Path], pico_reward_model: Path, anchors: Path, tmp_path: Path
) -> None:
    settings = {"anchors": anchors.name, "self_test": False}
    with pytest.raises(ConfigError, match="self-test"):
        load_recipe(write_recipe(tmp_path, pico_pair, pico_reward_model, rewarders=settings))
    checks = {"rewarders": {"anchors": anchors.name}, "reward_models": ["check:regex=a"]}
    unread = write_recipe(tmp_path, pico_pair, pico_reward_model, **checks)
    with ExitStack() as stack, pytest.raises(ConfigError, match="all of these are checks"):
        prepared(load_recipe(unread), stack)
    missing = write_recipe(tmp_path, pico_pair, pico_reward_model, rewarders={"anchors": "no.json"})
    with ExitStack() as stack, pytest.raises(TableError):
        prepared(load_recipe(missing), stack)


def test_an_engine_reaches_every_reward_model_or_is_refused(
    pico_pair: tuple[Path, Path], pico_reward_model: Path, tmp_path: Path
) -> None:
    require_vllm()
    asked = {"rewarders": {"engine": "vllm"}, "reward_models": [str(pico_reward_model)]}
    recipe = load_recipe(write_recipe(tmp_path, pico_pair, pico_reward_model, **asked))
    usual = recipe.model_copy(update={"rewarders": RewarderSettings()})
    assert recipe.digest() != usual.digest(), "rewards of two engines are never mixed"
    with ExitStack() as stack:
        this = prepared(recipe, stack)
        [label] = this.reward_models
        assert this.reward_replicas(label)._how["load"] == ENGINES["vllm"].load_reward_model
    asked["reward_models"] += ["implicit:beta=0.1"]
    other = write_recipe(tmp_path, pico_pair, pico_reward_model, **asked)
    for refused in (check_recipe, plan_recipe):
        with pytest.raises(ConfigError, match="vLLM does not compute") as caught:
            refused(other if refused is check_recipe else load_recipe(other))
        error = getattr(caught.value, "faults", {}).get("reward_models.1", caught.value)
        assert error.where == "rewarders.engine: vllm, implicit:beta=0.1"
        assert error.hint == "leave rewarders.engine out"


def test_the_flags_of_select_reach_the_recipe(
    monkeypatch: pytest.MonkeyPatch, anchors: Path, tmp_path: Path
) -> None:
    seen: list[Recipe] = []

    def stop(recipe: Recipe, **_: Any) -> None:
        seen.append(recipe)
        raise ConfigError("enough")

    monkeypatch.setattr(run, "run_recipe", stop)
    monkeypatch.chdir(tmp_path)
    flags = ["--prompts", "p.jsonl", "--output", "run", "--anchors", anchors.name]
    CliRunner().invoke(app, ["select", "sft", "dpo", *flags])
    CliRunner().invoke(app, ["select", "sft", "dpo", *flags, "--allow-truncation"])
    usual, cutting = (recipe.rewarders for recipe in seen)
    assert usual.anchors == cutting.anchors == str(anchors)
    assert (usual.allow_truncation, cutting.allow_truncation) == (False, True)
    assert seen[0].digest() != seen[1].digest(), "it changes rewards"


def test_a_laboratory_brings_its_own_before_those_of_the_recipe(
    pico_pair: tuple[Path, Path], pico_reward_model: Path, tmp_path: Path
) -> None:
    recipe = load_recipe(
        write_recipe(
            tmp_path,
            pico_pair,
            pico_reward_model,
            **{"lab": {}, "lab_cache": "labs", "initial": None, "aligned": None, "prompts": {}},
        )
    )
    lab = lab_paths(tmp_path / "labs", LabSettings())
    lab.folder.mkdir(parents=True)
    models = (lab.initial, lab.aligned, lab.reward_model, lab.guard_reward_model)
    origins = (*pico_pair, pico_reward_model, pico_reward_model)
    for model, origin in zip(models, origins, strict=True):
        assert model is not None
        shutil.copytree(origin, model)
    lab.prompts.write_text('{"prompt": "one"}\n{"prompt": "two"}\n')
    lab.record.write_text("{}")
    directory = RunDir(recipe.output)
    directory.path.mkdir()
    directory.lab_file.write_text("{}")  # it was trained: no Ray is started
    with ExitStack() as stack:
        this = stages.Run(
            recipe=recipe, directory=directory, address=None, progress=NullProgress(), stack=stack
        )
        check_request(this)
        prepare_models(this)
    assert list(this.reward_models) == [
        "0-reward-model",
        "1-guard-reward-model",
        "2-reward-model",
        "3-implicit-beta-0.1",
    ]
    assert len(this.prompts) == 2
    assert directory.read_resolved()["prompts"] == str(lab.prompts)
