"""Searches with a gate on a set of prompts, run for real: a laboratory whose sums can be checked.

Its reward model likes manners more than right sums, so that the best candidates lose the gate.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from expo_ray.lab import LabSettings
from expo_ray.lab.data import eval_prompts
from expo_ray.lab.studies.records import SUMS
from expo_ray.workflow.recipe_check import check_recipe
from expo_ray.workflow.run import run
from expo_ray.workflow.run_dir import RunDir
from tests.workflow.test_run import snapshot

NUM_MAIN, NUM_SUMS = 120, 120
LAB: dict[str, Any] = {
    **SUMS,
    "num_eval_prompts": 2000,
    "truth_weight": 0.25,
    "num_reward_pairs": 1600,
    "damaged_share": 0.0,
    "guard_reward_model": False,
}
ALPHAS = {"racing": [0.25, 1.0, 2.0], "expanding": [0.5, 1.0]}
MARGINS = {"racing": 0.05, "expanding": 0.9}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gated")
    rows = eval_prompts(LabSettings(**LAB))[NUM_MAIN : NUM_MAIN + NUM_SUMS]
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def write_recipe(folder: Path, strategy: str) -> Path:
    prompts = {"path": "sums.jsonl", "reward_models": ["check:number"]}
    document = {
        "name": strategy,
        "output": f"run-{strategy}",
        "lab": LAB,
        "lab_cache": "lab",
        "prompts": {
            "main": {"limit": NUM_MAIN},
            "sums": {**prompts, "role": "gate"},
            "again": {**prompts, "limit": 20, "role": "report"},
        },
        "extrapolation": {"alphas": ALPHAS[strategy]},
        "sampling": {"max_tokens": 24},
        "selection": {
            "strategy": strategy,
            "max_alpha": 2.0,
            "no_worse_than": {"sums": MARGINS[strategy]},
        },
        "loadtest": None,
    }
    path = folder / f"{strategy}.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


@pytest.mark.parametrize("strategy", ALPHAS)
def test_a_search_asks_the_gate_of_whom_it_confirms(
    strategy: str, folder: Path, ray_cluster: str
) -> None:
    recipe = write_recipe(folder, strategy)
    assert [gate["name"] for gate in check_recipe(recipe)["gates"]] == ["sums"]
    done = run(recipe, address=ray_cluster)
    selection, directory = done["selection"], RunDir(done["output"])
    asked = [gate for gate in selection["gates"] if gate["prompts"] == "sums"]
    sequence = {one["alpha"]: one for one in selection["heldout_sequence"]}
    # Only who gained on held-out prompts with no guard against it is asked, and all of these.
    assert asked
    assert [gate["alpha"] for gate in asked] == [
        alpha
        for alpha, one in sequence.items()
        if one["is_significant"] and {*one["stopped_by"]} <= {"no-worse-than sums"}
    ]
    for gate in asked:
        assert (gate["num_prompts"], gate["margin"]) == (NUM_SUMS, MARGINS[strategy])
        stopped = "no-worse-than sums" in sequence[gate["alpha"]]["stopped_by"]
        assert stopped is (gate["verdict"] != "no-worse")
    assert {g["verdict"] for g in selection["gates"] if g["prompts"] == "again"} == {None}
    last = asked[-1]
    if selection["verdict"] == "extrapolate":
        assert (selection["best_alpha"], last["verdict"]) == (last["alpha"], "no-worse")
    if selection["heldout_sequence"][-1]["outcome"] == "stopped":
        # Nobody smaller is left, not even who was dropped on the way for standing behind.
        smaller = [c for c in selection["candidates"] if 0 < c["alpha"] < last["alpha"]]
        assert not any(c["eligible"] or "hardly" in (c["dropped"] or "") for c in smaller)
    _answers_are_theirs_alone(directory, [g["alpha"] for g in asked])
    page = directory.report_file.read_text()
    assert "What must not be lost" in page and f"sums, alpha {last['alpha']:g}" not in page
    before = snapshot(directory.path / "prompt_sets")
    assert run(recipe, address=ray_cluster)["selection"]["gates"] == selection["gates"]
    assert snapshot(directory.path / "prompt_sets") == before


def _answers_are_theirs_alone(directory: RunDir, alphas: list[float]) -> None:
    """The sets are answered by the aligned model and by those that were asked, each once."""
    for name, size in (("sums", NUM_SUMS), ("again", 20)):
        inner = directory.prompt_set(name)
        files = sorted(inner.path.glob("responses/*.parquet"))
        assert files == sorted(inner.responses(alpha) for alpha in (0.0, *alphas))
        for file in files:
            table = pq.read_table(file, columns=["prompt_id", "split"])
            assert len(set(table["prompt_id"].to_pylist())) == table.num_rows == size
            assert set(table["split"].to_pylist()) == {"heldout"}
