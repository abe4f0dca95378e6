"""Strategies on live replicas: what they ask is answered, nothing else, and never twice."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from expo_ray.serving.app import AppArguments, build_app
from expo_ray.workflow.run import run
from expo_ray.workflow.run_dir import RunDir
from tests.workflow.test_run import snapshot, write_recipe

NUM_PROMPTS = 64
HEAVY = ("checkpoints", "responses", "rewards")


def recipe_of(folder: Path, pair: tuple[Path, Path], reward_model: Path, **changes: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    prompts = folder / "many.jsonl"
    lines = [json.dumps({"question": f"Tell me about number {n}."}) for n in range(80)]
    prompts.write_text("\n".join(lines))
    return write_recipe(
        folder,
        pair,
        reward_model,
        prompts={
            "path": str(prompts),
            "columns": {"prompt": "question"},
            "sample": NUM_PROMPTS,
        },
        loadtest=None,
        **{"extrapolation": {"alphas": [0.5, 2.0], "max_shard_size": "20KB"}, **changes},
    )


@pytest.fixture(scope="module")
def raced(
    tmp_path_factory: pytest.TempPathFactory,
    ray_cluster: str,
    pico_pair: tuple[Path, Path],
    pico_reward_model: Path,
) -> Path:
    folder = tmp_path_factory.mktemp("raced")
    recipe = recipe_of(folder, pico_pair, pico_reward_model, selection={"strategy": "racing"})
    run(recipe, address=ray_cluster)
    return recipe


def counts(directory: RunDir, alpha: float) -> dict[str, int]:
    splits = pq.read_table(directory.responses(alpha))["split"].to_pylist()
    return {split: splits.count(split) for split in ("tuning", "heldout")}


def test_a_race_answers_what_its_record_says_and_no_more(raced: Path) -> None:
    directory = RunDir(raced.parent / "run")
    selection = json.loads(directory.selection_file.read_text())
    search = selection["search"]
    assert search["strategy"] == "racing"
    answered = {entry["alpha"]: entry["num_prompts"] for entry in search["prompts_answered"]}
    assert set(answered) == {0.0, 0.5, 2.0}
    for alpha, num_prompts in answered.items():
        asked = counts(directory, alpha)
        assert asked["tuning"] == num_prompts
        confirmed = selection["tried_alpha"] is not None and alpha in (0, selection["tried_alpha"])
        assert asked["heldout"] == (NUM_PROMPTS // 2 if confirmed else 0)
        for label in ("0-reward-model", "1-implicit-beta-0.1"):
            rewards = pq.read_table(directory.rewards(label, alpha))
            assert rewards.num_rows == sum(asked.values())
    # Untrained models gain nothing: the race ends before all prompts are answered.
    assert search["tuning_answers"] < search["tuning_answers_full"]
    page = directory.report_file.read_text()
    assert "The search, step by step" in page and "What the choice cost" in page


def test_a_rerun_of_a_race_does_nothing_again(raced: Path, ray_cluster: str) -> None:
    directory = RunDir(raced.parent / "run")
    before = {k: v for k, v in snapshot(directory.path).items() if k.startswith(HEAVY)}
    kept = directory.selection_file.read_bytes()
    run(raced, address=ray_cluster)
    after = {k: v for k, v in snapshot(directory.path).items() if k.startswith(HEAVY)}
    assert after == before
    assert directory.selection_file.read_bytes() == kept


@pytest.mark.slow
def test_a_race_gives_the_answers_of_the_grid(
    raced: Path,
    tmp_path: Path,
    ray_cluster: str,
    pico_pair: tuple[Path, Path],
    pico_reward_model: Path,
) -> None:
    grid = RunDir(
        run(recipe_of(tmp_path, pico_pair, pico_reward_model), address=ray_cluster)["output"]
    )
    directory = RunDir(raced.parent / "run")
    for alpha in (0.0, 0.5, 2.0):
        full = {r["prompt_id"]: r for r in pq.read_table(grid.responses(alpha)).to_pylist()}
        assert len(full) == NUM_PROMPTS
        for row in pq.read_table(directory.responses(alpha)).to_pylist():
            assert row == full[row["prompt_id"]]


@pytest.mark.slow
def test_a_race_that_lost_files_fills_them_in(raced: Path, ray_cluster: str) -> None:
    directory = RunDir(raced.parent / "run")
    kept = json.loads(directory.selection_file.read_text())
    lost = [directory.responses(0.5), directory.rewards("0-reward-model", 2.0)]
    tables = [pq.read_table(path) for path in lost]
    for path in lost:
        path.unlink()
    run(raced, address=ray_cluster)
    assert [pq.read_table(path) for path in lost] == tables
    # The reward model tests itself again, on other chats: its spread may differ.
    again = json.loads(directory.selection_file.read_text())
    for part in ("best_alpha", "candidates", "search", "heldout"):
        assert again[part] == kept[part]


@pytest.mark.slow
def test_written_candidates_can_be_searched_too(
    tmp_path: Path, ray_cluster: str, pico_pair: tuple[Path, Path], pico_reward_model: Path
) -> None:
    recipe = recipe_of(
        tmp_path,
        pico_pair,
        pico_reward_model,
        extrapolation={"alphas": [0.5], "max_shard_size": "20KB", "keep": "all"},
        selection={"strategy": "bracketing", "max_candidates": 3},
    )
    directory = RunDir(run(recipe, address=ray_cluster)["output"])
    search = json.loads(directory.selection_file.read_text())["search"]
    tried = [entry["alpha"] for entry in search["prompts_answered"] if entry["alpha"]]
    assert 2 <= len(tried) <= 3
    for alpha in tried:
        record = json.loads((directory.checkpoint(alpha) / "expo_ray.json").read_text())
        responses = pq.read_table(directory.responses(alpha))
        assert set(responses["weights_digest"].to_pylist()) == {record["weights_digest"]}
    resolved = directory.read_resolved()
    assert resolved["alphas"] == [0.0, *tried]


def test_the_verdict_is_ready_to_deploy(raced: Path) -> None:
    directory = RunDir(raced.parent / "run")
    text = directory.serve_config_file.read_text()
    schema = ServeDeploySchema.model_validate(yaml.safe_load(text))
    [application] = schema.applications
    assert application.import_path == f"{build_app.__module__}:{build_app.__name__}"
    arguments = AppArguments.model_validate(application.args)
    selection = json.loads(directory.selection_file.read_text())
    best = selection["best_alpha"]
    expected = directory.checkpoint(best) if best else yaml.safe_load(raced.read_text())["aligned"]
    assert arguments.model == str(expected)
    assert build_app(arguments) is not None
    assert f"serve deploy {directory.serve_config_file}" in directory.report_file.read_text()
