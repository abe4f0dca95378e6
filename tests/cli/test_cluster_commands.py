"""Commands that need Ray, run as a user runs them, on the session's cluster."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests import samples
from tests.cli.test_main import json_of, run


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": f"Count to {n}."}) for n in range(6)))
    return path


@pytest.mark.slow
@pytest.mark.usefixtures("on_cluster")
def test_generate_score_loadtest(
    pico_pair: tuple[Path, Path], pico_reward_model: Path, prompts: Path, tmp_path: Path
) -> None:
    initial, aligned = pico_pair
    responses, rewards = tmp_path / "responses.parquet", tmp_path / "rewards.parquet"
    live = ("--initial", initial, "--alpha", "0.5")
    wanted = ("--prompts", prompts, "--output", responses, "--max-tokens", "4", "--json")
    generated = json_of(run("generate", aligned, *live, *wanted))
    assert generated["num_generated"] == 6
    assert pq.read_table(responses)["alpha"].to_pylist() == [0.5] * 6
    again = json_of(run("generate", aligned, *live, *wanted))
    assert (again["num_generated"], again["num_resumed"]) == (0, 6)
    scored = json_of(
        run("score", responses, "--reward-model", pico_reward_model, "--output", rewards, "--json")
    )
    assert scored["num_scored"] == 6
    assert pq.read_table(rewards)["reward"].null_count == 0
    output = tmp_path / "loadtest"
    load = ("--prompts", prompts, "--output", output, "--concurrency", "2", "--num-requests", "4")
    measured = json_of(run("loadtest", aligned, *load, "--max-tokens", "4", "--json"))
    assert measured == json.loads((output / "summary.json").read_text())


@pytest.mark.slow
@pytest.mark.usefixtures("on_cluster")
def test_select_and_report(
    pico_pair: tuple[Path, Path], pico_reward_model: Path, prompts: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "run"
    command = ("select", *pico_pair, "--prompts", prompts, "--output", directory, "--alpha", "0.5")
    command = (*command, "--reward-model", pico_reward_model, "--max-tokens", "4")
    selection = json_of(run(*command, "--json"))["selection"]
    assert selection == json.loads((directory / "selection.json").read_text())
    (directory / "report.html").unlink()
    assert json_of(run("report", directory, "--json"))["report"] == str(directory / "report.html")
    assert (directory / "report.html").exists()
    human = run(*command)
    assert human.returncode == 0, human.stderr
    assert "already done" in human.stderr
    assert "Keep the aligned model" in human.stdout


def test_judgements_give_their_numbers(tmp_path: Path) -> None:
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(samples.annotations([2, 2, 1, 1.25])))
    metrics = json_of(run("evaluate", "alpaca-eval", "--annotations", path, "--json"))
    assert (metrics["n_wins"], metrics["n_wins_base"], metrics["n_total"]) == (2, 2, 4)
    assert metrics["win_rate"] == pytest.approx(56.25)
