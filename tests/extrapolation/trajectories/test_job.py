"""Extrapolation along a trajectory, against NumPy references that know nothing of the package."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray
from rich.console import Console

from expo_ray.cli.checkpoint_results import render_inspection
from expo_ray.errors import ConfigError, RequestError, ShardError, VerifyError
from expo_ray.extrapolation import (
    extrapolate,
    extrapolate_trajectory,
    inspect_checkpoint,
    verify,
)
from expo_ray.extrapolation.outputs.record import sealed
from expo_ray.extrapolation.trajectories.directions import Fitting
from expo_ray.extrapolation.trajectories.recorded import recorded_direction
from tests.extrapolation import drivers
from tests.extrapolation.synthetic import change_tasks, file_digests, load, same_bits, write
from tests.extrapolation.trajectories.paths import KINDS, synthetic_path

STEPS = (0, 100, 250, 300, 700)
NUM_VALUES = 3 * 400
Values = NDArray[np.float64]


def save(folder: Path, rows: Values, steps: Sequence[float], dtype: torch.dtype) -> Path:
    """Write checkpoints of two tensors each, and the file that lists them."""
    rows_listed = []
    for step, row in zip(steps, rows, strict=True):
        values = torch.from_numpy(row).to(dtype)
        tensors = {
            "model.layers.0.up.weight": values[:400].reshape(20, 20).clone(),
            "model.layers.1.up.weight": values[400:].reshape(-1, 40).clone(),
            "model.norm.weight": torch.ones(40, dtype=dtype),
            "model.position_ids": torch.arange(4),
        }
        write(folder / f"step_{step}", tensors, num_shards=2)
        rows_listed.append({"step": step, "checkpoint": f"./step_{step}"})
    file = folder / "trajectory.yaml"
    file.write_text(yaml.safe_dump(rows_listed))
    return file


def stored(folder: Path, steps: Sequence[float]) -> dict[str, Values]:
    """Return [N, values] of every float tensor, as the files hold them."""
    loaded = [load(folder / f"step_{step}") for step in steps]
    names = [name for name, tensor in loaded[0].items() if tensor.is_floating_point()]
    return {n: np.stack([one[n].double().numpy().ravel() for one in loaded]) for n in names}


def line_at(steps: Sequence[float], rows: Values, target: float) -> Values:
    """The least squares line through every value, as numpy fits it."""
    slope, intercept = np.polyfit(steps, rows, 1)
    return slope * target + intercept


def rank1_at(steps: Sequence[float], rows: Values, target: float) -> Values:
    """RELEX with all changes in memory: a singular direction, a line through its coefficients."""
    changes = rows[1:] - rows[0]
    if not changes.any():
        return rows[0]
    direction = np.linalg.svd(changes, full_matrices=False)[2][0]
    coefficients = changes @ direction
    return rows[0] + line_at(steps[1:], coefficients[:, None], target)[0] * direction


REFERENCES: dict[str, Callable[[Sequence[float], Values, float], Values]] = {
    "line": line_at,
    "rank1": rank1_at,
}


def ulps_off(got: torch.Tensor, wanted: Values) -> float:
    """Return the largest distance, in roundings of the output dtype."""
    exact = torch.from_numpy(wanted)
    scale = torch.finfo(got.dtype).eps * exact.abs().clamp(min=torch.finfo(got.dtype).tiny)
    return float(((got.double().ravel() - exact).abs() / scale).max())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fit", ["line", "rank1"])
def test_weights_are_those_of_the_reference(
    tmp_path: Path, fit: str, kind: str, dtype: torch.dtype
) -> None:
    # Far from zero, where no result of the formula cancels: roundings can be counted.
    rows = synthetic_path(kind, STEPS, num_values=NUM_VALUES) / 20 + 8
    file = save(tmp_path, rows, STEPS, dtype)
    targets = {"start": "fitted", "at_step": [700, 1000]}
    fitted = extrapolate_trajectory(file, tmp_path / "f", fit=fit, address="inline", **targets)
    ahead = extrapolate_trajectory(file, tmp_path / "l", fit=fit, alpha=0.5, address="inline")
    at = REFERENCES[fit]
    # In float64 the reference has no more digits than what it is compared with.
    limit = 100 if dtype == torch.float64 else 1.01
    for name, values in stored(tmp_path, STEPS).items():
        for output, target in zip(fitted.outputs, (700, 1000), strict=True):
            found = load(Path(output.path))[name]
            assert found.dtype == dtype
            assert ulps_off(found, at(STEPS, values, target)) <= limit, (name, target)
        change = at(STEPS, values, STEPS[-1]) - at(STEPS, values, STEPS[0])
        found = load(Path(ahead.outputs[0].path))[name]
        assert ulps_off(found, values[-1] + 0.5 * change) <= limit, name


@pytest.mark.parametrize("fit", ["wsm", "ema", "bema:bema_lag=5", "wsm:window=2", "weights"])
def test_averages_are_sums_of_the_checkpoints(tmp_path: Path, fit: str) -> None:
    rows = synthetic_path("walk", STEPS, num_values=NUM_VALUES) / 20 + 8
    file = save(tmp_path, rows, STEPS, torch.float32)
    given = (0.1, 0.2, 0.3, 0.4, 0.0) if fit == "weights" else ()
    options: dict[str, Any] = {"fit": fit, "weights": given, "start": "fitted"}
    result = extrapolate_trajectory(file, tmp_path / "out", address="inline", **options)
    assert verify(tmp_path / "out", address="inline").notes == ()
    record = json.loads((tmp_path / "out" / "expo_ray.json").read_text())
    weights = np.array(record["trajectory"]["weights"])
    read = [row["step"] for row in record["trajectory"]["checkpoints"]]
    weights[-1] += 1  # what leads from the last checkpoint to the fitted model
    assert weights.sum() == pytest.approx(1)
    if given:
        assert weights == pytest.approx(given)
    for name, values in stored(tmp_path, STEPS).items():
        kept = values[[STEPS.index(step) for step in read]]
        assert ulps_off(load(tmp_path / "out")[name], weights @ kept) <= 1.01
    if fit == "wsm:window=2":
        assert read == [0, 300, 700]
        assert any("not read, as their weight is 0" in note for note in result.notes)


def test_two_checkpoints_are_a_pair(
    pico_pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = [{"step": i, "checkpoint": str(side)} for i, side in enumerate(pico_pair)]
    alphas = {"alpha": [0.3, 2.0], "max_shard_size": "20KB", "address": "inline"}
    pair = extrapolate(*pico_pair, tmp_path / "pair", **alphas)
    along = extrapolate_trajectory(points, tmp_path / "along", **alphas)
    by_step = extrapolate_trajectory(points, tmp_path / "step", at_step=3, address="inline")
    # The sums over a trajectory give these bits too, without the short cut.
    monkeypatch.setattr(Fitting, "is_pair", lambda *_: False)
    summed = extrapolate_trajectory(points, tmp_path / "summed", **alphas)
    for one, two, three in zip(pair.outputs, along.outputs, summed.outputs, strict=True):
        assert one.weights_digest == two.weights_digest == three.weights_digest
        assert file_digests(Path(one.path)) == file_digests(Path(two.path))
        assert file_digests(Path(one.path)) == file_digests(Path(three.path))
    assert by_step.outputs[0].alpha == 2
    assert by_step.outputs[0].weights_digest == pair.outputs[1].weights_digest


@pytest.fixture(scope="module")
def path_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = synthetic_path("noisy line", STEPS, num_values=NUM_VALUES)
    return save(tmp_path_factory.mktemp("path"), rows, STEPS, torch.bfloat16)


def test_the_bytes_depend_on_neither_chunks_nor_threads_nor_ray(
    path_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_cluster: str
) -> None:
    options: dict[str, Any] = {"fit": "rank1", "at_step": [800, 900], "max_shard_size": "2KB"}
    one = extrapolate_trajectory(path_file, tmp_path / "one", address="inline", **options)
    on_ray = extrapolate_trajectory(path_file, tmp_path / "ray", address=ray_cluster, **options)
    change_tasks(monkeypatch, chunk_bytes=100, num_threads=3)
    other = extrapolate_trajectory(path_file, tmp_path / "other", address="inline", **options)
    digests = [[output.weights_digest for output in r.outputs] for r in (one, on_ray, other)]
    assert digests[0] == digests[1] == digests[2]


@pytest.mark.parametrize("fit", ["line", "rank1"])
def test_every_byte_is_read_once_a_pass(path_file: Path, tmp_path: Path, fit: str) -> None:
    one = extrapolate_trajectory(path_file, tmp_path / "a", fit=fit, alpha=1, address="inline")
    targets = {"start": "fitted", "at_step": [300, 800, 900]}
    many = extrapolate_trajectory(path_file, tmp_path / "b", fit=fit, address="inline", **targets)
    floats = 2 * (NUM_VALUES + 40) * len(STEPS)
    ids = 8 * 4
    passes = 2 if fit == "rank1" else 1
    assert one.bytes_read == many.bytes_read == passes * floats + ids
    assert one.plan["bytes_in"] == one.bytes_read
    assert [Path(output.path).name for output in many.outputs] == [
        "step-300",
        "step-800",
        "step-900",
    ]
    assert any("step 300 lies inside the trajectory" in note for note in many.notes)


def test_rules_transforms_and_another_base_take_the_direction(
    path_file: Path, tmp_path: Path
) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text("default: 2\nrules: [{match: '*layers.0*', alpha: 0}]")
    base = write(tmp_path / "base", load(path_file.parent / "step_100"))
    common: dict[str, Any] = {"fit": "line", "address": "inline"}
    plain = extrapolate_trajectory(path_file, tmp_path / "a", alpha=2, **common)
    ruled = extrapolate_trajectory(path_file, tmp_path / "b", alpha_rules=rules, **common)
    cut = extrapolate_trajectory(
        path_file, tmp_path / "c", alpha=2, transforms=["magnitude:keep=0.5"], **common
    )
    onto = extrapolate_trajectory(path_file, tmp_path / "d", alpha=2, onto=base, **common)
    a, b, c, d = (load(Path(r.outputs[0].path)) for r in (plain, ruled, cut, onto))
    last, first = (load(path_file.parent / f"step_{step}") for step in (700, 100))
    zero, one = "model.layers.0.up.weight", "model.layers.1.up.weight"
    assert same_bits(b[zero], last[zero])
    assert same_bits(b[one], a[one])
    is_kept = c[one] != last[one]
    assert 0.4 < float(is_kept.float().mean()) <= 0.51
    assert torch.equal(c[one][is_kept], a[one][is_kept])
    moved_a, moved_d = a[one].float() - last[one].float(), d[one].float() - first[one].float()
    assert torch.allclose(moved_a, moved_d, atol=0.5)
    for folder in "abcd":
        verify(tmp_path / folder, address="inline")


def test_a_killed_run_continues_and_is_verified(path_file: Path, tmp_path: Path) -> None:
    rows = synthetic_path("curve", STEPS, num_values=4_000_000)
    file = save(tmp_path, rows, STEPS, torch.bfloat16)
    whole = drivers.start_along(file, tmp_path / "whole")
    assert whole.wait() == 0
    run = drivers.start_along(file, tmp_path / "killed")
    receipts = tmp_path / "killed" / "alpha-1" / ".expo_ray" / "receipts"
    while run.is_running() and not list(receipts.glob("*.json")):
        time.sleep(0.001)
    run.kill()
    assert run.wait() == -signal.SIGKILL
    again = extrapolate_trajectory(file, tmp_path / "killed", fit="rank1", **drivers.OPTIONS)
    assert all(output.status == "resumed" for output in again.outputs)
    # Only what was lacking is measured and written again.
    assert again.bytes_read < again.plan["bytes_in"]
    for name in ("alpha-0.3", "alpha-1"):
        assert file_digests(tmp_path / "killed" / name) == file_digests(tmp_path / "whole" / name)
        verify(tmp_path / "killed" / name, address="inline")


def test_verify_finds_a_changed_checkpoint_and_a_moved_trajectory(
    path_file: Path, tmp_path: Path
) -> None:
    rows = synthetic_path("walk", STEPS, num_values=NUM_VALUES)
    file = save(tmp_path / "here", rows, STEPS, torch.float32)
    extrapolate_trajectory(file, tmp_path / "out", fit="rank1", alpha=1, address="inline")
    (tmp_path / "here").rename(tmp_path / "there")
    with pytest.raises(RequestError, match="trajectory="):
        verify(tmp_path / "out", address="inline")
    moved = tmp_path / "there" / "trajectory.yaml"
    verified = verify(tmp_path / "out", trajectory=moved, address="inline")
    assert verified.problems == ()
    assert "are those of the record" in verified.notes[0]
    fewer = yaml.safe_load(moved.read_text())[:-1]
    with pytest.raises(ConfigError, match="lacks a step"):
        verify(tmp_path / "out", trajectory=file_of(tmp_path / "there", fewer), address="inline")
    changed = load(tmp_path / "there" / "step_250")
    changed["model.layers.1.up.weight"] += 1
    write(tmp_path / "there" / "step_250", changed, num_shards=2)
    with pytest.raises(VerifyError) as found:
        verify(tmp_path / "out", trajectory=moved, address="inline")
    assert "model.layers.1.up.weight" in str(found.value)
    assert "check trajectory=" in str(found.value.hint)


def test_verify_finds_weights_that_are_not_of_the_fit(path_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    given = {"weights": [0.1, 0.2, 0.3, 0.2, 0.2], "fit": "weights", "start": "fitted"}
    extrapolate_trajectory(path_file, out, address="inline", **given)
    record = json.loads((out / "expo_ray.json").read_text())
    honest = record["trajectory"]
    changes: list[tuple[dict[str, Any], str]] = [
        ({"fit": "ema", "options": {}}, "weight of step 0"),
        ({"options": {"weights": [0.2, 0.1, 0.3, 0.2, 0.2]}}, "weight of step 0"),
        ({"from": "last"}, "alpha"),
        ({"checkpoints": honest["checkpoints"][:-1]}, "weights"),
        ({"fit": "spline"}, "fit, options and steps"),
    ]
    for change, where in changes:
        path = {**honest, **change}
        if change.get("from"):
            path["at_step"] = 1000
        (out / "expo_ray.json").write_bytes(sealed({**record, "trajectory": path}))
        with pytest.raises(VerifyError, match="contradicts its own fit") as found:
            recorded_direction({**record, "trajectory": path})
        assert where in str(found.value.where)
        with pytest.raises((RequestError, VerifyError)):
            verify(out, address="inline")


def test_a_checkpoint_that_is_not_read_may_lack_a_tensor(path_file: Path, tmp_path: Path) -> None:
    rows = synthetic_path("walk", STEPS, num_values=NUM_VALUES)
    file = save(tmp_path, rows, STEPS, torch.float32)
    for step in STEPS:
        tensors = load(tmp_path / f"step_{step}")
        extra = {} if step == 100 else {"model.extra.weight": torch.full((3,), float(step))}
        write(tmp_path / f"step_{step}", {**tensors, **extra}, num_shards=2)
    options: dict[str, Any] = {"fit": "wsm:window=2", "extra_tensors": ["copy:*.extra.*"]}
    extrapolate_trajectory(file, tmp_path / "out", alpha=1, address="inline", **options)
    assert same_bits(load(tmp_path / "out")["model.extra.weight"], torch.full((3,), 700.0))
    verify(tmp_path / "out", address="inline")


def test_checkpoints_of_the_same_weights_are_refused(path_file: Path, tmp_path: Path) -> None:
    points = []
    for step in (0, 1, 2):
        write(tmp_path / f"step_{step}", load(path_file.parent / "step_100"))
        points.append({"step": step, "checkpoint": str(tmp_path / f"step_{step}")})
    with pytest.raises(RequestError, match="hold the same weights"):
        extrapolate_trajectory(points, tmp_path / "out", alpha=1, address="inline")
    assert not (tmp_path / "out").exists()
    write(tmp_path / "step_1", load(path_file.parent / "step_250"))
    extrapolate_trajectory(points, tmp_path / "out", alpha=1, fit="ema", address="inline")


def test_an_inspection_tells_of_the_trajectory(path_file: Path, tmp_path: Path) -> None:
    fitted = {"start": "fitted", "at_step": 800}
    extrapolate_trajectory(path_file, tmp_path / "fitted", address="inline", **fitted)
    extrapolate_trajectory(path_file, tmp_path / "last", alpha=0.5, address="inline")
    told = []
    for name in ("fitted", "last"):
        console = Console(file=StringIO(), width=500)
        found = inspect_checkpoint(tmp_path / name).as_dict()
        assert [point["step"] for point in found["extrapolated"]["trajectory"]["checkpoints"]] == (
            list(STEPS)
        )
        render_inspection(console, found, every_tensor=False)
        told.append(console.file.getvalue())
    assert "the model of line over 5 checkpoints, steps 0 to 700 at step 800" in told[0]
    assert "alpha 0.5 from " in told[1]
    assert "along line over 5 checkpoints" in told[1]


def file_of(folder: Path, rows: object) -> Path:
    (folder / "other.yaml").write_text(yaml.safe_dump(rows))
    return folder / "other.yaml"


@pytest.mark.parametrize("step", STEPS)
def test_a_checkpoint_that_is_not_finite_is_named(tmp_path: Path, step: int) -> None:
    rows = synthetic_path("line", STEPS, num_values=NUM_VALUES)
    rows[STEPS.index(step), 600] = np.inf
    file = save(tmp_path, rows, STEPS, torch.bfloat16)
    for fit in ("line", "rank1"):
        with pytest.raises(ShardError) as found:
            extrapolate_trajectory(file, tmp_path / fit, fit=fit, alpha=1, address="inline")
        assert "model.layers.1.up.weight" in str(found.value.where)
        assert f"step_{step}" in str(found.value.where)
        assert not (tmp_path / fit / "expo_ray.json").exists()
    extrapolate_trajectory(
        file, tmp_path / "out", alpha=1, allow_nonfinite=True, allow_overflow=True, address="inline"
    )
    found = load(tmp_path / "out")["model.layers.1.up.weight"]
    assert int(torch.count_nonzero(~torch.isfinite(found))) == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "no alpha is given"),
        ({"alpha": 1, "at_step": 900}, "alpha and a step are given"),
        ({"start": "fitted", "alpha": 1}, "a fitted model has no alpha"),
        ({"start": "fitted", "transforms": ["clip:norm=1"]}, "a fitted model has no delta"),
        ({"start": "first", "alpha": 1}, "unknown value"),
        ({"fit": "spline", "alpha": 1}, "unknown fit"),
        ({"fit": "line:lag=1", "alpha": 1}, "unknown or doubled option of a fit"),
        ({"fit": "line:ema_decay=0.5", "alpha": 1}, "unknown or doubled option of a fit"),
        ({"fit": "weights:window=2", "alpha": 1}, "no option of weights"),
        ({"fit": "rank1", "alpha": 1, "allow_nonfinite": True}, "by tensor needs finite inputs"),
        ({"fit": "ema", "start": "fitted", "at_step": [260, 270]}, "give the same average"),
        (
            {"fit": "weights", "weights": [0, 0, 0, 0, 1], "start": "fitted", "at_step": 300},
            "whatever the step",
        ),
        ({"at_step": 10**400}, "a step is not a number"),
        ({"fit": "line:window=1", "alpha": 1}, "an option of a fit is out of range"),
        ({"at_step": [900, 900]}, "a step is given twice"),
        ({"at_step": -100}, "lies before the first checkpoint"),
        ({"at_step": "soon"}, "a step is not a number"),
        ({"at_step": float("inf")}, "a step is not finite"),
        ({"fit": "ema", "start": "fitted", "at_step": 900}, "says nothing of steps after"),
        ({"fit": "weights", "alpha": 1}, "differ in length"),
        ({"fit": "weights", "weights": [1, 1, 1, 1, 1], "alpha": 1}, "do not add up to one"),
        ({"weights": [1, 0, 0, 0, 0], "alpha": 1}, "a fit that makes its own"),
    ],
)
def test_a_wrong_request_is_refused(
    path_file: Path, tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError) as found:
        extrapolate_trajectory(path_file, tmp_path / "out", address="inline", **options)
    assert said in str(found.value)
    assert not (tmp_path / "out").exists()


def test_a_fit_that_needs_more_checkpoints_is_refused(path_file: Path, tmp_path: Path) -> None:
    places = [str(path_file.parent / f"step_{step}") for step in STEPS[:2]]
    points = [{"step": s, "checkpoint": p} for s, p in zip(STEPS[:2], places, strict=True)]
    with pytest.raises(ConfigError, match="needs more checkpoints") as found:
        extrapolate_trajectory(points, tmp_path / "out", fit="rank1", alpha=1, address="inline")
    assert found.value.expected == "at least 3"


def test_no_checkpoint_is_an_output(path_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="lies in step 250"):
        extrapolate_trajectory(
            path_file, path_file.parent / "step_250" / "out", alpha=1, address="inline"
        )


def test_the_card_and_the_record_name_every_parent(path_file: Path, tmp_path: Path) -> None:
    extrapolate_trajectory(path_file, tmp_path / "out", at_step=900, address="inline")
    card = (tmp_path / "out" / "README.md").read_text()
    record = json.loads((tmp_path / "out" / "expo_ray.json").read_text())
    for step in STEPS:
        assert f"`step_{step}`" in card
    trajectory = record["trajectory"]
    assert [row["step"] for row in trajectory["checkpoints"]] == list(STEPS)
    assert (trajectory["fit"], trajectory["at_step"]) == ("line", 900)
    assert record["alpha"] == pytest.approx(200 / 700)
    again = extrapolate_trajectory(path_file, tmp_path / "out", at_step=900, address="inline")
    assert again.outputs[0].status == "skipped"
    with pytest.raises(ConfigError, match="another plan"):
        extrapolate_trajectory(path_file, tmp_path / "out", fit="ema", alpha=1, address="inline")


def test_the_model_before_the_fitted_change_makes_a_pair_of_it(tmp_path: Path) -> None:
    """What `select` and `serve` take as INITIAL, to go along a fit."""
    rows = synthetic_path("noisy line", STEPS, num_values=NUM_VALUES) / 20 + 8
    file = save(tmp_path, rows, STEPS, torch.bfloat16)
    common: dict[str, Any] = {"address": "inline"}
    back: dict[str, Any] = {"alpha": -1, "output_dtype": "float32", **common}
    extrapolate_trajectory(file, tmp_path / "fitted", fit="rank1", **back)
    extrapolate_trajectory(file, tmp_path / "along", fit="rank1", alpha=0.7, **common)
    extrapolate(tmp_path / "fitted", tmp_path / "step_700", tmp_path / "pair", alpha=0.7, **common)
    along, pair = load(tmp_path / "along"), load(tmp_path / "pair")
    for name, tensor in along.items():
        if tensor.is_floating_point():
            assert ulps_off(pair[name], tensor.double().numpy().ravel()) <= 1.01
