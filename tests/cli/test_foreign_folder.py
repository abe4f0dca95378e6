"""A command called in a folder of code, beside downloaded weights say, runs none of it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from expo_ray import extrapolate
from expo_ray.cli.main import app
from expo_ray.lab.studies import STUDIES
from tests.cli.test_main import EXPO_RAY
from tests.docs.workbench import write_harness_task, write_mt_bench
from tests.serving.test_reward_replicas import response_rows, write
from tests.workflow.test_run import write_recipe

ROOT = Path(__file__).resolve().parents[2]
NAMES = [
    "_bootstrap",
    "aiohttp",
    "cloudpickle",
    "expo_ray",
    "fastapi",
    "grpc",
    "json",
    "jinja2",
    "multiprocessing",
    "numpy",
    "pandas",
    "psutil",
    "pyarrow",
    "pydantic",
    "ray",
    "requests",
    "runpy",
    "safetensors",
    "setproctitle",
    "signal",
    "sitecustomize",
    "starlette",
    "struct",
    "tokenizers",
    "torch",
    "transformers",
    "typing_extensions",
    "usercustomize",
    "uvicorn",
    "vllm",
]
MARKED = """
import os, sys
with open({mark!r}, "a") as mark:
    mark.write(f"{{__name__}} {{os.getpid()}} {{sys.argv}}\\n")
raise ImportError("the module of a stranger")
"""
PAIR = ["initial", "aligned"]
PROMPTS = ["--prompts", "prompts.jsonl", "--max-tokens", "2"]
REWARD = ["--reward-model", "reward"]
FEW = ["--num-preference-prompts", "6", "--num-reward-prompts", "6", "--num-eval-prompts", "2"]
FEW += ["--fraction", "1", "--engine", "transformers"]
LOAD = ["--concurrency", "1", "--num-requests", "2", "--output", "load"]

# By command its arguments; everything lies in the folder in which it is called.
COMMANDS = {
    "extrapolate": [*PAIR, "new", "--alpha", "0.5"],
    "verify": ["extrapolated"],
    "diagnose": PAIR,
    "doctor": [*PAIR, "none"],
    "generate": ["aligned", *PROMPTS, "--output", "r.parquet"],
    "score": ["responses.parquet", *REWARD, "--output", "s.parquet"],
    "evaluate reward-bench": ["preferences.jsonl", *REWARD, "--no-cache"],
    "evaluate alpaca-eval": ["aligned", *PROMPTS, "--output", "o.json"],
    "evaluate mt-bench": ["aligned", "--output", "m.jsonl", "--max-tokens", "2"],
    "evaluate lm-eval": ["aligned", "--output", "h", "--task", "fruit", "--include-path", "tasks"],
    "loadtest": ["aligned", *PROMPTS, *LOAD],
    "select": [*PAIR, *PROMPTS, "--output", "run", "--alpha", "0.5", *REWARD],
    "run": ["recipe.yaml", "--set", "output=whole"],
    "serve": ["aligned"],
    "lab language": ["--output", "language", *FEW],
    "lab epochs": ["--small", "--seeds", "2", "--num-prompts", "4", "--output", "epochs"],
}
# The other controlled experiments are records of the one mechanism that epochs runs.
SAME = {f"lab {name}" for name in STUDIES} - COMMANDS.keys()
# The rest takes minutes; each joins or starts Ray by the same call.
FAST = {("extrapolate", "local"), ("score", "cluster")}
CASES = [(command, "cluster") for command in COMMANDS]
CASES += [(command, "local") for command in ("extrapolate", "score", "serve")]


@pytest.fixture(scope="module")
def foreign(
    tmp_path_factory: pytest.TempPathFactory,
    pico_pair: tuple[Path, Path],
    pico_reward_model: Path,
) -> Path:
    """A folder with models, inputs and modules that leave a mark where they are imported."""
    folder = tmp_path_factory.mktemp("foreign")
    for name, source in zip([*PAIR, "reward"], [*pico_pair, pico_reward_model], strict=True):
        shutil.copytree(source, folder / name)
    pair = (folder / "initial", folder / "aligned")
    write_recipe(folder, pair, folder / "reward", loadtest=None)
    extrapolate(*pair, folder / "extrapolated", alpha=0.5, address="inline")
    write(folder / "responses.parquet", response_rows(3))
    preference = {"prompt": "Say", "chosen": "more of it", "rejected": "less"}
    (folder / "preferences.jsonl").write_text(json.dumps(preference))
    write_mt_bench(folder)
    write_harness_task(folder / "tasks")
    for name in NAMES:
        (folder / f"{name}.py").write_text(MARKED.format(mark=str(folder / "mark")))
    return folder


@pytest.mark.parametrize(
    ("command", "where"),
    [
        pytest.param(*case, marks=[] if case in FAST else pytest.mark.slow, id=" ".join(case))
        for case in CASES
    ],
)
def test_a_command_runs_no_code_of_the_folder_it_is_called_in(
    command: str, where: str, foreign: Path, ray_cluster: str
) -> None:
    import ray
    import ray.serve

    environment = {**os.environ, "RAY_AUTH_MODE": "token", "PYTHONPATH": str(ROOT)}
    address = ray.get_runtime_context().gcs_address if where == "cluster" else "local"
    if command == "serve":
        ray.serve.shutdown()  # one that tests before have left listens at another port
    line = [EXPO_RAY, *command.split(), *COMMANDS[command], "--json", "--address", address]
    with subprocess.Popen(
        line, cwd=foreign, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            if command == "serve":
                lines = [process.stdout.readline() for _ in range(2)]
                events = [json.loads(line).get("event") for line in lines if line]
                assert events == ["starting", "ready"], lines
                process.send_signal(signal.SIGTERM)
            said = process.communicate(timeout=300)[0]
        finally:
            process.kill()
    assert process.returncode == (143 if command == "serve" else 0), said
    mark = foreign / "mark"
    assert not mark.exists(), mark.read_text()


def addressed(tree: typer.Typer, prefix: str = "") -> Iterator[str]:
    """Every command that takes the address of a Ray."""
    for command in tree.registered_commands:
        assert command.callback is not None
        kind = typing.get_type_hints(command.callback, include_extras=True).get("address")
        if "RAY" in [option.metavar for option in getattr(kind, "__metadata__", ())]:
            yield f"{prefix}{command.name or command.callback.__name__}"
    for group in tree.registered_groups:
        if group.typer_instance is not None:
            yield from addressed(group.typer_instance, f"{group.name} ")


def test_every_command_that_may_use_ray_is_tried() -> None:
    assert sorted(addressed(app)) == sorted([*COMMANDS, *SAME])
