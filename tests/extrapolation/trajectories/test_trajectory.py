"""What a trajectory file says, which checkpoints belong together, and which do not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from expo_ray.errors import CheckpointError, ConfigError, PairError, RequestError
from expo_ray.extrapolation.trajectories.trajectory import open_trajectory
from expo_ray.extrapolation.trajectories.trajectory_file import read_trajectory
from tests.extrapolation.synthetic import noise, write

STEPS = (0, 100, 250, 400)


def tensors(step: int, dtype: torch.dtype = torch.bfloat16) -> dict[str, torch.Tensor]:
    return {
        "model.layers.0.w": noise((6, 4), dtype, seed=1)
        + noise((6, 4), dtype, seed=step + 2, scale=0.1),
        "model.norm.weight": torch.ones(4, dtype=dtype),
        "model.steps": torch.tensor([step]),
    }


def write_trajectory(folder: Path, steps: tuple[int, ...] = STEPS) -> Path:
    """Write checkpoints and the file that lists them, with paths relative to it."""
    for step in steps:
        write(folder / f"step_{step}", tensors(step))
    rows = [{"step": step, "checkpoint": f"step_{step}"} for step in steps]
    file = folder / "trajectory.yaml"
    file.write_text(yaml.safe_dump(rows))
    return file


def test_checkpoints_are_matched_tensor_by_tensor(tmp_path: Path) -> None:
    trajectory = open_trajectory(write_trajectory(tmp_path))
    assert trajectory.steps == STEPS
    assert [c.uri for c in trajectory.checkpoints] == [str(tmp_path / f"step_{s}") for s in STEPS]
    assert list(trajectory.pair.between) == ["step 100", "step 250"]
    by_name = {pair.name: pair for pair in trajectory.pair.tensors}
    refs = by_name["model.layers.0.w"].path
    assert len(refs) == 4
    for checkpoint, ref in zip(trajectory.checkpoints, refs, strict=True):
        assert checkpoint.tensors["model.layers.0.w"] is ref
    assert by_name["model.steps"].path == ()


def test_a_trainers_folder_is_read_in_order_of_its_numbers(tmp_path: Path) -> None:
    for step in (1000, 200, 30):
        write(tmp_path / f"checkpoint-{step}", tensors(step))
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / "runs").mkdir()
    trajectory = open_trajectory(tmp_path)
    assert trajectory.steps == (30, 200, 1000)
    assert trajectory.pair.aligned.uri == str(tmp_path / "checkpoint-1000")


def test_points_are_taken_as_they_are(tmp_path: Path) -> None:
    write_trajectory(tmp_path)
    points = [{"step": s, "checkpoint": str(tmp_path / f"step_{s}")} for s in STEPS]
    assert open_trajectory(points).steps == STEPS


def test_addresses_elsewhere_stay_as_they_are(tmp_path: Path) -> None:
    file = tmp_path / "t.yaml"
    places = ["./a", "s3://bucket/b", "hf://owner/name@step_3", "owner/name", "lora#base=./a"]
    rows = [{"step": i + 0.5, "checkpoint": place} for i, place in enumerate(places)]
    file.write_text(yaml.safe_dump(rows))
    found = [point.checkpoint for point in read_trajectory(file)]
    a, lora = str(tmp_path / "a"), str(tmp_path / "lora")
    assert found == [a, "s3://bucket/b", "hf://owner/name@step_3", "owner/name", f"{lora}#base={a}"]


Rows = list[dict[str, Any]]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda rows: rows[:1], "a trajectory of one checkpoint has no direction"),
        (lambda rows: [rows[0], rows[2], rows[1]], "do not increase"),
        (lambda rows: [*rows, {**rows[-1]}], "a step stands twice"),
        (lambda rows: [*rows, {**rows[-1], "step": 900}], "a checkpoint stands twice"),
        (lambda rows: [{"checkpoint": "step_0"}, *rows[1:]], "entry 1, step"),
        (lambda rows: [rows[0], {"step": 5}], "entry 2, checkpoint"),
        (lambda rows: [{**rows[0], "alpha": 1}, *rows[1:]], "entry 1, alpha"),
        (lambda rows: [rows[0], {**rows[1], "step": "100"}], "entry 2, step"),
        (lambda rows: [rows[0], {**rows[1], "step": float("nan")}], "a step is not finite"),
        (lambda rows: {"steps": rows}, "the trajectory is no list"),
        (lambda rows: [], "the trajectory is no list"),
    ],
)
def test_a_malformed_trajectory_is_refused(
    tmp_path: Path, change: Callable[[Rows], object], said: str
) -> None:
    file = write_trajectory(tmp_path)
    file.write_text(yaml.safe_dump(change(yaml.safe_load(file.read_text()))))
    with pytest.raises(ConfigError) as found:
        open_trajectory(file)
    assert said in str(found.value)


def test_a_missing_file_or_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        open_trajectory(tmp_path / "nothing.yaml")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="no checkpoints of a training"):
        open_trajectory(tmp_path / "empty")
    file = write_trajectory(tmp_path)
    (tmp_path / "step_250").rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="step 250"):
        open_trajectory(file)


def renamed(found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.replace("layers.0", "layers.7"): tensor for name, tensor in found.items()}


def reshaped(found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {**found, "model.layers.0.w": torch.zeros(8, 4, dtype=torch.bfloat16)}


def widened(found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {**found, "model.layers.0.w": found["model.layers.0.w"].float()}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (renamed, "a tensor is missing from step 400"),
        (reshaped, "a tensor of another shape"),
        (widened, "a tensor of another dtype"),
    ],
)
def test_another_model_in_the_middle_is_named(
    tmp_path: Path,
    change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]],
    said: str,
) -> None:
    file = write_trajectory(tmp_path)
    write(tmp_path / "step_250", change(tensors(250)))
    with pytest.raises(RequestError) as found:
        open_trajectory(file)
    text = str(found.value)
    assert said in text
    assert "step 250" in text
    assert "model.layers." in text
    assert "initial" not in text


def test_another_architecture_is_named(tmp_path: Path) -> None:
    file = write_trajectory(tmp_path)
    write(tmp_path / "step_100", tensors(100), num_attention_heads=4)
    write(tmp_path / "step_400", tensors(400), num_attention_heads=8)
    with pytest.raises(PairError, match="step 100") as found:
        open_trajectory(file)
    assert found.value.got == "step 100 4, step 400 8"
