"""What is refused before a recipe is handed to a cluster; tests/pipelines submits one for real."""

from __future__ import annotations

from pathlib import Path

import pytest

from expo_ray.errors import ConfigError
from expo_ray.workflow.submission import submit
from tests.head_node import free_port

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = ROOT / "pipelines" / "recipes" / "quickstart.yaml"
SHARED = "output=/shared/run"


def test_a_relative_output_is_refused_here_and_not_by_the_job() -> None:
    with pytest.raises(ConfigError, match="relative output"):
        submit(QUICKSTART, working_dir=ROOT, address="http://127.0.0.1:1")


def test_what_would_not_be_uploaded_is_refused(tmp_path: Path) -> None:
    copy = tmp_path / "recipe.yaml"
    copy.write_text(QUICKSTART.read_text())
    for recipe, folder in ((copy, ROOT), (copy, tmp_path)):
        with pytest.raises(ConfigError, match="working directory") as caught:
            submit(recipe, overrides=[SHARED], working_dir=folder)
        assert str(caught.value.where).startswith("--working-dir")


@pytest.mark.timeout(60)
def test_the_flag_beats_the_variables_and_an_absent_server_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:1")
    address = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(ConfigError, match="job server") as caught:
        submit(QUICKSTART, overrides=[SHARED], working_dir=ROOT, address=address)
    assert address in str(caught.value.got)
    with pytest.raises(ConfigError, match="job server") as caught:
        submit(QUICKSTART, overrides=[SHARED], working_dir=ROOT)
    assert "http://127.0.0.1:1" in str(caught.value.got)
