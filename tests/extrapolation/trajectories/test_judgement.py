"""The judgement of checkpoints on a disk, what is written of it, and what it warns of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from expo_ray.errors import ConfigError, WorkError
from expo_ray.extrapolation.trajectories.diagnosis_file import (
    DIAGNOSIS_NAME,
    beyond_horizon,
    read_diagnosis,
)
from expo_ray.extrapolation.trajectories.job import extrapolate_trajectory
from expo_ray.extrapolation.trajectories.judgement import diagnose_trajectory, judge_path
from tests.extrapolation.synthetic import load, write
from tests.extrapolation.trajectories.paths import measured, synthetic_path

Points = list[tuple[float, str, str]]
STEPS = tuple(range(0, 130, 10))


def write_training(folder: Path, kind: str = "line", **extra: torch.Tensor) -> Path:
    """Write a training with two layers, an embedding and a counter."""
    path = torch.from_numpy(synthetic_path(kind, STEPS, num_values=240)).float()
    for step, values in zip(STEPS, path, strict=True):
        first, second, embedding = values.split([80, 60, 100])
        tensors = {
            "model.layers.0.mlp.weight": first.reshape(8, 10).clone(),
            "model.layers.1.self_attn.weight": second.reshape(6, 10).clone(),
            "model.embed_tokens.weight": embedding.reshape(10, 10).clone(),
            "model.count": torch.tensor([step]),
            **extra,
        }
        write(folder / f"checkpoint-{step}", tensors)
    return folder


def test_a_training_on_disk_is_judged(tmp_path: Path) -> None:
    training = write_training(tmp_path / "training", "noisy line")
    found = diagnose_trajectory(training, address="inline", output=tmp_path / "judged")
    loaded = [load(training / f"checkpoint-{step}") for step in STEPS]
    rows = np.stack(
        [
            np.concatenate(
                [w[name].double().numpy().ravel() for name in sorted(w) if name != "model.count"]
            )
            for w in loaded
        ]
    )
    assert found.total.distance == pytest.approx(np.linalg.norm(rows[-1] - rows[0]), rel=1e-5)
    lengths = np.linalg.norm(np.diff(rows, axis=0), axis=1)
    assert [step.length for step in found.path] == pytest.approx(lengths.tolist(), rel=1e-5)
    assert sorted(found.groups) == ["attention", "embeddings", "mlp"]
    assert [(stack, layer) for stack, layer, _ in found.layers] == [
        ("model.layers", 0),
        ("model.layers", 1),
    ]
    assert found.num_elements == 240
    squares = sum(shape.distance**2 for shape in found.groups.values())
    assert squares == pytest.approx(found.total.distance**2)
    written = json.loads((tmp_path / "judged" / DIAGNOSIS_NAME).read_text())
    assert written == json.loads(json.dumps(found.as_dict(), allow_nan=False))


def test_a_matrix_under_two_names_counts_once(tmp_path: Path) -> None:
    plain = diagnose_trajectory(write_training(tmp_path / "plain"), address="inline")
    tied = tmp_path / "tied"
    write_training(tied)
    for step in STEPS:
        folder = tied / f"checkpoint-{step}"
        tensors = load(folder)
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        write(folder, tensors, tie_word_embeddings=True)
    found = diagnose_trajectory(tied, address="inline")
    assert found.num_tensors == plain.num_tensors
    assert found.total.distance == pytest.approx(plain.total.distance)


def test_a_training_that_did_not_move_is_refused(tmp_path: Path) -> None:
    sums = measured(np.ones((4, 100)))
    with pytest.raises(WorkError, match="hold the same weights"):
        judge_path(sums, (0, 1, 2, 3), checkpoints=["a", "b", "c", "d"])


def test_an_output_that_is_a_file_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="the output is a file"):
        diagnose_trajectory(tmp_path / "nowhere", output=tmp_path / "file", address="inline")


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Points]:
    folder = tmp_path_factory.mktemp("judged")
    training = write_training(folder / "training")
    found = diagnose_trajectory(training, address="inline", output=folder)
    identities = map(str, found.identities)
    return folder, list(zip(found.steps, found.checkpoints, identities, strict=True))


def test_a_diagnosis_is_read_for_its_own_trajectory_only(
    judged: tuple[Path, Points],
) -> None:
    folder, checkpoints = judged
    by_folder = read_diagnosis(folder, checkpoints=checkpoints)
    assert by_folder == read_diagnosis(folder / DIAGNOSIS_NAME, checkpoints=checkpoints)
    assert by_folder["verdict"]["reach"]["line"] == 4
    for others in (checkpoints[:-1], [(s + 1, *rest) for s, *rest in checkpoints]):
        with pytest.raises(ConfigError, match="another trajectory"):
            read_diagnosis(folder, checkpoints=others)
    *same, (step, place, _) = checkpoints
    with pytest.raises(ConfigError, match="other weights in the same places") as found:
        read_diagnosis(folder, checkpoints=[*same, (step, place, "blake3:0")])
    assert found.value.got == "other checkpoints of step 120"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"checkpoints": [{"step": 1}]}',
        '{"checkpoints": [], "verdict": {"reach": {}}, "scores": []}',
        None,
    ],
)
def test_what_is_no_diagnosis_is_refused(tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "diagnosis.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_diagnosis(file, checkpoints=[(0, "a", "b")])


def test_beyond_its_horizon_a_fit_is_warned_of(
    judged: tuple[Path, Points],
) -> None:
    folder, checkpoints = judged
    diagnosis: dict[str, Any] = read_diagnosis(folder, checkpoints=checkpoints)

    def told(fit: str, start: str, *horizons: float) -> list[str]:
        return beyond_horizon(diagnosis, fit=fit, start=start, horizons=horizons)

    assert told("line", "fitted", 0.5, 1, 1.5, 4) == []
    assert told("line", "last", 1 + 3.0) == []
    [text] = told("line", "fitted", 2, 4.2)
    assert text.startswith("warning: 4.2 times the span")
    [text] = told("wsm", "fitted", 1.25)
    assert "wsm never beat no change" in text
    [text] = told("weights", "last", 1.25)
    assert "weights from last was not tested" in text


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"at_step": 480, "start": "fitted"}, None),
        ({"at_step": 600, "start": "fitted"}, "5 times the span lies beyond"),
        ({"alpha": [0.5, 3, 3.5]}, "4.5 times the span lies beyond"),
        ({"alpha": 0.5, "fit": "line:window=4"}, "was not tested with these options"),
        ({"alpha": 0.5, "transforms": ["clip:norm=1"]}, "not tested with transforms"),
        ({"alpha": 0.5, "onto": "checkpoint-50"}, "not tested onto another base"),
        ({"alpha_rules": '[{match: "*mlp*", alpha: 9}]', "alpha": 0.5}, "10 times the span"),
    ],
)
def test_an_extrapolation_is_told_what_its_diagnosis_does_not_support(
    judged: tuple[Path, Points],
    tmp_path: Path,
    asked: dict[str, Any],
    told: str | None,
) -> None:
    folder, _ = judged
    if "alpha_rules" in asked:
        (tmp_path / "rules.yaml").write_text(asked["alpha_rules"])
        asked = {**asked, "alpha_rules": tmp_path / "rules.yaml"}
    if "onto" in asked:
        asked = {**asked, "onto": folder / "training" / asked["onto"]}
    result = extrapolate_trajectory(
        folder / "training", tmp_path / "out", **asked, diagnosis=folder, dry_run=True
    )
    warnings = [note for note in result.notes if note.startswith("warning: ")]
    assert len(warnings) == (told is not None)
    assert told is None or told in warnings[0]
    with pytest.raises(ConfigError, match="another trajectory"):
        extrapolate_trajectory(
            write_training(tmp_path / "other"), tmp_path / "out", alpha=1, diagnosis=folder
        )
