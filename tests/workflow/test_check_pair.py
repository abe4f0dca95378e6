"""A run asks whether the pair is fit before it generates anything."""

from __future__ import annotations

import io
import json
import shutil
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from safetensors.torch import load_file, save_file

from expo_ray.cli.select_command import render_result
from expo_ray.errors import WorkError
from expo_ray.progress import NullProgress
from expo_ray.workflow import stages
from expo_ray.workflow.inputs import prepare_models
from expo_ray.workflow.recipe_file import load_recipe
from expo_ray.workflow.run import run
from expo_ray.workflow.run_dir import RunDir
from tests.pico import save_pair
from tests.workflow.test_run import write_recipe

Pair = tuple[Path, Path]


@pytest.fixture
def unrelated(pico_pair: Pair, tmp_path: Path) -> Pair:
    return save_pair(tmp_path / "other", seed=5)[0], pico_pair[1]


def test_unrelated_models_are_kept_as_they_are_before_anything_is_generated(
    ray_cluster: str, unrelated: Pair, pico_reward_model: Path, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path, unrelated, pico_reward_model)
    for _ in range(2):
        result = run(recipe, address=ray_cluster)
        selection = result["selection"]
        assert (selection["verdict"], selection["best_alpha"]) == ("keep-aligned", 0.0)
        assert [c["alpha"] for c in selection["candidates"]] == [0.0]
        assert "unrelated" in selection["reason"]
    directory = RunDir(tmp_path / "run")
    assert json.loads(directory.selection_file.read_text()) == selection
    assert not (directory.path / "responses").exists()
    assert not directory.checkpoints.exists()
    steps = " ".join(f"{step['what']} {step['command']}" for step in result["next"])
    assert "--allow-unfit" in steps and "expo-ray serve" in steps
    page = directory.report_file.read_text()
    assert "Keep the aligned model" in page and "unrelated" in page
    for part in ("The candidates", "What stood guard", "How to read", "held-out prompts"):
        assert part not in page
    console = Console(file=io.StringIO(), width=200)
    render_result(console, result)
    printed = console.file.getvalue()
    assert "not fit" in printed and "Candidates on" not in printed


def test_broken_weights_end_a_run(
    ray_cluster: str, pico_pair: Pair, pico_reward_model: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(pico_pair[1], broken)
    shard = next(broken.glob("*.safetensors"))
    tensors = load_file(shard)
    next(iter(tensors.values())).view(-1)[3] = float("nan")
    save_file(tensors, shard, {"format": "pt"})
    recipe = write_recipe(tmp_path, (pico_pair[0], broken), pico_reward_model)
    with pytest.raises(WorkError, match="not fit") as caught:
        run(recipe, address=ray_cluster)
    assert "NaN" in str(caught.value.got)
    directory = RunDir(tmp_path / "run")
    assert not directory.selection_file.exists() and not directory.diagnosis_file.exists()


def test_they_may_be_asked_for_and_are_read_once(
    ray_cluster: str,
    unrelated: Pair,
    pico_reward_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = {"alphas": [0.5], "allow_unfit": True, "output_dtype": "float32"}
    recipe = load_recipe(
        write_recipe(tmp_path, unrelated, pico_reward_model, extrapolation=settings)
    )
    directory = RunDir(recipe.output)
    with directory.claim(recipe_text="", digest=recipe.digest()), ExitStack() as stack:
        this = stages.Run(
            recipe=recipe,
            directory=directory,
            address=ray_cluster,
            progress=NullProgress(),
            stack=stack,
        )
        prepare_models(this)
        assert not stages.check_pair(this)
        written = directory.diagnosis_file.stat().st_mtime_ns
        forbidding = recipe.extrapolation.model_copy(update={"allow_unfit": False})
        before = replace(this, recipe=recipe.model_copy(update={"extrapolation": forbidding}))
        stages.keep_aligned(before, stages.check_pair(before))
        # Its verdict does not count as a finished sweep.
        assert not stages.check_pair(this)
        stages.write_candidates(this)
        # Answers that were allowed once are not thrown away by a rerun that does not allow them.
        directory.responses(0.0).parent.mkdir()
        directory.responses(0.0).touch()
        assert not stages.check_pair(before)
        monkeypatch.setattr(stages, "decide", lambda run: {"warnings": ["another"]})
        warnings = stages.choose(this)["warnings"]
        assert "unrelated" in warnings[0] and warnings[1:] == ["another"]
    assert (directory.checkpoint(0.5) / "expo_ray.json").exists()
    assert json.loads(directory.diagnosis_file.read_text())["fit"] is False
    assert directory.diagnosis_file.stat().st_mtime_ns == written
