"""Pairs of other kinds than plain transformers: a state-space model, and one that sees images.

Tiny and random: extrapolated, answered by the engine, scored, served, and chosen in a report.
"""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest
import torch
from transformers import (
    LlavaConfig,
    LlavaForConditionalGeneration,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedModel,
)

from expo_ray import extrapolate, select
from expo_ray.rewards.implicit import ImplicitRewardModel
from expo_ray.serving.engines.interface import Row
from expo_ray.serving.engines.transformers_engine import TransformersEngine
from expo_ray.serving.sampling import SamplingParams
from expo_ray.serving.served_model import ServedModel
from expo_ray.serving.source import ModelSource
from tests.pico import pico_config, save_model

VISION = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
VISION |= {"num_attention_heads": 2, "image_size": 8, "patch_size": 4}
CHATS = [
    [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    for question, answer in (("Hi", "there, you"), ("A longer question?", "no"))
]


def mamba() -> PreTrainedModel:
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = MambaConfig(vocab_size=262, hidden_size=32, num_hidden_layers=2, state_size=4, **ids)
    return MambaForCausalLM(config)


def llava() -> PreTrainedModel:
    config = LlavaConfig(
        text_config=pico_config(tie_word_embeddings=False).to_dict(),
        vision_config={"model_type": "clip_vision_model", **VISION},
        image_token_index=261,
    )
    return LlavaForConditionalGeneration(config)


@pytest.fixture(scope="module", params=[mamba, llava], ids=["mamba", "llava"])
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp(request.param.__name__)
    torch.manual_seed(0)
    model = request.param().to(torch.bfloat16)
    initial = save_model(model, folder / "initial", max_shard_size="1MB")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_((torch.randn(parameter.shape) * 0.01).to(parameter.dtype))
    return initial, save_model(model, folder / "aligned", max_shard_size="1MB")


def test_served_as_extrapolated_and_alone_as_in_a_batch(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    extrapolate(*pair, tmp_path / "expo", alpha=0.5, address="inline")
    engine = TransformersEngine(device="cpu")
    engine.load(ModelSource(model=str(pair[1]), initial=str(pair[0]), alpha=0.5))
    record = json.loads((tmp_path / "expo" / "expo_ray.json").read_text())
    assert engine.weights_digest == record["weights_digest"]
    rows = [
        Row(
            prompt_ids=engine.encode_chat([{"role": "user", "content": text}]),
            params=SamplingParams(temperature=0, max_tokens=8),
            seed=3,
            max_tokens=8,
        )
        for text in ("Hi", "A much longer question?")
    ]
    texts = [made.text for made in engine.generate(rows)]
    assert texts == [engine.generate([row])[0].text for row in rows]
    # The model's own greedy answer.
    model = engine._loaded.model
    ids = torch.tensor([rows[0].prompt_ids])
    with torch.inference_mode():
        made = model.generate(ids, max_new_tokens=8, do_sample=False, pad_token_id=0)
    own = [i for i in made[0, ids.shape[1] :].tolist() if i != 2]
    assert texts[0] == engine._loaded.tokenizer.decode(own, skip_special_tokens=True)


def test_scored_in_a_batch_as_alone(pair: tuple[Path, Path]) -> None:
    model = ImplicitRewardModel(initial=str(pair[0]), aligned=str(pair[1]), beta=0.1)
    rewards = [score.reward for score in model.score(CHATS)]
    alone = [model.score([chat])[0].reward for chat in CHATS]
    assert None not in rewards
    assert rewards == pytest.approx(alone, abs=1e-4)
    assert len(set(rewards)) == len(rewards)


@pytest.mark.slow
def test_served_over_http_as_by_the_engine(pair: tuple[Path, Path], ray_cluster: str) -> None:
    source = ModelSource(model=str(pair[1]), initial=str(pair[0]), alpha=0.5)
    engine = TransformersEngine(device="cpu")
    engine.load(source)
    messages = [{"role": "user", "content": "Hi"}]
    row = Row(
        prompt_ids=engine.encode_chat(messages),
        params=SamplingParams(temperature=0, max_tokens=8),
        seed=3,
        max_tokens=8,
    )
    with ServedModel(source, engine="transformers") as served:
        chat = {"model": served.model, "messages": messages, "max_tokens": 8, "temperature": 0}
        answer = httpx.post(f"{served.url}/v1/chat/completions", json=chat, timeout=60).json()
    assert answer["choices"][0]["message"]["content"] == engine.generate([row])[0].text
    assert answer["system_fingerprint"] == engine.weights_digest


@pytest.mark.slow
def test_chosen_on_ray_and_reported(
    pair: tuple[Path, Path], tmp_path: Path, ray_cluster: str
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    lines = (json.dumps({"prompt": f"Question {i}?"}) + "\n" for i in range(8))
    prompts.write_text("".join(lines), encoding="utf-8")
    done = select(
        *map(str, pair),
        prompts=str(prompts),
        output=tmp_path / "run",
        alphas=[0.5],
        allow_unfit=True,
        settings={"sampling": {"max_tokens": 8}},
        address=ray_cluster,
    )
    candidates = {row["alpha"] for row in done["selection"]["candidates"]}
    assert candidates == {0.0, 0.5}
    report = Path(done["report"]).read_text(encoding="utf-8")
    assert report.startswith("<!DOCTYPE html>")
    assert "Question 0?" in report or "Question 1?" in report
