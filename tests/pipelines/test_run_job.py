"""The pipeline as a submitted job, on a real head node with its job server."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.head_node import RAY, head_node
from tests.workflow.test_run import write_recipe

ROOT = Path(__file__).resolve().parents[2]


def test_the_entry_point_tells_a_wrong_request_as_one_object() -> None:
    entry = [sys.executable, str(ROOT / "pipelines" / "run.py"), "absent.yaml"]
    result = subprocess.run(entry, capture_output=True, text=True, timeout=60)
    assert result.returncode == 2, result.stderr
    error = json.loads(result.stdout)["error"]
    assert (error["kind"], error["where"]) == ("config", "absent.yaml")


@pytest.fixture
def head(tmp_path: Path) -> Iterator[dict[str, str]]:
    with head_node(tmp_path) as environment:
        yield environment


@pytest.mark.ray
@pytest.mark.timeout(300)
def test_the_pipeline_runs_as_a_submitted_job(
    head: dict[str, str], tmp_path: Path, pico_pair: tuple[Path, Path], pico_reward_model: Path
) -> None:
    recipe = write_recipe(tmp_path, pico_pair, pico_reward_model, loadtest=None)
    submit = [
        str(RAY),
        "job",
        "submit",
        "--working-dir",
        str(ROOT / "pipelines"),
        "--",
        sys.executable,
        "run.py",
        str(recipe),
    ]
    result = subprocess.run(submit, env=head, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
    selection = json.loads((tmp_path / "run" / "selection.json").read_text())
    assert selection["num_tuning"] + selection["num_heldout"] == 8
    assert (tmp_path / "run" / "report.html").exists()

    relative = [*submit, "--set", "output=somewhere"]
    refused = subprocess.run(relative, env=head, capture_output=True, text=True)
    assert refused.returncode != 0
    assert "absolute path that all nodes share" in refused.stdout
