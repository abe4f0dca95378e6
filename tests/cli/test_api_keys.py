"""A key that cannot be sent: every command that takes one refuses it at once, unseen."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXPO_RAY = Path(sys.executable).with_name("expo-ray")


@pytest.mark.parametrize("command", ["serve", "loadtest", "set", "show", "score"])
def test_two_lines_are_no_key(command: str, pico_pair: tuple[Path, Path], tmp_path: Path) -> None:
    prompts = tmp_path / "p.jsonl"
    prompts.write_text('{"prompt": "x"}')
    key = ("--api-key-env", "A_KEY")
    url = "http://127.0.0.1:1"
    arguments: dict[str, tuple[object, ...]] = {
        "serve": ("serve", pico_pair[1], *key),
        "loadtest": (
            *("loadtest", url, "--prompts", prompts, "--output", tmp_path / "out"),
            *("--concurrency", "1", *key),
        ),
        "set": ("alpha", "set", "0.5", "--url", url, *key),
        "show": ("alpha", "show", "--url", url, *key),
        "score": (
            *("score", tmp_path / "r.parquet", "--reward-model", f"judge:{url}/v1#m"),
            *("--output", tmp_path / "out"),
        ),
    }
    two_lines = "visible-one\nvisible-two"
    # This address refuses to start a Ray: what is told comes before that.
    told = {"A_KEY": two_lines, "EXPO_RAY_JUDGE_API_KEY": two_lines, "RAY_ADDRESS": "127.0.0.1:1"}
    result = subprocess.run(
        [str(EXPO_RAY), *map(str, arguments[command]), "--json"],
        env={**os.environ, **told},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert result.returncode == 2, result.stderr
    error = json.loads(result.stdout)["error"]
    assert error["message"] == "the API key holds what no HTTP header can carry"
    assert "visible" not in result.stdout + result.stderr
    assert not (tmp_path / "out").exists()
