"""Where the seconds go from a command that starts Ray to its first useful work, stage by stage.

    python -m benchmarks.startup
    python -m benchmarks.startup --commands generate,score --runs 5

The models are tiny, so that what is left is start and end. The functions of the commands run in
processes of their own; the stages are told by which processes of theirs are there: `driver` until
Ray's first (imports, checks of the request), `Ray` until its workers are there, `Serve` until the
first replica's process has its work, `replica` until the first useful work (imports, model, probes,
self-test), `work` until the result is there or, of a service, the first answer, `end` until the
process has ended. `select` starts replicas of both kinds.

Needs: 2 GB of memory. Takes: 5 minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

from tests.head_node import free_port

STAGES = ("driver", "Ray", "Serve", "replica", "work", "end")
_LOOK_SECONDS = 0.05
# What a stage ends with: part of the command line of a process below the command.
_PROCESSES = {"driver": "gcs_server", "Ray": "ray::IDLE", "Serve": "ray::SERVE_REPLICA"}
_WORK_OF_REPLICAS = ("Generating", "Scoring", "Serving", "Load test")
_NUM_PROMPTS = 8


class Stamps:
    """A `Progress` that keeps when replicas had done their first work, on the system's clock."""

    def __init__(self) -> None:
        self.first: float | None = None
        self._is_of_replicas = False

    def start(self, description: str, total: float | None = None, unit: str = "") -> Stamps:
        # `select` diagnoses the pair before.
        self._is_of_replicas = description.startswith(_WORK_OF_REPLICAS)
        return self

    def message(self, text: str) -> None:
        pass

    def advance(self, amount: float = 1) -> None:
        if self.first is None and amount and self._is_of_replicas:
            self.first = time.time()

    def set_total(self, total: float) -> None:
        pass

    def close(self) -> None:
        pass


def generate_once(folder: Path, output: Path, stamps: Stamps) -> None:
    from expo_ray import generate
    from expo_ray.serving import SamplingParams

    generate(
        folder / "aligned",
        initial=folder / "initial",
        alpha=0.3,
        prompts=folder / "prompts.jsonl",
        output=output / "responses.parquet",
        engine="transformers",
        sampling=SamplingParams(max_tokens=8),
        address="local",
        progress=stamps,
    )


def score_once(folder: Path, output: Path, stamps: Stamps) -> None:
    from expo_ray import score

    score(
        folder / "responses.parquet",
        reward_model=str(folder / "reward-model"),
        output=output / "rewards.parquet",
        use_cache=False,
        address="local",
        progress=stamps,
    )


def select_once(folder: Path, output: Path, stamps: Stamps) -> None:
    from expo_ray import select

    select(
        str(folder / "initial"),
        str(folder / "aligned"),
        prompts=str(folder / "prompts.jsonl"),
        output=output / "run",
        reward_models=[str(folder / "reward-model")],
        alphas=[0.3],
        settings={"generators": {"engine": "transformers"}, "sampling": {"max_tokens": 8}},
        address="local",
        progress=stamps,
    )


def loadtest_once(folder: Path, output: Path, stamps: Stamps) -> None:
    from expo_ray import loadtest
    from expo_ray.loadtests import LoadtestOptions

    loadtest(
        str(folder / "aligned"),
        prompts=folder / "prompts.jsonl",
        output=output / "load",
        concurrency=[1],
        num_requests=_NUM_PROMPTS,
        max_tokens=8,
        options=LoadtestOptions(engine="transformers"),
        address="local",
        progress=stamps,
    )


def serve_once(folder: Path, output: Path, stamps: Stamps) -> None:
    from expo_ray import serve

    def end_when_ready(event: dict[str, Any]) -> None:
        if event["event"] == "ready":
            stamps.start("Serving").advance()
            raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt):
        serve(
            folder / "aligned",
            engine="transformers",
            port=free_port(),
            address="local",
            on_event=end_when_ready,
        )


COMMANDS: dict[str, Callable[[Path, Path, Stamps], None]] = {
    "generate": generate_once,
    "score": score_once,
    "select": select_once,
    "serve": serve_once,
    "loadtest": loadtest_once,
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--commands", default=",".join(COMMANDS), help="separated by commas")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "expo-bench")
    parser.add_argument("--side", choices=sorted(COMMANDS), help=argparse.SUPPRESS)
    flags = parser.parse_args(arguments)
    folder = flags.folder / "startup"
    if flags.side:
        stamps = Stamps()
        with tempfile.TemporaryDirectory() as output:
            COMMANDS[flags.side](folder, Path(output), stamps)
            print(json.dumps({"first": stamps.first, "done": time.time()}))
        return 0
    make_inputs(folder)
    print(f"{'seconds of':10} {'  '.join(f'{stage:>7}' for stage in STAGES)}    total      CPU")
    for name in flags.commands.split(","):
        runs = [measure(name, flags.folder) for _ in range(flags.runs)]
        medians = [statistics.median(run[what] for run in runs) for what in (*STAGES, "total")]
        cpu = statistics.median(run["CPU"] for run in runs)
        print(f"{name:10} {'  '.join(f'{each:7.2f}' for each in medians)}  {cpu:7.2f}", flush=True)
    return 0


def make_inputs(folder: Path) -> None:
    """Write a pair, a reward model, prompts and responses, once."""
    if (folder / "responses.parquet").exists():
        return
    from transformers import LlamaForSequenceClassification

    from benchmarks.scoring import save_responses
    from tests.pico import pico_config, save_model, save_pair

    save_pair(folder)
    reward_model = LlamaForSequenceClassification(pico_config(num_labels=1))
    save_model(reward_model, folder / "reward-model")
    asked = [f"Tell me something about {i}." for i in range(_NUM_PROMPTS)]
    lines = [json.dumps({"prompt": text}) + "\n" for text in asked]
    (folder / "prompts.jsonl").write_text("".join(lines))
    save_responses(folder / "responses.parquet", [(text, "It is a number.") for text in asked])


def measure(name: str, folder: Path) -> dict[str, float]:
    """Run a command once and return the seconds of its stages, in all, and of CPU."""
    command = [sys.executable, "-m", "benchmarks.startup", "--side", name, "--folder", str(folder)]
    started = time.time()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    ends: dict[str, float] = {}
    cpu_seconds: dict[int, float] = {}
    while process.poll() is None:
        for each in _tree(process.pid):
            with contextlib.suppress(psutil.Error):
                line, times = " ".join(each.cmdline()), each.cpu_times()
                cpu_seconds[each.pid] = times.user + times.system
                for stage, part in _PROCESSES.items():
                    if part in line:
                        ends.setdefault(stage, time.time())
        time.sleep(_LOOK_SECONDS)
    ended = time.time()
    if process.returncode or process.stdout is None:
        sys.exit(f"{' '.join(command)} failed")
    told = json.loads(process.stdout.read().splitlines()[-1])
    ends |= {"replica": told["first"], "work": told["done"], "end": ended}
    taken = {"total": ended - started, "CPU": sum(cpu_seconds.values())}
    before = started
    for stage in STAGES:
        taken[stage] = ends[stage] - before
        before = ends[stage]
    return taken


def _tree(pid: int) -> list[psutil.Process]:
    try:
        top = psutil.Process(pid)
        return [top, *top.children(recursive=True)]
    except psutil.Error:
        return []


if __name__ == "__main__":
    sys.exit(main())
