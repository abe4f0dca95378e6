"""A finished run at its trackers: MLflow's local store, W&B offline, and trackers that fail."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from expo_ray.extras import EXTRAS
from expo_ray.progress import NullProgress
from expo_ray.redaction import redacted_settings
from expo_ray.reports import write_report
from expo_ray.workflow import tracking
from expo_ray.workflow.run_dir import RunDir
from expo_ray.workflow.trackers import TRACKERS, TrackerName
from tests.reports.run_directory import ALPHAS, RunDirectory

SECRET = "a-secret-of-this-user"
JUDGE = f"judge:https://me:{SECRET}-too@judge.example/v1#m"


class Said(NullProgress):
    """Keeps what a user is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def message(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    """A finished run whose recipe holds a password, and a token of the environment."""
    path = RunDirectory(tmp_path / "run", num_prompts=20).write_all()
    monkeypatch.setenv("MY_TOKEN", SECRET)
    resolved = json.loads((path / "resolved.json").read_text())
    resolved["recipe"] |= {"reward_models": [JUDGE], "prompts": {"path": f"x/{SECRET}.jsonl"}}
    resolved["recipe"]["track"] = ["mlflow"]
    (path / "resolved.json").write_text(json.dumps(resolved))
    (path / "recipe.yaml").write_text(f"name: quickstart\nreward_models: ['{JUDGE}']\n")
    (path / "report.html").write_text(f"<html>{JUDGE}</html>")
    return RunDir(path)


@pytest.fixture
def mlflow_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path}/mlruns")
    return tmp_path / "mlruns"


@pytest.fixture
def wandb_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "offline").mkdir()
    monkeypatch.setenv("WANDB_MODE", "offline")
    for kind in ("DIR", "DATA_DIR", "CACHE_DIR", "CONFIG_DIR"):
        monkeypatch.setenv(f"WANDB_{kind}", str(tmp_path / "offline"))
    return tmp_path / "offline"


def log(directory: RunDir, *names: TrackerName) -> list[str]:
    """Log and return what was said; a failure fails the test."""
    said = Said()
    assert not tracking.log_run(directory, names, said), said.lines
    return said.lines


def files_with(folder: Path, text: str) -> Iterator[Path]:
    for path in folder.rglob("*"):
        if path.is_file() and text.encode() in path.read_bytes():
            yield path


