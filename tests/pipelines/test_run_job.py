"""The pipeline as a submitted job, on a real head node with its job server."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from ray._private.ray_constants import get_runtime_env_default_excludes
from ray._private.runtime_env.packaging import create_package

from expo_ray.workflow.recipe_templates import new_recipe
from tests.head_node import RAY, head_node
from tests.workflow.test_run import EXPO_RAY, write_recipe

ROOT = Path(__file__).resolve().parents[2]
UPLOAD_BYTES = 10_000_000


def test_the_entry_point_tells_a_wrong_request_as_one_object() -> None:
    entry = [sys.executable, str(ROOT / "pipelines" / "run.py"), "absent.yaml"]
    result = subprocess.run(entry, capture_output=True, text=True, timeout=60)
    assert result.returncode == 2, result.stderr
    error = json.loads(result.stdout)["error"]
    assert (error["kind"], error["where"]) == ("config", "absent.yaml")


def test_what_a_job_uploads_is_small(tmp_path: Path) -> None:
    package = tmp_path / "package.zip"
    # What Ray itself does with `--working-dir .`: .gitignore counts, .git and .venv stay here.
    create_package(
        str(ROOT), package, include_gitignore=True, excludes=get_runtime_env_default_excludes()
    )
    with zipfile.ZipFile(package) as content:
        names = content.namelist()
    assert package.stat().st_size < UPLOAD_BYTES, sorted(names)
    assert {"pipelines/run.py", "expo_ray/workflow/run.py"} <= set(names)
    assert not any(name.startswith((".git/", ".venv/", "runs/")) for name in names)


@pytest.fixture
def head(tmp_path: Path) -> Iterator[dict[str, str]]:
    with head_node(tmp_path) as environment:
        yield environment


def submission(folder: Path, pair: tuple[Path, Path], reward_model: Path) -> list[str]:
    """The line of docs/recipes.md; models that are there already keep it short."""
    line = f"{RAY} job submit --working-dir . -- python pipelines/run.py"
    line += f" pipelines/recipes/quickstart.yaml --set output={folder / 'run'}"
    models = yaml.safe_load(write_recipe(folder, pair, reward_model).read_text())
    changes = {key: models[key] for key in ("initial", "aligned", "reward_models", "prompts")}
    changes["reward_models"] = changes["reward_models"][:1]
    changes |= {"lab": None, "loadtest": None, "sampling.max_tokens": 6}
    changes |= {"extrapolation.alphas": [0.5], "extrapolation.max_shard_size": "20KB"}
    for key, value in changes.items():
        line += f" --set {key}={json.dumps(value, separators=(',', ':'))}"
    return line.split()


def of_command(submit: list[str]) -> list[str]:
    """The same by `expo-ray submit`."""
    return [str(EXPO_RAY), "submit", *submit[submit.index("--") + 3 :], "--json"]


def ran(
    command: list[str], head: dict[str, str], folder: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, env=head, cwd=folder, capture_output=True, text=True)


@pytest.mark.ray
@pytest.mark.timeout(400)
def test_the_pipeline_runs_as_a_submitted_job(
    head: dict[str, str], tmp_path: Path, pico_pair: tuple[Path, Path], pico_reward_model: Path
) -> None:
    submit = submission(tmp_path, pico_pair, pico_reward_model)
    result = ran(submit, head)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
    selection = json.loads((tmp_path / "run" / "selection.json").read_text())
    assert selection["num_tuning"] + selection["num_heldout"] == 8
    assert (tmp_path / "run" / "report.html").exists()

    # The command does the same; the run stands, so that nothing is done again.
    again = ran(of_command(submit), head)
    assert again.returncode == 0, again.stderr
    told = json.loads(again.stdout)
    assert (told["status"], told["output"]) == ("SUCCEEDED", str(tmp_path / "run"))
    assert "generation: already done" in again.stderr, "the log of the job"

    # So does an installed expo_ray, in a folder that holds no more than the recipe.
    plain = tmp_path / "plain"
    (plain / "runs").mkdir(parents=True)
    (plain / "quickstart.yaml").write_text(new_recipe("quickstart"))
    # Ray uploads at most 500 MB: earlier results stay here.
    with (plain / "runs" / "weights").open("wb") as large:
        large.truncate(600_000_000)
    words = [word.replace("pipelines/recipes/", "") for word in of_command(submit)]
    installed = ran(words, head, folder=plain)
    assert installed.returncode == 0, installed.stderr
    told = json.loads(installed.stdout)
    assert told["entrypoint"].startswith("expo-ray run quickstart.yaml --set ")
    assert "generation: already done" in installed.stderr


@pytest.mark.slow
def test_a_refused_job_says_why(
    head: dict[str, str], tmp_path: Path, pico_pair: tuple[Path, Path], pico_reward_model: Path
) -> None:
    submit = submission(tmp_path, pico_pair, pico_reward_model)
    directory = tmp_path / "run"
    # Of a request that ended before its work began nothing is kept: this one has responses.
    (directory / "responses").mkdir(parents=True)
    (directory / "responses" / "alpha-0.parquet").touch()
    (directory / "resolved.json").write_text(json.dumps({"recipe_digest": "another"}))
    refused = ran(of_command(submit), head)
    assert refused.returncode == 2, refused.stderr
    assert json.loads(refused.stdout)["error"]["kind"] == "request"
    assert "the result of another request" in refused.stderr

    refused = ran([*submit, "--set", "output=somewhere"], head)
    assert refused.returncode != 0
    assert "absolute path that all nodes share" in refused.stdout
