"""A wrong request ends before its run directory is touched and before a Ray is started."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from expo_ray.errors import ConfigError, RequestError
from expo_ray.workflow import run as run_module
from expo_ray.workflow import stages
from expo_ray.workflow.plan import plan_run
from expo_ray.workflow.run import run
from expo_ray.workflow.run_dir import RunDir
from tests.head_node import free_port
from tests.pico import save_pair
from tests.workflow.test_run import write_recipe

Pair = tuple[Path, Path]
LAB = {"initial": None, "aligned": None, "prompts": {}, "lab": {}}


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*_: Any, **__: Any) -> None:
        raise AssertionError("a Ray was started")

    monkeypatch.setattr(stages, "ray_session", start)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "one.jsonl").write_text('{"prompt": "alone"}\n')
    (tmp_path / "broken.jsonl").write_text('{"prompt": "fine"}\n{"prompt": \n')
    save_pair(tmp_path / "other", hidden_size=16)
    return tmp_path


WRONG = {
    "initial missing": {"initial": "absent"},
    "pair mismatch": {"initial": "other/initial"},
    "prompts missing": {"prompts": {"path": "absent.jsonl"}},
    "prompts malformed": {"prompts": {"path": "broken.jsonl"}},
    "one prompt": {"prompts": {"path": "one.jsonl"}},
    "shard size": {"extrapolation": {"alphas": [0.5], "max_shard_size": "5 bananas"}},
    "reward model missing": {"reward_models": ["absent-rm"]},
    "guard missing": {"reward_models": ["implicit:beta=0.1", "absent-rm"]},
    "no reward model": {"reward_models": ["other/initial"]},
    "reward model kind": {"reward_models": ["implicit:beta=none"]},
    "output is a URI": {"output": "s3://bucket/run"},
    "output below a file": {"output": "one.jsonl/run"},
    "output is a file": {"output": "one.jsonl"},
    "vLLM on these heads": {"generators": {"engine": "vllm"}},
    "of a laboratory": {**LAB, "reward_models": ["absent-rm"]},
}
ABOUT_THE_MACHINE = {"vLLM on these heads"}


@pytest.mark.parametrize("name", WRONG)
def test_nothing_is_written_and_the_plan_refuses_it_too(
    name: str, files: Path, pico_pair: Pair, pico_reward_model: Path
) -> None:
    if name in ABOUT_THE_MACHINE:
        pytest.importorskip("vllm")
    recipe = write_recipe(files, pico_pair, pico_reward_model, **WRONG[name])
    before = sorted(files.rglob("*"))
    with pytest.raises(RequestError):
        run(recipe, address="local")
    assert sorted(files.rglob("*")) == before
    if name not in ABOUT_THE_MACHINE:
        with pytest.raises(RequestError):
            plan_run(recipe)


@pytest.mark.parametrize("address", ["inline", "127.0.0.1:{}", "ray://127.0.0.1:{}"])
def test_without_a_cluster_nothing_is_written(
    address: str, tmp_path: Path, pico_pair: Pair, pico_reward_model: Path
) -> None:
    recipe = write_recipe(tmp_path, pico_pair, pico_reward_model)
    with pytest.raises(ConfigError) as caught:
        run(recipe, address=address.format(free_port()))
    assert caught.value.where == "address="
    assert not (tmp_path / "run").exists()


def test_reward_models_are_recorded_by_what_they_were_found_as(
    tmp_path: Path,
    pico_pair: Pair,
    pico_reward_model: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stop(_: stages.Run) -> None:
        raise ConfigError("enough")

    monkeypatch.setattr(run_module.stages, "check_pair", stop)
    monkeypatch.chdir(pico_reward_model.parent)
    recipe = write_recipe(tmp_path, pico_pair, pico_reward_model)
    with pytest.raises(ConfigError, match="enough"):
        run(recipe, address="local")
    resolved = RunDir(tmp_path / "run").read_resolved()
    assert resolved["reward_models"]["0-reward-model"] == str(pico_reward_model)
    assert resolved["reward_addresses"][str(pico_reward_model)] == str(pico_reward_model)


def test_a_folder_that_was_only_claimed_takes_another_request(tmp_path: Path) -> None:
    directory = RunDir(tmp_path / "run")
    with directory.claim(recipe_text="old", digest="old"):
        directory.update_resolved({"prompts_address": "old"})
    with directory.claim(recipe_text="new", digest="new"):
        pass
    assert directory.recipe_file.read_text() == "new"
    assert json.loads(directory.resolved_file.read_text()) == {
        "schema_version": 1,
        "recipe_digest": "new",
    }
