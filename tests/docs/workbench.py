"""A folder with what the documentation speaks of: ./sft, ./dpo, ./training, ./rm, p.jsonl, ..."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.torch import save_file

from expo_ray.tables.schemas import RESPONSES_SCHEMA
from tests import samples
from tests.docs.blocks import ROOT
from tests.extrapolation.synthetic import load
from tests.head_node import free_port
from tests.pair_folders import write_pair_folders
from tests.pico import save_pair, save_reward_model
from tests.reports.run_directory import RunDirectory

QUESTIONS = ["Name a fruit.", "Write one short sentence about rain.", "What is two plus two?"]
CONTEXT = 4096
PORT = "8000"
"""What the documentation calls a service's port; the tests take a free one."""

RECIPE = """\
name: mine
output: run-of-recipe
initial: ./sft
aligned: ./dpo
reward_models: [./rm, implicit:beta=0.1]
prompts: {path: p.jsonl}
extrapolation: {alphas: [0.3]}
sampling: {max_tokens: 8}
loadtest: null
"""


def make_workbench(folder: Path) -> Path:
    """Make models, prompts and the recipes of a clone; the models are tiny and real.

    They have a context of 4096 tokens, so that no example ends for want of it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    initial, aligned = save_pair(folder, scale=0.002, max_position_embeddings=CONTEXT)
    initial.rename(folder / "sft")
    aligned.rename(folder / "dpo")
    _save_training(folder)
    for name, seed in (("rm", 7), ("rm2", 8)):
        save_reward_model(folder / name, seed=seed, max_position_embeddings=CONTEXT)
    rows = [{"prompt": f"{question} ({i})"} for i in range(4) for question in QUESTIONS]
    samples.write_lines(folder / "p.jsonl", rows)
    shutil.copytree(ROOT / "pipelines", folder / "pipelines")
    write_pair_folders(folder)  # a judge made them
    return folder


def _save_training(folder: Path) -> None:
    """Save checkpoints of a training that went from sft towards dpo, and settled."""
    first, last = load(folder / "sft"), load(folder / "dpo")
    for step in range(0, 50, 10):
        saved = folder / "training" / f"checkpoint-{step}"
        shutil.copytree(folder / "sft", saved, ignore=shutil.ignore_patterns("model*"))
        gone = 1 - math.exp(-step / 30)
        weights = {n: (w + gone * (last[n].float() - w)).to(w.dtype) for n, w in first.items()}
        save_file(weights, saved / "model.safetensors", metadata={"format": "pt"})


def add_results(folder: Path) -> Path:
    """Add what earlier commands would have left: a run, responses, judgements, a recipe."""
    RunDirectory(folder / "run").write_all()
    responses = [
        {
            "prompt_id": str(i),
            "sample": 0,
            "split": "tuning",
            "messages": [{"role": "user", "content": question}],
            "response": "Pear.",
            "model": "dpo",
            "alpha": 0.0,
            "weights_digest": "blake3:0",
            "seed": i,
            "finish_reason": "stop",
            "prompt_tokens": 8,
            "completion_tokens": 2,
            "error": None,
        }
        for i, question in enumerate(QUESTIONS)
    ]
    table = pa.Table.from_pylist(responses, schema=RESPONSES_SCHEMA)
    pq.write_table(table, folder / "responses.parquet")
    judged = samples.annotations([1.9, 1.8, 1.1, 1.5])
    (folder / "annotations.json").write_text(json.dumps(judged))
    for name, share in (("dpo", 0.5), ("gpt4", 1.0)):
        outputs = [
            {**row, "output": row["output"][: int(len(row["output"]) * share)], "generator": name}
            for row in samples.outputs(4)
        ]
        (folder / f"alpaca-{name}.json").write_text(json.dumps(outputs))
    pairs = [
        {"prompt": question, "chosen": "Pear.", "rejected": "no " * (i + 1), "subset": "fruit"}
        for i, question in enumerate([*QUESTIONS, "Name two."])
    ]
    samples.write_lines(folder / "preferences.jsonl", pairs)
    (folder / "recipe.yaml").write_text(RECIPE)
    right = [(0, 1)] * 8 + [(1, 0)] + [(1, 1)] * 20 + [(0, 0)] * 11
    lines = ["aligned,candidate", *(f"{one},{other}" for one, other in right)]
    write_mt_bench(folder)
    write_harness_task(folder / "tasks")
    for name, share in (("dpo", 0.67), ("expo", 0.6)):
        row = {"exact_match,strict-match": share, "exact_match_stderr,strict-match": 0.013}
        found = {"results": {"gsm8k": row}, "n-shot": {"gsm8k": 5}}
        (folder / f"results-{name}.json").write_text(json.dumps(found))
    (folder / "results.csv").write_text("\n".join(lines) + "\n")
    return folder


def write_harness_task(folder: Path) -> Path:
    """Write a task of lm-evaluation-harness, `fruit`, with six questions of two choices."""
    folder.mkdir()
    rows = [
        {"question": f"Which is a fruit ({i})?", "choices": ["pear", "stone"], "answer": i % 2}
        for i in range(6)
    ]
    task = {
        "output_type": "multiple_choice",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_target": "{{answer}}",
        "doc_to_choice": "{{choices}}",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    _write_task(folder, "fruit", rows, task)
    return folder


def write_harness_answers(folder: Path) -> None:
    """Write a task of lm-evaluation-harness beside others, `greetings`, whose answers are free."""
    rows = [{"question": f"Say hello ({i}).", "answer": "hello"} for i in range(3)]
    task = {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["\n\n"], "max_gen_toks": 16, "temperature": 1.0},
        "metric_list": [{"metric": "exact_match"}],
    }
    _write_task(folder, "greetings", rows, task)


def _write_task(
    folder: Path, name: str, rows: Sequence[dict[str, object]], task: dict[str, object]
) -> None:
    """Write a task with its own data, which is fetched from nowhere."""
    samples.write_lines(folder / f"{name}.jsonl", rows)
    data = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str((folder / f"{name}.jsonl").absolute())}},
        "test_split": "test",
        "metadata": {"version": 1},
    }
    (folder / f"{name}.yaml").write_text(json.dumps(data | task))  # JSON is YAML


def write_mt_bench(folder: Path) -> None:
    """Write two questions of MT-Bench's form, an answer to each, and the names of its prompts."""
    questions = [
        {"question_id": 81 + i, "category": category, "turns": ["Why?", "And then?"]}
        for i, category in enumerate(("writing", "stem"))
    ]
    answers = [
        {
            "question_id": question["question_id"],
            "model_id": "dpo",
            "choices": [{"index": 0, "turns": ["Because.", "Then {this}."]}],
        }
        for question in questions
    ]
    prompts = [
        {
            "name": f"single-{math}v1{turn}",
            "system_prompt": "You judge.",
            "prompt_template": "{question_2} {answer_2}" if turn else "{question} {answer}",
        }
        for math in ("", "math-")
        for turn in ("", "-multi-turn")
    ]
    samples.write_lines(folder / "question.jsonl", questions)
    samples.write_lines(folder / "mt-bench.jsonl", answers)
    samples.write_lines(folder / "judge_prompts.jsonl", prompts)


def environment() -> dict[str, str]:
    """The environment of a user's shell: `python` and `expo-ray` are those under test."""
    binaries = str(Path(sys.executable).parent)
    return {**os.environ, "PATH": os.pathsep.join([binaries, os.environ["PATH"]])}


@contextlib.contextmanager
def serving(command: str, folder: Path, env: Mapping[str, str]) -> Iterator[str]:
    """Run `expo-ray serve ...` on a free port until the body ends; yields that port."""
    port = str(free_port())
    with (folder / f"serve-{port}.log").open("w") as log:
        service = subprocess.Popen(
            ["bash", "-c", f"exec {command} --port {port} --json"],
            cwd=folder,
            env=env,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    try:
        assert service.stdout is not None
        if not any(json.loads(line)["event"] == "ready" for line in service.stdout):
            raise AssertionError((folder / f"serve-{port}.log").read_text())
        yield port
    finally:
        service.terminate()
        service.communicate()
