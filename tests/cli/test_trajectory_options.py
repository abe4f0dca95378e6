"""`extrapolate --trajectory`: its arguments, and what is refused beside it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from expo_ray.cli import main


@pytest.fixture
def trajectory(pico_pair: tuple[Path, Path], tmp_path: Path) -> Path:
    rows = [{"step": step, "checkpoint": str(side)} for step, side in enumerate(pico_pair)]
    (tmp_path / "t.yaml").write_text(yaml.safe_dump(rows))
    return tmp_path / "t.yaml"


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict[str, object]]:
    with pytest.raises(SystemExit) as stop:
        main.main([*map(str, arguments), "--json"])
    return int(stop.value.code or 0), json.loads(capsys.readouterr().out)


def test_a_trajectory_takes_the_place_of_the_pair(
    trajectory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--trajectory", trajectory, "--address", "inline")
    code, done = run(
        capsys, "extrapolate", *flags, tmp_path / "out", "--at-step", 2, "--at-step", 3
    )
    assert code == 0
    found = [(row["alpha"], row["at_step"], Path(row["path"]).name) for row in done["outputs"]]
    assert found == [(1, 2, "step-2"), (2, 3, "step-3")]
    assert done["plan"]["trajectory"]["fit"] == "line"
    code, checked = run(capsys, "verify", tmp_path / "out" / "step-3", "--address", "inline")
    assert (code, checked["ok"]) == (0, True)


@pytest.mark.parametrize(
    ("arguments", "message", "where"),
    [
        (("TRAJECTORY", "out", "-a", "1", "more"), "takes the place of INITIAL", "--trajectory"),
        (("TRAJECTORY", "-a", "1"), "an argument is missing", "OUTPUT"),
        (("TRAJECTORY", "out"), "no alpha is given", "--alpha"),
        (("TRAJECTORY", "out", "-a", "1", "--at-step", "3"), "for the same thing", "--at-step"),
        (("TRAJECTORY", "out", "--from", "fitted", "-a", "1"), "has no alpha", "--from"),
        (("TRAJECTORY", "out", "-a", "1", "--vocab-policy", "common-rows"), "pairs", "--vocab"),
        (("TRAJECTORY", "out", "-a", "1", "--export-mergekit", "m"), "pairs", "--export-mergekit"),
        (("TRAJECTORY", "out", "-a", "1", "--weights", "a,b"), "is not a number", "--weights"),
        (("a", "b", "out", "-a", "1", "--fit", "line"), "trajectories", "--fit"),
        (("a", "b", "out", "--at-step", "3"), "trajectories", "--at-step"),
        (("a", "b", "out", "-a", "1", "--from", "last"), "trajectories", "--from"),
    ],
)
def test_what_does_not_go_together_is_refused_by_name(
    trajectory: Path,
    arguments: tuple[str, ...],
    message: str,
    where: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    words: list[str] = []
    for word in arguments:
        words += ["--trajectory", str(trajectory)] if word == "TRAJECTORY" else [word]
    code, told = run(capsys, "extrapolate", *words, "--address", "inline")
    error = told["error"]
    assert code == 2
    assert message in error["message"]
    assert where in error["where"]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["serve", "generate", "select"])
def test_a_fit_needs_a_trajectory_and_a_trajectory_brings_its_models(
    command: str, trajectory: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    outputs = (
        [] if command == "serve" else ["--prompts", "p.jsonl", "--output", str(tmp_path / "o")]
    )
    code, told = run(capsys, command, *outputs, "--fit", "rank1")
    assert (code, told["error"]["where"]) == (2, "--fit")
    code, told = run(capsys, command, *outputs)
    assert (code, told["error"]["message"]) == (2, "an argument is missing")
    along = ["--trajectory", str(trajectory), *([] if command == "select" else ["--alpha", "0.3"])]
    code, told = run(capsys, command, "m", *outputs, *along)
    assert code == 2
    assert told["error"]["message"].startswith("a trajectory")
    assert told["error"]["got"] == "m"


def test_a_load_test_tells_how_it_takes_a_fit(capsys: pytest.CaptureFixture[str]) -> None:
    code, told = run(capsys, "loadtest", "m", "--trajectory", "t.yaml")
    assert code == 2
    assert "serve --trajectory FILE" in told["error"]["hint"]
