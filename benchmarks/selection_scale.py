"""How long choosing alpha and its report take on a large finished run, and in how much memory.

    python -m benchmarks.selection_scale --prompts 100000 --alphas 8

Makes up a run directory (answers of 80 words, a scoring and a guard reward model, some failed and
cut answers), then times in a fresh process: reading the tables, the choice, the same choice again
(the signs of the texts stand beside the tables), and the report. Memory is the peak of the process,
and of it and those that it started together, pages that they share counted once.

Needs: two CPU cores, 2 GB of disk. Takes: 5 minutes, half of them for making the run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from expo_ray.extrapolation import checkpoint_name
from expo_ray.reports import write_report
from expo_ray.selection import SelectionSettings, choose_alpha
from expo_ray.selection.measured_files import read_responses, read_rewards
from expo_ray.tables.schemas import RESPONSES_SCHEMA, REWARDS_SCHEMA
from tests import samples

MIB = 2**20
NUM_WORDS = 80
ERROR_RATE = 0.001
REWARD_MODELS = ("0-reward-model", "1-guard")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=100_000)
    parser.add_argument("--alphas", type=int, default=8, help="alpha 0 is one of them")
    parser.add_argument("--run", type=Path, help="keep the run here, or use the one that is here")
    parser.add_argument("--measure", action="store_true", help="measure the run of --run alone")
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.run)
        return
    with tempfile.TemporaryDirectory() as folder:
        run = arguments.run or Path(folder)
        if not (run / "responses").exists():
            make_run(run, arguments.prompts, np.arange(arguments.alphas) / 2)
        command = [sys.executable, "-m", "benchmarks.selection_scale", "--measure", "--run", run]
        subprocess.run(command, check=True)


def make_run(path: Path, num_prompts: int, alphas: np.ndarray) -> None:
    """Write responses and rewards as a finished run has them."""
    rng = np.random.default_rng(0)
    words = sorted({w for _, _, text in samples.PAIRS for w in text.split() if w.isascii()})
    questions = texts(rng, words, num_prompts, 12)
    keys = {
        "prompt_id": pa.array([f"prompt-{i}" for i in range(num_prompts)]),
        "sample": pa.array(np.zeros(num_prompts, np.int32)),
        "split": pa.array(np.where(np.arange(num_prompts) % 2, "heldout", "tuning")),
        "seed": pa.array(np.arange(num_prompts)),
    }
    liked = {name: rng.normal(0, 1, num_prompts) for name in REWARD_MODELS}
    for alpha in alphas:
        failed = rng.random(num_prompts) < ERROR_RATE
        own = {
            **keys,
            "alpha": pa.array(np.full(num_prompts, alpha)),
            "weights_digest": pa.array([f"blake3:{alpha:064}"] * num_prompts),
            "error": pa.array(np.where(failed, "timed out", None), pa.string()),
        }
        answers = texts(rng, words, num_prompts, NUM_WORDS)
        chats = [[{"role": "user", "content": question}] for question in questions]
        responses = {
            **own,
            "messages": pa.array(chats, RESPONSES_SCHEMA.field("messages").type),
            "response": pa.array(answers, pa.string(), mask=failed),
            "model": pa.array(["model"] * num_prompts),
            "finish_reason": pa.array(
                np.where(rng.random(num_prompts) < 0.02, "length", "stop"), mask=failed
            ),
            "prompt_tokens": pa.array(np.full(num_prompts, 16)),
            "completion_tokens": pa.array(rng.poisson(100 + alpha, num_prompts), mask=failed),
            "thought": pa.nulls(num_prompts, pa.string()),
            "thought_tokens": pa.array(np.zeros(num_prompts, np.int64), mask=failed),
        }
        write(path / "responses", float(alpha), responses, RESPONSES_SCHEMA)
        for name in REWARD_MODELS:
            gain = 0.1 * alpha - 0.02 * alpha**2 + rng.normal(0, 0.5, num_prompts) * bool(alpha)
            rewards = {
                **own,
                "reward": pa.array(liked[name] + gain, mask=failed),
                "reward_model": pa.array([name] * num_prompts),
                "reward_model_revision": pa.nulls(num_prompts, pa.string()),
                "tokens": pa.array(np.full(num_prompts, 116)),
                "truncated": pa.array(np.zeros(num_prompts, bool)),
            }
            write(path / "rewards" / name, float(alpha), rewards, REWARDS_SCHEMA)


def texts(rng: np.random.Generator, words: list[str], num_texts: int, length: int) -> list[str]:
    drawn = np.array(words, object)[rng.integers(len(words), size=(num_texts, length))]
    return [" ".join(row) for row in drawn]


def write(folder: Path, alpha: float, columns: dict[str, pa.Array], schema: pa.Schema) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    num_rows = len(columns["prompt_id"])
    given = [columns.get(field.name, pa.nulls(num_rows, field.type)) for field in schema]
    table = pa.table(given, schema=schema)
    pq.write_table(table, folder / f"{checkpoint_name(alpha)}.parquet")


def measure(run: Path) -> None:
    """Print the seconds of each stage and the memory at the peak, all in this process."""
    (run / "text_signs.parquet").unlink(missing_ok=True)
    together = [0]
    threading.Thread(target=watch, args=(together,), daemon=True).start()
    with stage("reading the tables"):
        responses = read_responses(files(run / "responses"))
        rewards = {name: read_rewards(files(run / "rewards" / name)) for name in REWARD_MODELS}
    tables = sum(table.nbytes for table in (responses, *rewards.values()))
    scoring, *guards = REWARD_MODELS
    num_responses = responses.num_rows
    for name in ("choice", "choice again"):
        with stage(name):
            selection = choose_alpha(
                responses,
                rewards[scoring],
                settings=SelectionSettings(),
                guard_rewards={name: rewards[name] for name in guards},
                signs_file=run / "text_signs.parquet",
            )
    (run / "selection.json").write_text(json.dumps(selection), "utf-8")
    del responses, rewards
    with stage("report"):
        write_report(run)
    print(
        f"{num_responses} responses; peak {peak() / MIB:.0f} MiB, {(peak() - tables) / MIB:.0f} "
        f"above the tables ({tables / MIB:.0f}); all processes together {together[0] / MIB:.0f} MiB"
    )


@contextmanager
def stage(name: str) -> Iterator[None]:
    start, cpu = time.perf_counter(), cpu_seconds()
    yield
    spent, cpu = time.perf_counter() - start, cpu_seconds() - cpu
    print(f"{name:20}{spent:8.1f} s, {cpu:6.1f} s of CPU, peak {peak() / MIB:6.0f} MiB", flush=True)


def cpu_seconds() -> float:
    """Return what this process and those that it started and that ended have computed."""
    return sum(os.times()[:4])


def peak() -> int:
    """Return the most memory that this process ever held, in bytes."""
    status = Path("/proc/self/status").read_text("utf-8")
    return 1024 * int(next(s for s in status.splitlines() if s.startswith("VmHWM")).split()[1])


def watch(together: list[int]) -> None:
    """Note the most memory of this process and of all that it started, a few times a second."""
    while True:
        processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
        total = 0
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                total += process.memory_full_info().pss
        together[0] = max(together[0], total)
        time.sleep(0.3)


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.parquet"))


if __name__ == "__main__":
    main()
