"""What is given twice, or guards nothing, shows before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from expo_ray.errors import ConfigError, PairError, RequestError
from expo_ray.extrapolation import extrapolate
from expo_ray.selection.explanations import warn_of_circle
from expo_ray.workflow.plan import plan_run
from expo_ray.workflow.recipe_check import check_recipe
from expo_ray.workflow.recipe_file import RecipeError, load_recipe
from expo_ray.workflow.run import run
from tests.workflow.test_run import write_recipe

Pair = tuple[Path, Path]


def test_a_pair_of_one_checkpoint_is_refused(
    tmp_path: Path, pico_pair: Pair, pico_reward_model: Path
) -> None:
    one = pico_pair[1]
    (tmp_path / "link").symlink_to(one)
    for other in (one, one / ".." / one.name, tmp_path / "link"):
        recipe = write_recipe(tmp_path, (other, one), pico_reward_model)
        for ask in (plan_run, lambda path: run(path, address="local")):
            with pytest.raises(PairError, match="are the same checkpoint"):
                ask(recipe)
        with pytest.raises(RecipeError) as caught:
            check_recipe(recipe)
        assert "aligned" in caught.value.faults
        with pytest.raises(PairError, match="are the same checkpoint"):
            extrapolate(str(other), str(one), tmp_path / "out", alpha=0.5, dry_run=True)
    assert not (tmp_path / "run").exists()


def test_a_reward_model_given_twice_is_refused(
    tmp_path: Path, pico_pair: Pair, pico_reward_model: Path
) -> None:
    (tmp_path / "link").symlink_to(pico_reward_model)
    rm = str(pico_reward_model)
    further = {"path": "prompts.jsonl", "reward_models": ["check:regex=a", "check:regex=a"],
               "role": "report"}  # fmt: skip
    for models, sets in (
        ([rm, f"{rm}/"], {}), ([rm, str(tmp_path / "link")], {}),
        (["check:regex=a", rm, "check:regex=a"], {}), ([rm], {"more": further}),
    ):  # fmt: skip
        recipe = write_recipe(tmp_path, pico_pair, pico_reward_model, reward_models=models,
                              prompts={"main": {"path": "prompts.jsonl"}, **sets})  # fmt: skip
        for ask in (plan_run, lambda path: run(path, address="local")):
            with pytest.raises(ConfigError, match="a reward model is given twice"):
                ask(recipe)
    both = write_recipe(tmp_path, pico_pair, pico_reward_model,
                        reward_models=["check:regex=a", "check:regex=b"])  # fmt: skip
    assert plan_run(both)["warnings"] == []


def test_the_pair_is_no_guard_of_itself(
    tmp_path: Path, pico_pair: Pair, pico_reward_model: Path
) -> None:
    rm, pair = str(pico_reward_model), "implicit:beta=0.1"
    [warning] = plan_run(write_recipe(tmp_path, pico_pair, pico_reward_model))["warnings"]
    assert f"the only guard reward model is the log-ratio of the pair itself ({pair})" in warning
    assert warn_of_circle([rm]) == warn_of_circle([rm, pair, "check:number"]) == []
    assert warn_of_circle([pair, rm]) == []
    assert "going in a circle" in warn_of_circle([pair, pair])[0]


def test_a_bare_implicit_is_no_folder(
    tmp_path: Path, pico_pair: Pair, pico_reward_model: Path
) -> None:
    recipe = write_recipe(tmp_path, pico_pair, pico_reward_model,
                          reward_models=[str(pico_reward_model), "implicit"])  # fmt: skip
    assert load_recipe(recipe).reward_models[1] == "implicit"
    with pytest.raises(RequestError) as caught:
        plan_run(recipe)
    assert "implicit:beta=NUMBER" in str(caught.value.expected)
