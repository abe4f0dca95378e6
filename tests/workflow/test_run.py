"""A whole run on pico checkpoints: every file of the run directory, resume, kill and refusal."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import yaml

from expo_ray.errors import ConfigError, VerifyError
from expo_ray.extrapolation import extrapolate
from expo_ray.progress import NullProgress
from expo_ray.serving import generator_replicas
from expo_ray.serving.launching import application
from expo_ray.workflow import candidates, stages
from expo_ray.workflow.inputs import prepare_models
from expo_ray.workflow.recipe_file import load_recipe
from expo_ray.workflow.run import run
from expo_ray.workflow.run_dir import RunDir
from tests.checkpoints.hub_server import hub_server

EXPO_RAY = Path(sys.executable).with_name("expo-ray")


def write_recipe(
    folder: Path, pair: tuple[Path, Path], reward_model: Path, **changes: object
) -> Path:
    prompts = folder / "prompts.jsonl"
    lines = [json.dumps({"prompt": f"Tell me about number {n}."}) for n in range(8)]
    prompts.write_text("\n".join(lines))
    document = {
        "name": "pico",
        "output": str(folder / "run"),
        "initial": str(pair[0]),
        "aligned": str(pair[1]),
        "reward_models": [str(reward_model), "implicit:beta=0.1"],
        "prompts": {"path": str(prompts)},
        "extrapolation": {"alphas": [0.5, 2.0], "max_shard_size": "20KB", "keep": "all"},
        "sampling": {"max_tokens": 6},
        "loadtest": {"concurrency": [1, 2], "num_requests": 4, "max_tokens": 4, "rounds": 2},
        **changes,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def snapshot(folder: Path) -> dict[str, int]:
    return {
        str(p.relative_to(folder)): p.stat().st_mtime_ns
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def weights(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name not in ("expo_ray.json", "README.md")
    }


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory,
    ray_cluster: str,
    pico_pair: tuple[Path, Path],
    pico_reward_model: Path,
) -> Path:
    folder = tmp_path_factory.mktemp("run")
    recipe = write_recipe(folder, pico_pair, pico_reward_model)
    result = run(recipe, address=ray_cluster)
    assert result["output"] == str(folder / "run")
    return recipe


def test_a_run_leaves_everything_it_promises(finished: Path) -> None:
    directory = finished.parent / "run"
    assert (directory / "recipe.yaml").read_text() == finished.read_text()
    selection = json.loads((directory / "selection.json").read_text())
    assert [c["alpha"] for c in selection["candidates"]] == [0.0, 0.5, 2.0]
    assert selection["verdict"] in ("extrapolate", "keep-aligned")
    for name in ("alpha-0", "alpha-0.5", "alpha-2"):
        responses = pq.read_table(directory / "responses" / f"{name}.parquet")
        assert responses.num_rows == 8
        assert len(set(responses["weights_digest"].to_pylist())) == 1
        for label in ("0-reward-model", "1-implicit-beta-0.1"):
            assert pq.read_table(directory / "rewards" / label / f"{name}.parquet").num_rows == 8
    # What batching alone does to the scores of the first reward model bounds every gain.
    side = json.loads((directory / "rewards/0-reward-model/alpha-0.self_test.json").read_text())
    assert selection["measurement_spread"] == side["spread"] < 1e-4
    assert selection["settings"]["min_gain"] >= side["spread"]
    compared = json.loads((directory / "loadtest" / "compared.json").read_text())
    for label in (compared["baseline"], compared["candidate"]):
        summary = json.loads((directory / "loadtest" / label / "summary.json").read_text())
        assert [p["concurrency"] for p in summary["points"]] == [1, 2]
        for point in summary["points"]:
            assert point["completed"] + point["failed"] == 4
            # Untrained models may end at once; nothing else may go wrong.
            assert set(point["errors"]) <= {"empty"}
    comparison = json.loads((directory / "loadtest" / "comparison.json").read_text())
    assert comparison["rounds"] == 2
    assert [point["concurrency"] for point in comparison["points"]] == [1, 2]
    assert "</html>" in (directory / "report.html").read_text()
    resolved = json.loads((directory / "resolved.json").read_text())
    assert resolved["initial"]["files"] and resolved["recipe_digest"]
    assert resolved["generation"]["engine"] == "transformers"
    assert ("precision" in resolved["generation"]) != torch.cuda.is_available()


def test_responses_are_of_the_written_checkpoints(finished: Path) -> None:
    directory = finished.parent / "run"
    for name in ("alpha-0.5", "alpha-2"):
        record = json.loads((directory / "checkpoints" / name / "expo_ray.json").read_text())
        responses = pq.read_table(directory / "responses" / f"{name}.parquet")
        assert set(responses["weights_digest"].to_pylist()) == {record["weights_digest"]}


def test_a_rerun_does_nothing_again(finished: Path, ray_cluster: str) -> None:
    directory = finished.parent / "run"
    heavy = ("checkpoints", "responses", "rewards", "loadtest")
    before = {k: v for k, v in snapshot(directory).items() if k.startswith(heavy)}
    run(finished, address=ray_cluster)
    after = {k: v for k, v in snapshot(directory).items() if k.startswith(heavy)}
    assert {k: v for k, v in after.items() if not k.endswith("README.md")} == {
        k: v for k, v in before.items() if not k.endswith("README.md")
    }


@pytest.mark.slow
def test_trackers_are_told_of_a_whole_run(
    finished: Path, ray_cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    result = run(finished, overrides=["track=[mlflow,wandb]"], address=ray_cluster)
    kept = json.loads((finished.parent / "run" / "tracking.json").read_text())
    assert [sorted(kept[name]) for name in ("mlflow", "wandb")] == [["digest", "run_id"]] * 2
    # Where nothing else is said, MLflow keeps a database in the working directory.
    logged = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db").get_run(kept["mlflow"]["run_id"])
    assert logged.data.tags["verdict"] == result["selection"]["verdict"]
    assert logged.data.params["sampling.max_tokens"] == "6"
    assert "candidates/mean_reward" in logged.data.metrics
    assert list(tmp_path.glob(f"wandb/*/run-{kept['wandb']['run_id']}.wandb"))


def test_another_recipe_in_the_same_directory_is_refused(finished: Path, ray_cluster: str) -> None:
    before = snapshot(finished.parent / "run")
    with pytest.raises(ConfigError, match="another request"):
        run(finished, overrides=["seed=1"], address=ray_cluster)
    assert snapshot(finished.parent / "run") == before


def test_a_changed_input_is_noticed(
    finished: Path, ray_cluster: str, tmp_path: Path, pico_pair: tuple[Path, Path]
) -> None:
    from tests.pico import save_pair

    resolved_file = finished.parent / "run" / "resolved.json"
    kept = resolved_file.read_bytes()
    other, _ = save_pair(tmp_path, hidden_size=16)
    resolved = json.loads(kept)
    from expo_ray.checkpoints import open_checkpoint

    resolved["initial"]["files"] = open_checkpoint(other).identity()
    resolved_file.write_text(json.dumps(resolved))
    try:
        with pytest.raises(ConfigError, match="initial checkpoint has changed"):
            run(finished, address=ray_cluster)
    finally:
        resolved_file.write_bytes(kept)


def test_candidates_served_live_leave_only_the_chosen_checkpoint(
    finished: Path,
    tmp_path: Path,
    ray_cluster: str,
    pico_pair: tuple[Path, Path],
    pico_reward_model: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = write_recipe(
        tmp_path,
        pico_pair,
        pico_reward_model,
        reward_models=[str(pico_reward_model)],
        extrapolation={"alphas": [0.5, 2.0], "max_shard_size": "20KB"},
        loadtest=None,
    )
    started: list[str] = []
    written: list[str] = []

    def start(app: Any, *, label: str, route: str | None = None) -> Any:
        started.append(label)
        return application(app, label=label, route=route)

    def write(initial: Any, aligned: Any, output: str, **more: Any) -> Any:
        if not more.get("dry_run"):
            written.append(output)
        return extrapolate(initial, aligned, output, **more)

    with monkeypatch.context() as patch:
        patch.setattr(generator_replicas, "application", start)
        patch.setattr(candidates, "extrapolate", write)
        directory = RunDir(run(path, address=ray_cluster)["output"])
    # Three candidates, the aligned model among them, on replicas that were started once.
    assert started == ["generator"]
    best = json.loads(directory.selection_file.read_text())["best_alpha"]
    assert written == ([str(directory.checkpoint(best))] if best else [])
    for alpha in (0.5, 2.0):
        record = finished.parent / "run" / "checkpoints" / f"alpha-{alpha:g}" / "expo_ray.json"
        responses = pq.read_table(directory.responses(alpha))
        digest = json.loads(record.read_text())["weights_digest"]
        assert set(responses["weights_digest"].to_pylist()) == {digest}
    with ExitStack() as stack:
        this = stages.Run(
            recipe=load_recipe(path),
            directory=directory,
            address=ray_cluster,
            progress=NullProgress(),
            stack=stack,
        )
        prepare_models(this)
        stages.keep_chosen(this, {"best_alpha": 0.5})
        assert [p.name for p in directory.checkpoints.iterdir()] == ["alpha-0.5"]
        shutil.copy(directory.responses(2.0), directory.responses(0.5))
        with pytest.raises(VerifyError, match="not the model that answered"):
            stages.keep_chosen(this, {"best_alpha": 0.5})


def test_a_run_keeps_the_commits_that_it_began_with(
    tmp_path: Path,
    pico_pair: tuple[Path, Path],
    pico_reward_model: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = write_recipe(tmp_path, ("owner/sft", "hf://owner/dpo@main"), pico_reward_model)
    recipe, directory = load_recipe(path), RunDir(tmp_path / "run")

    def pair() -> tuple[str, str]:
        with ExitStack() as stack:
            stack.enter_context(directory.claim(recipe_text="", digest=recipe.digest()))
            this = stages.Run(
                recipe=recipe,
                directory=directory,
                address="inline",
                progress=NullProgress(),
                stack=stack,
            )
            prepare_models(this)
        return this.initial, this.aligned

    with hub_server(monkeypatch) as hub:
        begun = hub.add("owner/sft", pico_pair[0]), hub.add("owner/dpo", pico_pair[1])
        pinned = tuple(f"hf://owner/{n}@{c}" for n, c in zip(("sft", "dpo"), begun, strict=True))
        assert pair() == pinned
        (directory.path / "diagnosis.json").write_text("{}")  # from now on something was made
        hub.past_commits.update(begun)
        hub.commits = {"owner/sft": "e" * 40, "owner/dpo": "f" * 40}
        assert pair() == pinned


@pytest.mark.timeout(400)
def test_a_killed_run_continues_and_ends_with_the_same_bytes(
    finished: Path,
    tmp_path: Path,
    ray_cluster: str,
    pico_pair: tuple[Path, Path],
    pico_reward_model: Path,
) -> None:
    one = [str(pico_reward_model)]
    recipe = write_recipe(tmp_path, pico_pair, pico_reward_model, reward_models=one, loadtest=None)
    # A process group of its own, so that the kill takes its Ray along as a lost machine would.
    process = subprocess.Popen(
        [str(EXPO_RAY), "run", str(recipe), "--quiet"], start_new_session=True
    )
    watched = tmp_path / "run" / "responses"
    deadline = time.monotonic() + 150
    while not watched.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert watched.exists(), "no response was ever written"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "run" / "selection.json").exists()
    run(recipe, address=ray_cluster)
    expected = weights(finished.parent / "run" / "checkpoints")
    assert weights(tmp_path / "run" / "checkpoints") == expected
    for name in ("alpha-0", "alpha-0.5", "alpha-2"):
        first = pq.read_table(finished.parent / "run" / "responses" / f"{name}.parquet")
        second = pq.read_table(tmp_path / "run" / "responses" / f"{name}.parquet")
        assert first["response"].to_pylist() == second["response"].to_pylist()
