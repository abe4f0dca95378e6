"""The recipes of the paper's models: right, and planned on files that have the real layout."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from expo_ray.cli.main import app
from expo_ray.workflow.plan import plan_run
from tests.stand_ins import LAYOUTS, MISTRAL_7B, Layout, write_stand_in

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted(ROOT.glob("pipelines/recipes/paper/*.yaml"))


def overrides(folder: Path, layout: Layout) -> list[str]:
    """Return what puts a stand-in in the place of the pair, and little in that of the rest."""
    initial, aligned = (write_stand_in(folder / side, layout) for side in ("sft", "dpo"))
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"Question {i}?"}) + "\n" for i in range(20)))
    return [
        f"output={folder / 'run'}",
        f"initial={initial}",
        f"aligned={aligned}",
        f"prompts.path={prompts}",
        "prompts.sample=10",
        "reward_models=[implicit:beta=0.1]",
        # What stands for the weights is equal, and this looks at headers alone.
        "generators.engine=transformers",
        "generators.tensor_parallel_size=1",
        "generators.engine_args={}",
    ]


def test_every_model_of_the_paper_has_a_recipe() -> None:
    pairs = [yaml.safe_load(path.read_text()) for path in RECIPES]
    assert len({pair["aligned"] for pair in pairs}) == len({pair["initial"] for pair in pairs}) + 1
    # Twelve models, the fully trained one, and one of the controlled runs, of one initial model.
    assert len(pairs) == 14


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_of_the_paper_is_planned(tmp_path: Path, path: Path) -> None:
    layout = LAYOUTS.get(path.stem, MISTRAL_7B)
    plan = plan_run(path, overrides(tmp_path, layout))
    (stage,) = (stage for stage in plan["stages"] if stage["stage"] == "extrapolation")
    assert stage["num_parameters"] / 1e9 == pytest.approx(layout.num_parameters, rel=0.005)
    assert stage["bytes_in"] == pytest.approx(4 * stage["num_parameters"], rel=0.001)
    assert plan["num_prompts"] == 10


def test_the_largest_shows_its_plan_on_the_command_line(tmp_path: Path) -> None:
    changes = overrides(tmp_path, LAYOUTS["tulu-2-70b"])
    flags = [part for change in changes for part in ("--set", change)]
    recipe = str(ROOT / "pipelines/recipes/paper/tulu-2-70b.yaml")
    found = CliRunner().invoke(app, ["run", recipe, "--dry-run", *flags])
    assert found.exit_code == 0, found.output
    assert re.search(r"extrapolation +29 shards +275\.9 GB +138\.0 GB", found.output)
