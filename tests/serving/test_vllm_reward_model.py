"""Reward models in vLLM's pooling runner for real, on the CPU, beside those of transformers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForSequenceClassification
from transformers.models.roberta import RobertaConfig, RobertaForSequenceClassification
from typer.testing import CliRunner

from expo_ray.cli.main import app
from expo_ray.errors import ConfigError
from expo_ray.rewards import RewardScore, load_reward_model
from expo_ray.serving import RewardReplicas, score
from expo_ray.serving.engines.vllm import CLASSIFIERS
from expo_ray.serving.reward_rows import chat_of
from expo_ray.serving.self_test_file import measured_spread
from expo_ray.tables import read_table
from tests.pico import pico_config, save_model, save_reward_model
from tests.rewards.own_heads import save_gated, save_pairwise
from tests.serving.test_reward_replicas import response_rows, write
from tests.serving.vllm_here import PICO_SHAPE, require_vllm

require_vllm()

TOLERANCE = 1e-3
END = 2
"""The token that ends every turn of the template."""


def rows_of_many_lengths(count: int) -> list[dict[str, Any]]:
    """Answers from nothing to longer than the model reads, and a row that cannot be scored."""
    rows: list[dict[str, Any]] = response_rows(count)
    for i, row in enumerate(rows):
        row["response"] = f"{i} said " * (2 * i)
    rows[1].update(error="the replica died", response=None)
    rows[-1]["response"] *= 3
    return rows


def save_any(family: str, folder: Path) -> Path:
    """Save a classifier of a family whose scores differ from chat to chat."""
    torch.manual_seed(3)
    shape = pico_config(num_labels=1, **PICO_SHAPE).to_dict()
    own = ("model_type", "rope_parameters")
    kept = {name: value for name, value in shape.items() if name not in own}
    model = AutoModelForSequenceClassification.from_config(
        AutoConfig.for_model(family, **{**kept, "tie_word_embeddings": False, "head_dim": 32})
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.1)
    return save_model(model, folder)


def assert_alike(found: list[RewardScore], expected: list[RewardScore]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert (one.tokens, one.truncated, one.error) == (
            other.tokens,
            other.truncated,
            other.error,
        )
        assert one.reward == (
            other.reward if other.reward is None else pytest.approx(other.reward, abs=TOLERANCE)
        )


def test_a_table_is_scored_as_by_transformers(ray_cluster: str, tmp_path: Path) -> None:
    """With chats that end in the pad token, which is not the one that transformers scores."""
    model = str(save_reward_model(tmp_path / "rm", pad_token_id=END, **PICO_SHAPE))
    rows = rows_of_many_lengths(12)
    responses = write(tmp_path / "responses.parquet", rows)
    usual, output = tmp_path / "usual.parquet", tmp_path / "vllm.parquet"
    score(responses, reward_model=model, output=usual)
    with RewardReplicas(model, engine="vllm") as replicas:
        made = replicas.write_rewards(responses, output)
        again = replicas.write_rewards(responses, tmp_path / "again.parquet")
        chats = [chat_of(row) for row in rows if row["error"] is None]
        assert_alike(replicas.score(chats), load_reward_model(model).score(chats))
        with pytest.raises(ConfigError, match="other settings"):
            replicas.write_rewards(responses, usual)
    assert made["num_cached"] == 0, "scores of the other engine are not taken for its own"
    assert again["num_cached"] == made["num_rows"] - made["num_errors"]
    assert (made["num_errors"], made["num_truncated"]) == (2, 1)
    assert made["spread"] == measured_spread([output]) < TOLERANCE
    tables = [read_table(path).to_pylist() for path in (usual, output)]
    for one, other in zip(*tables, strict=True):
        rewards = one.pop("reward"), other.pop("reward")
        assert one == other
        assert rewards[1] == (
            None if rewards[0] is None else pytest.approx(rewards[0], abs=TOLERANCE)
        )
    spread = [row["reward"] for row in read_table(output).to_pylist() if row["reward"] is not None]
    assert max(spread) - min(spread) > 100 * TOLERANCE, "else any scores would agree"


def _not_of_these(folder: Path) -> str:
    shape = {"vocab_size": 262, "hidden_size": 32, "num_attention_heads": 2, "pad_token_id": 0}
    config = RobertaConfig(num_labels=1, num_hidden_layers=1, intermediate_size=32, **shape)
    return str(save_model(RobertaForSequenceClassification(config), folder))


def _with_a_bias(folder: Path) -> str:
    model = save_model(
        AutoModelForSequenceClassification.from_config(pico_config(num_labels=1)),
        folder,
        max_shard_size="1GB",
    )
    tensors = load_file(model / "model.safetensors")
    save_file({**tensors, "score.bias": torch.ones(1)}, model / "model.safetensors")
    return str(model)


@pytest.mark.parametrize(
    ("make", "got"),
    [
        (_not_of_these, "RobertaForSequenceClassification"),
        (_with_a_bias, "score.bias"),
        (lambda folder: str(save_pairwise(folder)[0]), "no classifier"),
        (lambda folder: str(save_gated(folder)[0]), "no classifier"),
        (lambda folder: "judge:http://127.0.0.1:1/v1#judge", "no classifier"),
        (lambda folder: "check:exact", "no classifier"),
        (lambda folder: "implicit:beta=1", "no classifier"),
    ],
)
def test_what_it_does_not_compute_is_refused(
    make: Callable[[Path], str],
    got: str,
    tmp_path: Path,
    pico_pair: tuple[Path, Path],
) -> None:
    pair = dict(zip(("initial", "aligned"), pico_pair, strict=True))
    with pytest.raises(ConfigError, match="vLLM does not compute") as caught:
        # This address refuses to start a Ray: what is told comes before that.
        score(
            tmp_path / "r.parquet",
            reward_model=make(tmp_path / "rm"),
            engine="vllm",
            output=tmp_path / "o.parquet",
            address="inline",
            **pair,
        )
    assert got in str(caught.value.got)
    assert caught.value.hint == "leave engine= out"


def test_an_engine_that_scores_nothing_is_named(pico_reward_model: Path) -> None:
    with pytest.raises(ConfigError, match="unknown engine") as caught:
        RewardReplicas(str(pico_reward_model), engine="auto")
    assert caught.value.expected == "transformers, vllm"


@pytest.mark.slow
@pytest.mark.parametrize("architecture", CLASSIFIERS)
def test_every_family_is_scored_as_by_transformers(
    ray_cluster: str, architecture: str, tmp_path: Path
) -> None:
    family = architecture.removesuffix("ForSequenceClassification").lower()
    model = str(save_any(family, tmp_path / "rm"))
    chats = [chat_of(row) for row in rows_of_many_lengths(12) if row["error"] is None]
    with RewardReplicas(model, engine="vllm", use_cache=False, allow_truncation=True) as replicas:
        found = replicas.score(chats)
    assert_alike(found, load_reward_model(model, truncate=True).score(chats))
    assert found[-1].truncated


@pytest.mark.slow
def test_a_folder_is_streamed_past_two_replicas_by_the_command(
    ray_cluster: str, tmp_path: Path
) -> None:
    model = str(save_reward_model(tmp_path / "rm", **PICO_SHAPE))
    rows = response_rows(120, text="streamed ")
    rows[5].update(error="the replica died", response=None)
    write(tmp_path / "responses" / "0.parquet", rows[:70])
    output = tmp_path / "rewards.parquet"
    asked = ["score", str(tmp_path / "responses"), "--reward-model", model]
    asked += ["--output", str(output), "--engine", "vllm", "--replicas", "2", "--json"]
    first = json.loads(CliRunner().invoke(app, asked).stdout)
    write(tmp_path / "responses" / "1.parquet", rows[70:])
    second = json.loads(CliRunner().invoke(app, asked).stdout)
    assert (first["num_scored"], first["num_errors"]) == (70, 1)
    assert (second["num_rows"], second["num_resumed"]) == (120, 69)
    rewards = {row["prompt_id"]: row["reward"] for row in read_table(output).to_pylist()}
    fine = [row for row in rows if row["error"] is None]
    expected = load_reward_model(model).score([chat_of(row) for row in fine])
    assert [rewards[row["prompt_id"]] for row in fine] == pytest.approx(
        [each.reward for each in expected], abs=TOLERANCE
    )


@pytest.mark.slow
def test_heads_that_it_cannot_attend_with_are_refused(
    ray_cluster: str, pico_reward_model: Path, tmp_path: Path
) -> None:
    responses = write(tmp_path / "responses.parquet", response_rows(2))
    with pytest.raises(ConfigError, match="heads of this size"):
        score(
            responses,
            reward_model=str(pico_reward_model),
            engine="vllm",
            output=tmp_path / "rewards.parquet",
        )
    assert not (tmp_path / "rewards.parquet").exists()
