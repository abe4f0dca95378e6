"""Every experiment has a command, whose flags are those of its settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import pytest
import typer
from pydantic import BaseModel, ConfigDict, Field
from typer.testing import CliRunner

from expo_ray.cli import lab_commands
from expo_ray.cli.main import app
from expo_ray.flags import Flag
from expo_ray.lab.experiments.kind import LAB_PANEL, Experiment, Where
from expo_ray.lab.experiments.registry import EXPERIMENTS


def test_every_experiment_is_a_command_with_its_flags() -> None:
    tree = typer.main.get_command(app)
    commands = tree.commands["lab"].commands  # type: ignore[attr-defined]
    assert set(commands) == set(EXPERIMENTS)
    for name, experiment in EXPERIMENTS.items():
        assert experiment.name == name
        assert experiment.settings.model_config.get("frozen")
        flagged = {
            field
            for field, facts in experiment.settings.model_fields.items()
            if any(isinstance(each, Flag) for each in facts.metadata)
        }
        assert flagged <= {each.name for each in commands[name].params}


class Settings(BaseModel):
    model_config = ConfigDict(frozen=True)
    steps: Annotated[int, Flag(panel=LAB_PANEL)] = Field(3, ge=1, description="Steps.")


@pytest.fixture
def one(monkeypatch: pytest.MonkeyPatch) -> typer.Typer:
    def run(settings: Settings, where: Where) -> dict[str, object]:
        rows = [{"alpha": 0.5, "gain": None}]
        return {"output": str(where.output), "steps": settings.steps, "gains": rows}

    experiment = Experiment(name="one", help="Do it.\n\nExample: do", settings=Settings, run=run)
    monkeypatch.setattr(lab_commands, "EXPERIMENTS", {"one": experiment})
    tree = typer.Typer()
    lab_commands.register(tree)
    tree.command("other")(lambda: None)
    return tree


def test_a_command_gives_its_flags_and_shows_facts_and_tables(one: typer.Typer) -> None:
    call = ["lab", "one", "--steps", "7"]
    shown = CliRunner().invoke(one, call)
    assert shown.exit_code == 0
    lines = [line.rstrip() for line in shown.output.splitlines()]
    assert [line.split() for line in lines if line.startswith(("output", "steps"))] == [
        ["output", str(Path("runs/one"))],
        ["steps", "7"],
    ]
    assert lines[-3:] == ["gains", "alpha  gain", "0.5       -"]
    told = CliRunner().invoke(one, [*call, "--json", "--output", "here"])
    assert json.loads(told.output) == {
        "schema_version": 1,
        "output": "here",
        "steps": 7,
        "gains": [{"alpha": 0.5, "gain": None}],
    }