def test_mlflow_gets_recipe_digests_figures_and_report(run_dir: RunDir, mlflow_store: Path) -> None:
    from mlflow import MlflowClient

    assert log(run_dir, "mlflow") == ["MLflow: logged"]
    client = MlflowClient(f"file:{mlflow_store}")
    [experiment] = [e for e in client.search_experiments() if e.name == "expo-ray"]
    [run] = client.search_runs([experiment.experiment_id])
    selection = json.loads(run_dir.selection_file.read_text())
    assert (run.info.run_name, run.info.status) == ("quickstart", "FINISHED")
    assert run.data.params["name"] == "quickstart"
    assert "track" not in run.data.params
    resolved = run_dir.read_resolved()
    assert run.data.tags["recipe_digest"] == resolved["recipe_digest"]
    assert run.data.tags["weights_digest.alpha-3"].isalnum()
    assert run.data.tags["verdict"] == selection["verdict"] == "extrapolate"
    assert run.data.metrics["best_alpha"] == selection["best_alpha"]
    assert run.data.metrics["heldout_gain"] == pytest.approx(selection["heldout"]["gain"])

    def history(name: str) -> list[float]:
        found = client.get_metric_history(run.info.run_id, name)
        return [m.value for m in sorted(found, key=lambda m: m.step)]

    assert history("candidates/alpha") == list(ALPHAS)
    assert history("candidates/mean_reward") == pytest.approx(
        [c["mean_reward"] for c in selection["candidates"]]
    )
    # Alpha 0 has no guards.
    assert len(history("candidates/guard.length-ratio.tuning")) == len(ALPHAS) - 1
    summary = json.loads((run_dir.loadtest("aligned") / "summary.json").read_text())
    assert history("loadtest/aligned/request_throughput") == pytest.approx(
        [point["request_throughput"] for point in summary["points"]]
    )
    names = {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
    assert names == {"report.html", "recipe.yaml", "selection.json"}
    assert not list(files_with(mlflow_store, SECRET))
    assert list(files_with(mlflow_store, "***@judge.example"))


def test_a_rerun_continues_the_same_run(run_dir: RunDir, mlflow_store: Path) -> None:
    from mlflow import MlflowClient

    log(run_dir, "mlflow")
    kept = json.loads(run_dir.tracking_file.read_text())
    assert log(run_dir, "mlflow") == ["MLflow: already logged"]
    resolved = run_dir.read_resolved()
    resolved["recipe"] |= {"name": "renamed", "seed": 7}
    run_dir.resolved_file.write_text(json.dumps(resolved))
    assert log(run_dir, "mlflow") == ["MLflow: logged"]
    again = json.loads(run_dir.tracking_file.read_text())
    assert again["mlflow"]["run_id"] == kept["mlflow"]["run_id"]
    client = MlflowClient(f"file:{mlflow_store}")
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert [run.info.run_id for run in runs] == [kept["mlflow"]["run_id"]]
    # What was said first stays; what is new comes in.
    assert (runs[0].data.params["name"], runs[0].data.params["seed"]) == ("quickstart", "7")


def test_wandb_gets_the_same_offline(run_dir: RunDir, wandb_store: Path) -> None:
    assert log(run_dir, "wandb") == ["Weights & Biases: logged"]
    run_id = json.loads(run_dir.tracking_file.read_text())["wandb"]["run_id"]
    [written] = wandb_store.rglob("*.wandb")
    assert written.stem == f"run-{run_id}"
    content = written.read_bytes()
    for text in ("candidates/mean_reward", "loadtest/aligned/request_throughput", "best_alpha"):
        assert text.encode() in content
    assert run_dir.read_resolved()["recipe_digest"].encode() in content
    assert list(files_with(wandb_store, "***@judge.example")), "the artifact waits for its upload"
    assert not list(files_with(wandb_store, SECRET))
    assert log(run_dir, "wandb") == ["Weights & Biases: already logged"]
    resolved = run_dir.read_resolved()
    run_dir.resolved_file.write_text(json.dumps({**resolved, "recipe_digest": "another"}))
    log(run_dir, "wandb")
    assert {path.stem for path in wandb_store.rglob("*.wandb")} == {f"run-{run_id}"}


def test_a_tracker_that_cannot_be_reached_is_a_warning_until_it_can(
    run_dir: RunDir, mlflow_store: Path, wandb_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    said = Said()
    assert tracking.log_run(run_dir, ("mlflow", "wandb"), said)
    warning, logged = said.lines
    assert warning.startswith("warning: not logged to MLflow: MlflowException: ")
    assert logged == "Weights & Biases: logged"
    page = write_report(run_dir.path).read_text()
    assert "This run was not logged to mlflow" in page and "not logged to wandb" not in page

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{mlflow_store}")
    tracking.forget_failures(run_dir)
    assert "not logged to" not in write_report(run_dir.path).read_text()
    assert log(run_dir, "mlflow", "wandb") == ["MLflow: logged", "Weights & Biases: already logged"]


def test_a_server_that_never_answers_is_left(
    run_dir: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "LIMIT_SECONDS", 1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.getsockname()[1]}")
        said = Said()
        assert tracking.log_run(run_dir, ("mlflow",), said)
    assert said.lines == ["warning: not logged to MLflow: no end within 1 s"]


def test_a_plan_says_where_runs_are_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"https://me:{SECRET}@mlflow.example")
    monkeypatch.delenv("WANDB_BASE_URL", raising=False)
    told = tracking.describe_trackers(["mlflow", "wandb"])
    assert told.startswith("MLflow (https://***@mlflow.example), Weights & Biases (wandb.ai, ")


def test_every_tracker_has_its_name_and_its_extra() -> None:
    names: tuple[Any, ...] = get_args(TrackerName)
    assert set(names) == TRACKERS.keys() <= EXTRAS.keys()


def test_nothing_is_imported_from_the_folder_of_the_call(
    run_dir: RunDir, mlflow_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted = tmp_path / "planted"
    planted.mkdir()
    (planted / "mlflow.py").write_text("raise SystemExit('planted')")
    monkeypatch.chdir(planted)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    assert log(run_dir, "mlflow") == ["MLflow: logged"]


def test_a_value_with_the_name_of_a_secret_is_told_to_nobody() -> None:
    recipe = {"generators": {"engine_args": {"hf_token": "abcd1234efgh5678", "dtype": "auto"}}}
    told = tracking._texts(tracking._flat("", recipe))
    assert told == {
        "generators.engine_args.hf_token": "***",
        "generators.engine_args.dtype": "auto",
    }
    text = "engine_args: {hf_token: abcd1234, dtype: auto}\n  api_key: 'x y'\nmax_tokens: 32\n"
    masked = redacted_settings(text)
    assert "abcd1234" not in masked and "'x" not in masked
    assert "dtype: auto" in masked and "max_tokens: 32" in masked
