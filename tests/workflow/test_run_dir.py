from __future__ import annotations

from pathlib import Path

import pytest

from expo_ray.errors import ConfigError
from expo_ray.workflow.run_dir import RunDir, reward_label


def test_a_directory_is_claimed_once_per_recipe(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    with run.claim(recipe_text="name: a\n", digest="d1"):
        assert run.recipe_file.read_text() == "name: a\n"
        with pytest.raises(ConfigError, match="another run is writing"):
            with RunDir(run.path).claim(recipe_text="name: a\n", digest="d1"):
                pass
    with run.claim(recipe_text="name: a\n", digest="d1"):
        run.diagnosis_file.write_text("{}")  # its first result
    before = sorted(p.name for p in run.path.iterdir())
    with pytest.raises(ConfigError, match="another request") as caught:
        with run.claim(recipe_text="name: b\n", digest="d2"):
            pass
    assert caught.value.exit_code == 2
    assert run.recipe_file.read_text() == "name: a\n"
    assert sorted(p.name for p in run.path.iterdir()) == before


@pytest.mark.parametrize("name", [".lock", "recipe.yaml", "rewards/0-a/.alpha-0.parquet.tmp"])
def test_links_planted_in_a_directory_are_not_followed(tmp_path: Path, name: str) -> None:
    (tmp_path / "own").write_text("mine")
    path = tmp_path / "run" / name
    path.parent.mkdir(parents=True)
    path.symlink_to(tmp_path / "own")
    with pytest.raises(ConfigError, match="leaves the folder") as caught:
        with RunDir(tmp_path / "run").claim(recipe_text="", digest="d"):
            pass
    assert str(path) == caught.value.where
    assert (tmp_path / "own").read_text() == "mine"


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ConfigError, match="no run directory"):
        with RunDir(tmp_path).claim(recipe_text="", digest="d"):
            pass
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_reward_labels_are_file_names() -> None:
    assert reward_label(0, "/a/b/reward-model/") == "0-reward-model"
    assert reward_label(1, "implicit:beta=0.1") == "1-implicit-beta-0.1"
    assert reward_label(2, "judge:http://h:1/v1#m/x y") == "2-x-y"
