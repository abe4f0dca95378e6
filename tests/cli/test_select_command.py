"""`expo-ray select`: its flags reach the recipe, and its output says what to do next."""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from rich.console import Console
from transformers import LlamaForCausalLM
from typer.testing import CliRunner

from expo_ray.cli.main import app
from expo_ray.cli.select_command import render_plan, render_result
from expo_ray.cli.terminal import PlainConsole
from expo_ray.errors import ConfigError
from expo_ray.reports import summary_rows
from expo_ray.serving import PAPER_SAMPLING, EngineOptions, SamplingParams
from expo_ray.workflow.recipe import Recipe
from tests.pico import pico_tokenizer
from tests.reports.run_directory import RunDirectory
from tests.thinking_model import PREFILLED, save_speaker

RUNNER = CliRunner()


def select(*arguments: object) -> list[str]:
    return ["select", "sft", "dpo", "--prompts", "p.jsonl", *map(str, arguments)]


@pytest.mark.parametrize(
    ("flags", "where", "expected"),
    [
        (("--guard", "length=2"), "--guard", "length-ratio"),
        (("--guard", "null-rewards=off"), "--guard null-rewards", None),
        (("--preset", "other"), "--preset", "paper"),
        (("--strategy", "random"), "--strategy", None),
        (("--min-alpha", "1"), "--min-alpha", None),
        (("--adaptive", "8", "--keep", "all"), "select", None),
        (("--top-p", "0"), "--top-p", None),
        (("--engine-arg", "max_num_seqs"), "--engine-arg", "name=value"),
        (("--engine-arg", "max_num_seqs=8"), "--engine-arg", None),
        (("--sample-statistic", "best"), "--sample-statistic", None),
        (("--checked-column", "gold"), "--checked-column", "OURS=NAME"),
    ],
)
def test_wrong_flags_are_refused_before_anything_is_written(
    flags: tuple[str, ...], where: str, expected: str | None, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    error = RUNNER.invoke(app, select("--output", output, *flags)).exception
    assert isinstance(error, ConfigError)
    assert error.where == where
    assert expected is None or expected in str(error.expected)
    assert not output.exists()


def test_how_answers_are_made_reaches_the_recipe(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[Recipe] = []

    def stop(recipe: Recipe, **_: object) -> None:
        seen.append(recipe)
        raise ConfigError("enough")

    monkeypatch.setattr("expo_ray.workflow.run.run_recipe", stop)
    sampling = ["--temperature", 0.2, "--top-p", 0.8, "--top-k", 7, "--stop", "END", "--stop", "Q:"]
    engine = ["--engine", "vllm", "--max-model-len", 512, "--tensor-parallel-size", 2]
    engine += ["--engine-arg", "dtype=float32", "--engine-arg", "max_num_seqs=8"]
    RUNNER.invoke(app, select("--output", tmp_path / "a", *sampling, *engine))
    RUNNER.invoke(app, select("--output", tmp_path / "b", "--preset", "paper", "--top-k", 0))
    RUNNER.invoke(app, select("--output", tmp_path / "c"))
    columns = ["--prompt-column", "question", "--checked-column", "answer=gold"]
    several = ["--sample-statistic", "pass@2", "--num-samples", 2]
    several += ["--report-only", "check:number", "--report-only", "rm", "--reasoning", "<plan>"]
    RUNNER.invoke(app, select("--output", tmp_path / "d", *columns, *several))
    full, paper, plain, checked = seen
    assert checked.prompts.columns == {"prompt": "question", "answer": "gold"}
    assert checked.selection.sample_statistic == "pass@2"
    assert checked.selection.report_only == ["check:number", "rm"]
    assert (checked.reasoning, plain.reasoning) == ("<plan>", "auto")
    made = full.sampling
    assert (made.temperature, made.top_p, made.top_k, made.stop) == (0.2, 0.8, 7, ("END", "Q:"))
    wanted = {"dtype": "float32", "max_num_seqs": 8}
    assert full.generators.options == EngineOptions(
        max_model_len=512, tensor_parallel_size=2, engine_args=wanted
    )
    assert paper.sampling == PAPER_SAMPLING.model_copy(update={"top_k": 0})
    assert plain.sampling == SamplingParams() == Recipe.model_fields["sampling"].default
    assert plain.generators.options == EngineOptions()


@pytest.mark.slow
def test_a_race_from_the_command_line(
    tmp_path: Path, ray_cluster: str, pico_pair: tuple[Path, Path], pico_reward_model: Path
) -> None:
    prompts = tmp_path / "p.jsonl"
    rows = [{"question": f"Tell me about number {n}."} for n in range(60)]
    prompts.write_text("\n".join(map(json.dumps, rows)))
    output = tmp_path / "run"
    flags = {
        "--prompts": prompts,
        "--prompt-column": "question",
        "--num-prompts": 40,
        "--output": output,
        "--reward-model": pico_reward_model,
        "--strategy": "racing",
        "--alpha": 2,
        "--guard": "length-ratio=off",
        "--num-samples": 2,
        "--max-tokens": 4,
        "--preset": "paper",
        "--address": ray_cluster,
    }
    arguments = [str(text) for flag in flags.items() for text in flag]
    result = RUNNER.invoke(app, ["select", *map(str, pico_pair), *arguments])
    assert result.exit_code == 0, result.output
    recipe = yaml.safe_load((output / "recipe.yaml").read_text())
    assert recipe["selection"]["max_length_ratio"] is None
    assert recipe["sampling"]["top_k"] == 50 and recipe["sampling"]["max_tokens"] == 4
    selection = json.loads((output / "selection.json").read_text())
    assert selection["num_tuning"] <= 20
    assert not {"length-ratio"} & {guard["name"] for guard in selection["guards"]}
    assert f"serve deploy {output / 'serve_config.yaml'}" in result.stdout


@pytest.mark.slow
def test_answers_are_checked_from_the_command_line(
    tmp_path: Path,
    ray_cluster: str,
    pico_pair: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own_checks.py").write_text(
        "def even(response, row):\n    return len(response) % 2 == 0\n"
    )
    rows = [{"prompt": f"What is {n} plus {n}?", "gold": 2 * n} for n in range(40)]
    Path("p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    flags = ["--prompts", "p.jsonl", "--checked-column", "answer=gold", "--output", "run"]
    flags += ["--alpha", "2", "--num-samples", "2", "--max-tokens", "4", "--address", ray_cluster]
    flags += ["--reward-model", "check:python=own_checks:even", "--reward-model", "check:number"]
    flags += ["--sample-statistic", "pass@2"]
    result = RUNNER.invoke(app, ["select", *map(str, pico_pair), *flags])
    assert result.exit_code == 0, result.output
    selection = json.loads(Path("run/selection.json").read_text())
    aligned = next(c for c in selection["candidates"] if c["alpha"] == 0)
    told = {(row["reward_model"], row["statistic"]): row["mean"] for row in aligned["samples"]}
    assert told["check:python=own_checks:even", "pass@2"] == aligned["mean_reward"]
    assert ("check:number", "majority@2") in told
    [table] = Path("run/rewards").glob("0-*/*-0.parquet")
    responses = pq.read_table(next(Path("run/responses").glob("*-0.parquet"))).to_pylist()
    expected = [float(len(row["response"]) % 2 == 0) for row in responses]
    assert pq.read_table(table)["reward"].to_pylist() == expected
    assert "Several answers to a prompt" in Path("run/report.html").read_text()


def save_pair_that_says_two(folder: Path) -> tuple[Path, Path]:
    """Save a pair that says "1" to everything, and "2" from an alpha of about a tenth on."""
    template = PREFILLED.replace("<think>", "")
    initial = save_speaker(folder / "sft", "1", template=template)
    aligned = folder / "dpo"
    shutil.copytree(initial, aligned)
    model = LlamaForCausalLM.from_pretrained(initial)
    tokenizer = pico_tokenizer()
    start, two = tokenizer("\n2", add_special_tokens=False).input_ids
    with torch.no_grad():
        model.lm_head.weight[tokenizer.eos_token_id, two] = 10.0
        model.save_pretrained(initial)
        model.lm_head.weight[two, start] = 9.0
        model.save_pretrained(aligned)
    return initial, aligned


@pytest.mark.slow
def test_a_check_that_is_only_reported_decides_nothing(
    tmp_path: Path, ray_cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own_checks.py").write_text("def is_two(response, row):\n    return '2' in response\n")
    rows = [{"prompt": f"Number {n}: what is 0 + 1?", "answer": 1} for n in range(60)]
    Path("p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    flags = ["--prompts", "p.jsonl", "--output", "run", "--alpha", "1", "--address", ray_cluster]
    flags += ["--reward-model", "check:python=own_checks:is_two", "--temperature", "0"]
    flags += ["--reward-model", "check:number", "--report-only", "check:number", "--allow-unfit"]
    pair = map(str, save_pair_that_says_two(tmp_path))
    result = RUNNER.invoke(app, ["select", *pair, *flags, "--max-tokens", "4"])
    assert result.exit_code == 0, result.output
    selection = json.loads(Path("run/selection.json").read_text())
    # All right answers are lost, which would stop the candidate as a guard or as a gate.
    assert (selection["verdict"], selection["best_alpha"]) == ("extrapolate", 1.0)
    assert not any("check-number" in guard["name"] for guard in selection["guards"])
    assert selection["settings"]["report_only"] == ["1-check-number"]
    [candidate] = [c for c in selection["candidates"] if c["alpha"]]
    [told] = candidate["reported"]
    assert (told["reward_model"], told["gain"]) == ("1-check-number", -1)
    [gate] = selection["gates"]
    assert (gate["name"], gate["margin"], gate["verdict"]) == ("1-check-number", None, None)
    assert (gate["aligned"], gate["candidate"], gate["difference"]) == (1, 0, -1)
    rewards = pq.read_table("run/rewards/1-check-number/alpha-1.parquet")
    assert rewards["reward"].to_pylist() == [0.0] * 60
    page = Path("run/report.html").read_text()
    assert "What must not be lost" in page and "reported" in page


def test_what_speaks_against_the_verdict_is_printed_with_it(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run", num_prompts=20)
    warning = "the verdict comes close to going in a circle"
    selection = run.write_selection(verdict="extrapolate", best_alpha=2.0, warnings=[warning])
    console = Console(file=io.StringIO(), width=200)
    result = {"output": str(run.path), "report": "r.html", "selection": selection, "next": []}
    render_result(console, result)
    assert f"warning: {warning}" in console.file.getvalue()  # type: ignore[attr-defined]


def shown_result(run: RunDirectory, selection: dict[str, Any], console: Console) -> list[str]:
    (run.path / "selection.json").write_text(json.dumps(selection))
    result = {"selection": selection, "output": run.path, "report": "", "next": []}
    render_result(console, result)
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("width", "is_terminal"), [(60, True), (80, True), (120, True), (80, False)]
)
def test_every_number_of_the_candidates_is_whole(
    width: int, is_terminal: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    run = RunDirectory(tmp_path / "run")
    run.write_all()
    selection = json.loads((run.path / "selection.json").read_text())
    selection["warnings"] = []
    selection["guards"] = [
        {"name": "reward-model 1-guard-reward-model", "alpha": 12.0, "fired": True, "value": -1.0}
    ]
    selection["candidates"][-2]["dropped"] = "special-tokens on 25 prompts"
    selection["candidates"][-2]["num_pairs"] = 25
    console = PlainConsole(io.StringIO())  # a log file: 80 columns
    if is_terminal:
        console = Console(file=io.StringIO(), width=width, force_terminal=True, no_color=True)
    lines = [re.sub("\x1b\\[[0-9;]*m", "", line) for line in shown_result(run, selection, console)]
    columns, rows = summary_rows(run.path)
    told = " ".join(" ".join(lines).split())
    found = re.search(r"left out at this width: ((?:[a-z ]+, )*[a-z ]+?) *Extra", told)
    left_out = found[1].split(", ") if found else []
    assert bool(left_out) is (width < 120)
    assert not {"alpha", "gain", "95% interval", "standing"} & set(left_out)
    for row in (columns, *rows):
        kept = [cell for name, cell in zip(columns, row, strict=True) if name not in left_out]
        assert all(any(cell in line for line in lines) for cell in kept[:-1])
        numbers = " ".join(kept[:-1]).split()
        assert any(line.split()[: len(numbers)] == numbers for line in lines), f"{row} in {lines}"
    assert "dropped:" in told and "25 prompts" in told
    assert all(len(line.rstrip()) <= width for line in lines if "/run" not in line), lines


def test_a_plan_is_whole_at_80_columns() -> None:
    sizes = {"bytes_in": 281_000_000_000, "bytes_out": 141_000_000_000}
    plan = {
        "name": "a-name",
        "output": "runs/a",
        "gates": [{"name": "gsm", "note": "250 prompts can tell"}],
        "warnings": ["the only guard reward model is none at all, which is said in a long line"],
        "stages": [
            {
                "stage": "extrapolation",
                "tasks": 12_345,
                "unit": "shard files",
                "worker_memory_bytes": 1_900_000_000,
                **sizes,
            },
            {"stage": "generation", "tasks": 1_200_000, "unit": "responses", "replicas": 16},
        ],
    }
    console = PlainConsole(io.StringIO())
    render_plan(console, plan)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for whole in ("12,345 shard files", "141.0 GB", "1,200,000 responses", "extrapolation"):
        assert whole in text
    assert max(map(len, text.splitlines())) <= 80
