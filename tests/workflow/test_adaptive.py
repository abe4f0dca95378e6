"""An alpha for each part of the model, searched on live replicas after the uniform one."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from expo_ray.errors import ConfigError, MissingExtraError
from expo_ray.extrapolation import extrapolate
from expo_ray.extrapolation.planning.alpha_rules import AlphaRules
from expo_ray.workflow import adaptive
from expo_ray.workflow.recipe_file import load_recipe
from expo_ray.workflow.run import select
from expo_ray.workflow.run_dir import RunDir
from tests.workflow.test_run import snapshot, write_recipe

LABEL = "0-implicit-beta-0.1"
NUM_TRIALS = 3
NUM_PROMPTS = 64
HEAVY = ("responses", "rewards")


@pytest.fixture(scope="module")
def arguments(
    tmp_path_factory: pytest.TempPathFactory, ray_cluster: str, pico_pair: tuple[Path, Path]
) -> dict[str, Any]:
    pytest.importorskip("optuna")
    folder = tmp_path_factory.mktemp("adaptive")
    prompts = folder / "prompts.jsonl"
    rows = [{"prompt": f"Tell me about number {n}."} for n in range(NUM_PROMPTS)]
    prompts.write_text("\n".join(map(json.dumps, rows)))
    return {
        "initial": str(pico_pair[0]),
        "aligned": str(pico_pair[1]),
        "prompts": str(prompts),
        "output": folder / "run",
        "alphas": [2.0],
        # Untrained models babble: only the search is looked at here.
        "guards": {
            "max_length_ratio": None,
            "min_length_ratio": None,
            "max_repetition_increase": 1.0,
            # Untrained models write special tokens as often as any other.
            "max_special_token_increase": None,
            "max_truncation_increase": 1.0,
            "max_truncation_rate": 1.0,
            "min_length_controlled_gain": None,
        },
        "settings": {
            "sampling": {"max_tokens": 12},
            "adaptive": {"num_trials": NUM_TRIALS},
        },
        "address": ray_cluster,
    }


@pytest.fixture(scope="module")
def selection(arguments: dict[str, Any]) -> dict[str, Any]:
    found = dict(select(**arguments)["selection"])
    # The pair's own reward rises along its delta.
    assert found["verdict"] == "extrapolate", found["reason"]
    return found


def test_the_uniform_alpha_stays_where_no_part_wants_another(
    selection: dict[str, Any], arguments: dict[str, Any]
) -> None:
    directory = RunDir(arguments["output"])
    assert json.loads(directory.selection_file.read_text()) == selection
    found = selection["adaptive"]
    assert selection["best_alpha"] == found["uniform_alpha"] == 2.0
    assert found["num_trials"] == len(found["trials"]) == NUM_TRIALS
    first = found["trials"][0]
    assert set(first["alphas"].values()) == {2.0}
    [tried] = [c for c in selection["candidates"] if c["alpha"] == 2.0]
    assert first["gain"] == pytest.approx(tried["gain"], abs=1e-12)
    # Alpha 2 is close to the best for this pair: nobody asks the held-out prompts.
    assert found["best"]["alphas"] == first["alphas"]
    assert found["heldout"] is None
    assert "not found to be better than the uniform alpha 2" in directory.report_file.read_text()
    assert not directory.alpha_rules_file.exists()


def test_each_trial_has_tables_named_by_its_digest(
    selection: dict[str, Any], arguments: dict[str, Any]
) -> None:
    directory = RunDir(arguments["output"])
    found = selection["adaptive"]
    tables = {path.stem for path in (directory.path / "responses").glob("rules-*.parquet")}
    assert tables == {f"rules-{trial['rules_digest']}" for trial in found["trials"][1:]}
    for name in tables:
        responses = pq.read_table(directory.path / "responses" / f"{name}.parquet")
        rewards = pq.read_table(directory.path / "rewards" / LABEL / f"{name}.parquet")
        assert responses["split"].to_pylist() == ["tuning"] * (NUM_PROMPTS // 2)
        assert responses["alpha"].null_count == NUM_PROMPTS // 2 == rewards.num_rows
    assert found["cost"]["num_responses"] == NUM_PROMPTS // 2 * len(tables)


def test_a_rerun_answers_nothing_again(
    selection: dict[str, Any], arguments: dict[str, Any]
) -> None:
    directory = RunDir(arguments["output"])
    before = {k: v for k, v in snapshot(directory.path).items() if k.startswith(HEAVY)}
    assert select(**arguments)["selection"] == selection
    after = {k: v for k, v in snapshot(directory.path).items() if k.startswith(HEAVY)}
    assert after == before


@pytest.mark.slow
def test_another_best_trial_meets_the_uniform_alpha_on_heldout_prompts(
    selection: dict[str, Any],
    arguments: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    directory = RunDir(arguments["output"])
    # As if the second trial had gained most on the tuning prompts.
    monkeypatch.setattr(adaptive, "best_trial", lambda trials: trials[1])
    again = select(**arguments)["selection"]
    found = again["adaptive"]
    assert {**again, "adaptive": None} == {**selection, "adaptive": None}
    rules = AlphaRules.parse(found["best"]["rules"])
    answers = [
        {
            row["prompt_id"]: row["reward"]
            for row in pq.read_table(directory.rewards(LABEL, setting)).to_pylist()
            if row["split"] == "heldout"
        }
        for setting in (rules, 2.0)
    ]
    assert answers[0].keys() == answers[1].keys()
    differences = [answers[0][prompt] - answers[1][prompt] for prompt in answers[0]]
    assert found["heldout"]["num_pairs"] == len(differences) == NUM_PROMPTS // 2
    assert found["heldout"]["gain"] == pytest.approx(sum(differences) / len(differences))
    assert directory.alpha_rules_file.exists() == found["is_better"]
    # What the rules file says is what answered.
    adaptive.write_rules(tmp_path / "rules.yaml", found)
    extrapolate(
        arguments["initial"],
        arguments["aligned"],
        str(tmp_path / "out"),
        alpha=(),
        alpha_rules=tmp_path / "rules.yaml",
        address="inline",
    )
    record = json.loads((tmp_path / "out" / "expo_ray.json").read_text())
    assert record["weights_digest"] == found["best"]["weights_digest"]


def test_without_optuna_no_work_starts(
    tmp_path: Path, arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    output = tmp_path / "run"
    with pytest.raises(MissingExtraError) as raised:
        select(**{**arguments, "output": output})
    assert "expo-ray[adaptive]" in str(raised.value.hint)
    assert not output.exists()


@pytest.mark.parametrize(
    "extrapolation", [{"keep": "all"}, {"output_dtype": "float32"}, {"vocab_policy": "common-rows"}]
)
def test_candidates_that_are_written_are_refused(
    tmp_path: Path, extrapolation: dict[str, str]
) -> None:
    recipe = write_recipe(
        tmp_path,
        (tmp_path, tmp_path),
        tmp_path,
        extrapolation=extrapolation,
        adaptive={"num_trials": 3},
    )
    with pytest.raises(ConfigError, match="inside the replicas"):
        load_recipe(recipe)


def test_the_search_is_part_of_what_a_recipe_computes(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, (tmp_path, tmp_path), tmp_path, extrapolation={"alphas": [1.0]})
    plain = load_recipe(recipe).digest()
    assert load_recipe(recipe, ["adaptive=null"]).digest() == plain
    assert load_recipe(recipe, ["adaptive={num_trials: 3}"]).digest() != plain
