"""What the report says of an alpha for each part of the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from expo_ray.reports import parts_sentence, write_report
from expo_ray.reports.provenance import next_steps
from expo_ray.reports.run_files import RunFiles
from tests.reports.page import Page
from tests.reports.run_directory import RunDirectory

ALPHAS = {
    "attention.first": 1.5,
    "attention.last": 4.25,
    "embeddings": 0.5,
    "mlp.first": 3.0,
    "mlp.last": 2.0,
    "norms": 0.125,
}
COMPARED = {
    "gain": 0.06,
    "ci_low": 0.02,
    "ci_high": 0.1,
    "p_value": 0.004,
    "num_pairs": 100,
    "stopped_by": [],
    "is_better": True,
    "reason": "more reward than the uniform alpha on held-out prompts",
}
WORSE = {
    "gain": -0.01,
    "ci_low": -0.05,
    "ci_high": 0.03,
    "is_better": False,
    "reason": "no gain over the uniform alpha that held-out prompts confirm <i>",
}


def searched(heldout: dict[str, Any] | None) -> dict[str, Any]:
    uniform = {"alphas": dict.fromkeys(ALPHAS, 3.0), "gain": 0.34, "stopped_by": []}
    stopped = {"alphas": ALPHAS, "gain": 0.9, "stopped_by": ["length-ratio"]}
    best = {"alphas": ALPHAS, "gain": 0.41, "stopped_by": []}
    return {
        "uniform_alpha": 3.0,
        "num_trials": 3,
        "is_better": bool(heldout and heldout["is_better"]),
        "reason": heldout["reason"] if heldout else "the uniform alpha gained most",
        "best": {"alphas": ALPHAS, "rules": {}, "weights_digest": "", "tuning_gain": 0.41},
        "heldout": heldout,
        "trials": [uniform, stopped, best],
        "cost": {"num_responses": 12345, "completion_tokens": 678901},
    }


def written(tmp_path: Path) -> RunDirectory:
    run = RunDirectory(tmp_path / "run", num_prompts=20)
    run.write_responses()
    run.write_records(3.0)
    return run


def report(tmp_path: Path, heldout: dict[str, Any] | None) -> tuple[RunDirectory, Page]:
    run = written(tmp_path)
    (run.path / "alpha_rules.yaml").write_text('rules:\n- {match: "*", alpha: 3}\n')
    run.write_selection(verdict="extrapolate", best_alpha=3.0, adaptive=searched(heldout))
    return run, Page(write_report(run.path))


def test_rules_that_are_better_are_told_with_their_commands(tmp_path: Path) -> None:
    run, page = report(tmp_path, COMPARED)
    assert (
        "An alpha for each part of the model is better: the best of 3 trials raised the mean reward"
        in page.text
    )
    assert "over the uniform alpha 3 on 100 held-out prompts" in page.text
    assert "guards stopped 1 of its 3 trials" in page.text
    assert "12,345 further answers with 678,901 generated tokens" in page.text
    for cells in ("attention 1.5 4.25", "embeddings, head and the rest 0.5", "MLP 3 2"):
        assert cells in page.text
    assert [0.06, 0.02, 0.1] in page.rows
    rules = run.path / "alpha_rules.yaml"
    assert f"OUTPUT --alpha-rules {rules}" in page.text
    assert f"--initial /models/initial --alpha-rules {rules}" in page.text


@pytest.mark.parametrize(
    ("heldout", "words"),
    [
        (COMPARED | WORSE, "did not prove better: the best of 3 trials changed the mean reward"),
        (None, "was not found to be better than the uniform alpha 3: none of 3 trials had"),
    ],
)
def test_rules_that_are_not_better_are_told_without_commands(
    tmp_path: Path, heldout: dict[str, Any] | None, words: str
) -> None:
    run, page = report(tmp_path, heldout)
    assert words in page.text
    assert "<i>" not in page.html
    assert "alpha-rules" not in page.text
    commands = [step.command for step in next_steps(RunFiles.read(run.path, tables=False))]
    assert not any("alpha_rules" in command for command in commands)


def test_without_a_search_nothing_is_said(tmp_path: Path) -> None:
    run = written(tmp_path)
    run.write_selection(verdict="extrapolate", best_alpha=3.0)
    assert "An alpha for each part" not in Page(write_report(run.path)).text
    assert parts_sentence({"candidates": []}) is None


def test_thoughts_are_reported_apart(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run", num_prompts=20)
    run.write_responses()
    run.write_rewards("0-reward-model", noise=1.0, bend=1.0)
    selection = run.write_selection(verdict="extrapolate", best_alpha=3.0)
    for candidate in selection["candidates"]:
        candidate["mean_thought_tokens"] = 321.0
    (run.path / "selection.json").write_text(json.dumps(selection))
    file = run.path / "responses" / "alpha-3.parquet"
    table = pq.read_table(file)
    told = [("thought", pa.array(["hm"] * 20)), ("thought_tokens", pa.array([3] * 20))]
    for name, column in told:
        table = table.set_column(table.column_names.index(name), name, column)
    pq.write_table(table, file)
    page = Page(write_report(run.path))
    assert f"{selection['candidates'][0]['mean_tokens']:.1f} after 321.0 of thought" in page.text
    tokens = {row["completion_tokens"] - 3 for row in table.to_pylist()}
    assert any(f"{number} tokens after 3 of thought" in page.text for number in tokens)
