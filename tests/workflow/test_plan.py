"""The dry run: what it says of the time, and that it does nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from expo_ray.cli.main import app
from expo_ray.errors import ConfigError
from tests.workflow.test_run import write_recipe

Pair = tuple[Path, Path]


def plan_of(*arguments: object) -> dict[str, Any]:
    result = CliRunner().invoke(app, [*map(str, arguments), "--dry-run", "--json"])
    assert result.exit_code == 0, result.output
    plan: dict[str, Any] = json.loads(result.stdout)
    return {stage["stage"]: stage for stage in plan["stages"]}["generation"]


def test_generation_time_follows_from_tokens_and_a_rate_whose_origin_is_said(
    tmp_path: Path, pico_pair: Pair, pico_reward_model: Path
) -> None:
    recipe = write_recipe(tmp_path, pico_pair, pico_reward_model, generators={"num_replicas": 2})
    before = sorted(tmp_path.rglob("*"))
    assumed = plan_of("run", recipe)
    # Alpha 0, 0.5 and 2 answer 8 prompts in up to 6 tokens.
    assert (assumed["tasks"], assumed["max_tokens_out"]) == (24, 144)
    assert (assumed["tokens_per_second"], assumed["rate_source"]) == (200, "assumed")
    assert "--tokens-per-second" in assumed["note"]
    given = plan_of("run", recipe, "--tokens-per-second", 0.01)
    assert (given["max_seconds"], given["rate_source"]) == (7200, "given")
    assert "2:00:00" in given["note"]
    assert sorted(tmp_path.rglob("*")) == before

    run = tmp_path / "run"
    (run / "responses").mkdir(parents=True)
    pq.write_table(pa.table({"completion_tokens": [5, 3]}), run / "responses/alpha-0.parquet")
    (run / "timings.json").write_text(json.dumps({"generation": 4.0}))
    measured = plan_of("run", recipe)
    assert (measured["max_seconds"], measured["rate_source"]) == (72, "measured")


def test_trackers_are_named(
    tmp_path: Path, pico_pair: Pair, pico_reward_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking:5000")
    recipe = write_recipe(tmp_path, pico_pair, pico_reward_model, track=["mlflow"])
    result = CliRunner().invoke(app, ["run", str(recipe), "--dry-run", "--json"])
    stage = json.loads(result.stdout)["stages"][-1]
    assert (stage["stage"], stage["note"]) == ("tracking", "MLflow (http://tracking:5000)")


def test_select_plans_as_run_does(
    tmp_path: Path, pico_pair: Pair, pico_reward_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_recipe(tmp_path, pico_pair, pico_reward_model)  # for its prompts
    flags = ("--prompts", tmp_path / "prompts.jsonl", "--output", tmp_path / "run", "--alpha", 2)
    before = sorted(tmp_path.rglob("*"))
    command = ("select", *pico_pair, *flags, "--max-tokens", 10)
    plan = plan_of(*command, "--tokens-per-second", 16)
    assert (plan["tasks"], plan["max_tokens_out"], plan["max_seconds"]) == (16, 160, 10)
    shown = CliRunner().invoke(app, [*map(str, command), "--dry-run"])
    assert "generation" in shown.stdout
    assert sorted(tmp_path.rglob("*")) == before
    refused = CliRunner().invoke(app, [*map(str, command), "--tokens-per-second", "16"])
    assert isinstance(refused.exception, ConfigError)
    assert refused.exception.where == "--tokens-per-second"
    assert sorted(tmp_path.rglob("*")) == before
