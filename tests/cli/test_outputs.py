"""An output that cannot be written is refused before any work, and a URI is no folder `s3:`."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from expo_ray.cli.main import app
from expo_ray.errors import ConfigError

PROMPTS = '{"prompt": "one"}\n{"prompt": "two"}\n'
Pair = tuple[Path, Path]

COMMANDS = {
    "generate": "generate {aligned} --prompts prompts.jsonl --output {output}",
    "score": "score responses.parquet --reward-model {reward} --output {output}",
    "alpaca-eval": "evaluate alpaca-eval {aligned} --prompts prompts.jsonl --output {output}",
    "select": "select {initial} {aligned} --prompts prompts.jsonl --output {output}",
    "loadtest": "loadtest {aligned} --prompts prompts.jsonl --output {output} --concurrency 1",
    "compared": "loadtest {aligned} --initial {initial} --alpha 0.1 --versus-alpha 0 "
    "--prompts prompts.jsonl --output {output} --concurrency 1",
    "scaling": "loadtest {aligned} --replicas 1,2 --prompts prompts.jsonl --output {output} "
    "--concurrency 1",
}
WRITES_FILES = {"generate", "score", "alpaca-eval"}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "prompts.jsonl").write_text(PROMPTS)
    (tmp_path / "a-file").write_text("")
    (tmp_path / "a-folder").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refusal(
    command: str, pico_pair: Pair, pico_reward_model: Path, output: str = ""
) -> ConfigError:
    values = {
        "initial": pico_pair[0],
        "aligned": pico_pair[1],
        "reward": pico_reward_model,
        "output": output,
    }
    before = sorted(Path().rglob("*"))
    result = CliRunner().invoke(app, [word.format(**values) for word in command.split()])
    assert isinstance(result.exception, ConfigError), result.output or result.exception
    assert sorted(Path().rglob("*")) == before
    return result.exception


@pytest.mark.parametrize("command", COMMANDS)
def test_an_output_that_cannot_be_written_is_refused_at_once(
    command: str, pico_pair: Pair, pico_reward_model: Path
) -> None:
    wrong_kind = "a-folder" if command in WRITES_FILES else "a-file"
    for output in (wrong_kind, "a-file/below", "a-file/far/below", "s3://bucket/x", "gs://b/x"):
        error = refusal(COMMANDS[command], pico_pair, pico_reward_model, output)
        assert error.where == "--output"
        assert error.got == output


def test_tables_and_runs_in_a_bucket_are_refused_as_such(
    pico_pair: Pair, pico_reward_model: Path
) -> None:
    score = "score s3://b/r.parquet --reward-model {reward} --output rewards.parquet"
    for command in (score, "report s3://bucket/run"):
        error = refusal(command, pico_pair, pico_reward_model)
        assert "file system" in error.message
        assert str(error.got).startswith("s3://b")


def test_the_python_twins_refuse_them_too() -> None:
    from expo_ray.loadtests import loadtest
    from expo_ray.serving import generate, score
    from expo_ray.workflow.run import select

    calls = [
        lambda: generate("m", prompts="prompts.jsonl", output="s3://bucket/x"),
        lambda: score("r", reward_model="implicit:beta=1", output=Path("s3://bucket/x")),
        lambda: select("i", "a", prompts="prompts.jsonl", output="s3://bucket/x"),
        lambda: loadtest("m", prompts="prompts.jsonl", output="s3://b/x", concurrency=[1]),
    ]
    for call in calls:
        with pytest.raises(ConfigError, match="file system"):
            call()
    names = sorted(path.name for path in Path().iterdir())
    assert names == ["a-file", "a-folder", "prompts.jsonl"]
