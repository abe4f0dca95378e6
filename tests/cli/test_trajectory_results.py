"""`diagnose --trajectory` in this process: what it prints, writes and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from expo_ray.cli import checkpoint_commands
from expo_ray.cli.trajectory_results import next_command
from expo_ray.errors import ConfigError
from expo_ray.extrapolation.trajectories.diagnosis_file import DIAGNOSIS_NAME
from tests.extrapolation.trajectories.test_judgement import write_training


def invoke(*words: object, code: int = 0) -> str:
    app = typer.Typer()
    checkpoint_commands.register(app)
    command = ["diagnose", *map(str, words), "--address", "inline"]
    result = CliRunner().invoke(app, command, catch_exceptions=False)
    assert result.exit_code == code, result.output
    return " ".join(result.stdout.split())


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_training(tmp_path_factory.mktemp("cli") / "training", "line")


def test_the_verdict_is_printed_and_the_page_written(training: Path, tmp_path: Path) -> None:
    shown = invoke("--trajectory", training, "--output", tmp_path / "judged", "--strict")
    assert "13, steps 0 to 120" in shown
    assert "beats no change up to step 480 (4 times the span, alpha 3)" in shown
    assert "rank1 from last" in shown
    verdict = json.loads((tmp_path / "judged" / DIAGNOSIS_NAME).read_text())["verdict"]
    told = f"{training} OUTPUT --fit {verdict['fit']} --from {verdict['from']} --at-step 480"
    assert f"expo-ray extrapolate --trajectory {told}" in shown or verdict["forecast"] == "pair"
    names = {path.name for path in (tmp_path / "judged").iterdir()}
    assert names == {DIAGNOSIS_NAME, "report.html", "figures"}


@pytest.mark.parametrize(
    ("forecast", "fit", "start", "command"),
    [
        ("pair", "line", "last", "expo-ray extrapolate a 'b c' OUTPUT --alpha 0.5"),
        (
            "rank1",
            "rank1",
            "fitted",
            "expo-ray extrapolate --trajectory t.yaml OUTPUT --fit rank1 --from fitted "
            "--at-step 150",
        ),
        (
            "wsm",
            "wsm",
            "fitted",
            "expo-ray extrapolate --trajectory t.yaml OUTPUT --fit wsm --from fitted",
        ),
    ],
)
def test_the_next_command_goes_as_far_as_the_verdict(
    forecast: str, fit: str, start: str, command: str
) -> None:
    verdict = {"decision": "extrapolate", "forecast": forecast, "fit": fit, "from": start}
    found = {
        "verdict": {**verdict, "at_step": 150.0, "alpha": 0.5},
        "checkpoints": [{"checkpoint": "a"}, {"checkpoint": "b c"}],
    }
    assert next_command("t.yaml", found) == command
    assert next_command("t.yaml", {"verdict": {"decision": "keep"}}) is None


def test_json_holds_the_diagnosis(training: Path) -> None:
    found = json.loads(invoke("--trajectory", training, "--json"))
    assert found["verdict"]["horizon"] == 4
    assert found["report"] is None
    assert len(found["checkpoints"]) == 13


def test_strict_ends_with_1_where_nothing_beats_no_change(tmp_path: Path) -> None:
    walk = write_training(tmp_path, "walk")
    assert "Keep the last checkpoint" in invoke("--trajectory", walk, "--strict", code=1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "an argument is missing"),
        (("sft",), "an argument is missing"),
        (("sft", "--trajectory", "t.yaml"), "takes the place of INITIAL and ALIGNED"),
        (("sft", "dpo", "--output", "o"), "this is a setting of trajectories"),
    ],
)
def test_a_request_that_is_neither_is_refused(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        invoke(*words)
