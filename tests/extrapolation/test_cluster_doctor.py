"""The doctor: facts and problems of every node, nothing left behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from expo_ray.errors import CheckpointError
from expo_ray.extrapolation.cluster_doctor import doctor
from expo_ray.extrapolation.nodes import fanout
from expo_ray.extrapolation.nodes.node_check import (
    NodeCheck,
    leave_token,
    probe_node,
    unseen_outputs,
)

Pair = tuple[Path, Path]


@pytest.mark.parametrize("place", ["inline", pytest.param("cluster", marks=pytest.mark.ray)])
def test_a_healthy_place_is_fit_and_stays_clean(
    pico_pair: Pair, tmp_path: Path, request: pytest.FixtureRequest, place: str
) -> None:
    address = place if place == "inline" else request.getfixturevalue("ray_cluster")
    report = doctor(*pico_pair, tmp_path / "new" / "out", address=address).as_dict()
    assert report["problems"] == []
    assert report["ok"]
    (node,) = report["nodes"]
    assert node["versions"]["torch"]
    assert node["memory_bytes"] > node["memory_free_bytes"] > 0
    assert node["disk_free_bytes"]["output"] > 0
    assert node["clock_offset_seconds"] == 0
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_a_problem(pico_pair: Pair, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    report = doctor(*pico_pair, tmp_path / "file" / "out", address="inline")
    assert not report.is_fit
    assert "cannot be written to" in str(report.as_dict()["problems"])
    with pytest.raises(CheckpointError):
        doctor(tmp_path / "missing", address="inline")


def test_a_node_that_sees_other_files_says_which(pico_pair: Pair, tmp_path: Path) -> None:
    check = NodeCheck(outputs=(str(tmp_path),))
    assert "not the folder" in probe_node(check, "a")[0]
    leave_token(check, fanout.DRIVER)
    assert unseen_outputs(check, "a")
    assert probe_node(check, "a") == []
    assert unseen_outputs(check, "a") == []


def test_the_command_prints_one_object(pico_pair: Pair, tmp_path: Path) -> None:
    from expo_ray.cli.main import app

    arguments = ["doctor", *map(str, pico_pair), str(tmp_path / "o"), "--address", "inline"]
    done = CliRunner().invoke(app, [*arguments, "--json"])
    assert done.exit_code == 0
    assert json.loads(done.stdout)["ok"]
    (tmp_path / "file").write_text("in the way")
    arguments[3] = str(tmp_path / "file" / "o")
    assert CliRunner().invoke(app, arguments).exit_code == 1
