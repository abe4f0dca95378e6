"""What is refused before a recipe is handed to a cluster; tests/pipelines submits one for real."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from expo_ray.errors import ConfigError, WorkError
from expo_ray.workflow import submission
from expo_ray.workflow.submission import submit
from tests.head_node import free_port, head_node

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = ROOT / "pipelines" / "recipes" / "quickstart.yaml"
SHARED = "output=/shared/run"


def test_a_relative_output_is_refused_here_and_not_by_the_job() -> None:
    with pytest.raises(ConfigError, match="relative output"):
        submit(QUICKSTART, working_dir=ROOT, address="http://127.0.0.1:1")


def test_what_would_not_be_uploaded_is_refused(tmp_path: Path) -> None:
    copy = tmp_path / "recipe.yaml"
    copy.write_text(QUICKSTART.read_text())
    with pytest.raises(ConfigError, match="outside of what is uploaded") as caught:
        submit(copy, overrides=[SHARED], working_dir=ROOT)
    assert "working_dir" in str(caught.value.where)


def test_a_recipe_that_would_stay_here_is_refused(tmp_path: Path) -> None:
    for place in ("runs/mine", ".hidden"):
        folder = tmp_path / place
        folder.mkdir(parents=True)
        (folder / "recipe.yaml").write_text(QUICKSTART.read_text())
        with pytest.raises(ConfigError, match="not uploaded") as caught:
            submit(folder / "recipe.yaml", overrides=[SHARED], working_dir=tmp_path)
        assert caught.value.got == f"{place}/recipe.yaml"


def test_a_folder_with_more_than_a_recipe_is_not_uploaded(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(QUICKSTART.read_text())
    for name in ("runs/weights", ".cache/weights", "ignored/weights"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(bytes(submission.MAX_UPLOAD_BYTES + 1))
    (tmp_path / ".gitignore").write_text("ignored/\n")
    # The entry point of another project is none of ours.
    (tmp_path / "pipelines").mkdir()
    (tmp_path / "pipelines" / "run.py").write_text("raise SystemExit('not ours')")
    where = {"overrides": [SHARED], "working_dir": tmp_path, "address": "http://127.0.0.1:1"}
    with pytest.raises(ConfigError, match="job server"):
        submit(tmp_path / "recipe.yaml", **where)  # type: ignore[arg-type]
    (tmp_path / "model.safetensors").write_bytes(bytes(submission.MAX_UPLOAD_BYTES + 1))
    with pytest.raises(ConfigError, match="too large") as caught:
        submit(tmp_path / "recipe.yaml", **where)  # type: ignore[arg-type]
    assert "model.safetensors" in str(caught.value.got)


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


@pytest.mark.slow
def test_a_job_server_that_vanishes_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "work"
    (folder / "pipelines").mkdir(parents=True)
    entry = "import time; print('up', flush=True); time.sleep(600)"
    (folder / "pipelines" / "run.py").write_text(entry)
    recipe = folder / "recipe.yaml"
    recipe.write_text(QUICKSTART.read_text())
    with head_node(tmp_path) as environment:
        address = environment["RAY_API_SERVER_ADDRESS"]
        monkeypatch.setenv("RAY_AUTH_MODE", "disabled")

        def vanish(text: str) -> None:
            if "up" in text:
                flag = f"--port={address.rpartition(':')[2]}"
                for process in psutil.Process().children(recursive=True):
                    if flag in process.cmdline():
                        process.kill()

        with pytest.raises(WorkError, match="job server is gone") as caught:
            submit(recipe, overrides=[SHARED], working_dir=folder, address=address, on_log=vanish)
    assert caught.value.where == address
    assert "ray job status" in str(caught.value.hint)


@pytest.mark.timeout(60)
def test_a_server_that_takes_no_connection_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submission, "_PROBE_SECONDS", 0.05)

    class Silent:
        """A host that was cut off: the log neither goes on nor ends."""

        async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
            yield "line"
            await asyncio.sleep(600)

        def get_address(self) -> str:
            return f"http://127.0.0.1:{free_port()}"

    lines: list[str] = []
    with pytest.raises(OSError, match="Connect call failed"):
        asyncio.run(submission._follow(Silent(), "job", lines.append))
    assert lines == ["line"]
