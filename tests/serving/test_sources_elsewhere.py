"""Models and reward models in buckets, on the Hub, and as adapters: the same as local ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from expo_ray.checkpoints import open_checkpoint
from expo_ray.extrapolation import extrapolate
from expo_ray.rewards import RewardModelSpec, load_reward_model, pin_reward_model
from expo_ray.serving.engines.interface import Row
from expo_ray.serving.engines.transformers_engine import TransformersEngine
from expo_ray.serving.sampling import SamplingParams
from expo_ray.serving.source import ModelSource
from expo_ray.tables import Message
from tests.checkpoints.hub_server import HubServer, hub_server
from tests.checkpoints.s3_server import settings, upload
from tests.pico import save_pair
from tests.serving.vllm_here import PICO_SHAPE, REASON

Pair = tuple[Path, Path]
MAIN = "from expo_ray.cli.main import main; main()"
CHATS = [
    [Message(role="user", content="q" * n), Message(role="assistant", content="a" * n)]
    for n in (1, 5, 9)
]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def hub(
    monkeypatch: pytest.MonkeyPatch, pico_pair: Pair, pico_reward_model: Path
) -> Iterator[HubServer]:
    with hub_server(monkeypatch) as running:
        for name, folder in zip(("sft", "dpo"), pico_pair, strict=True):
            running.add(f"owner/{name}", folder)
        running.add("owner/rm", pico_reward_model)
        yield running


@pytest.fixture(scope="module")
def adapter(pico_pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA adapter on initial, without tokenizer and config."""
    torch.manual_seed(1)
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "up_proj"])
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(pico_pair[0]), config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    folder = tmp_path_factory.mktemp("adapter") / "lora"
    model.save_pretrained(folder)
    return folder


def answers(source: ModelSource) -> tuple[str, list[str]]:
    engine = TransformersEngine()
    engine.load(source)
    params = SamplingParams(temperature=1, max_tokens=8)
    rows = [
        Row(prompt_ids=engine.encode_chat(chat[:1]), params=params, seed=i, max_tokens=8)
        for i, chat in enumerate(CHATS)
    ]
    return engine.weights_digest, [made.text for made in engine.generate(rows)]


@pytest.mark.parametrize("place", ["bucket", "hub"])
@pytest.mark.parametrize("alpha", [None, 0.5])
def test_an_engine_answers_alike_wherever_the_weights_lie(
    pico_pair: Pair, s3: str, hub: HubServer, place: str, alpha: float | None
) -> None:
    addresses = ["owner/sft", "hf://owner/dpo@main"]
    if place == "bucket":
        addresses = [upload(s3, folder, f"pair/{folder.name}") for folder in pico_pair]
    initial, aligned = (None if alpha is None else str(x) for x in (pico_pair[0], addresses[0]))
    local = ModelSource(model=str(pico_pair[1]), initial=initial, alpha=alpha)
    there = ModelSource(model=addresses[1], initial=aligned, alpha=alpha).pinned()
    assert answers(there) == answers(local)
    assert there.pinned() == there
    if place == "hub":
        assert there.model == f"hf://owner/dpo@{hub.commits['owner/dpo']}"
        assert there.name == ("dpo" if alpha is None else "dpo@alpha=0.5")
        # The branch moves on; the pinned source stays what it was.
        assert "@main" not in f"{there.model} {there.initial}"


def test_a_digest_is_known_before_loading_and_an_adapter_has_its_own(
    pico_pair: Pair, adapter: Path, s3: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    result = extrapolate(*pico_pair, out, alpha=0.3, address="inline")
    written = result.outputs[0].weights_digest
    assert ModelSource(model=upload(s3, out, "out")).known_digest() == written
    # The adapter's base is an output with a record; that digest is not the adapter's.
    source = ModelSource(model=f"{adapter}#base={out}").pinned()
    assert source.known_digest() is None
    assert source.known_digest(read_weights=True) == answers(source)[0] != written


def test_alpha_is_known_of_a_pair_and_of_what_was_written(pico_pair: Pair, tmp_path: Path) -> None:
    initial, aligned = map(str, pico_pair)
    extrapolate(initial, aligned, tmp_path / "out", alpha=0.5, address="inline")
    assert ModelSource(model=str(tmp_path / "out")).known_alpha() == 0.5
    assert ModelSource(model=aligned, initial=initial, alpha=0.3).known_alpha() == 0.3
    assert ModelSource(model=aligned).known_alpha() is None


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_an_adapter_is_served_as_what_extrapolate_writes(
    pico_pair: Pair,
    adapter: Path,
    tmp_path: Path,
    alpha: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(adapter.parent)
    source = ModelSource(model="lora", initial=str(pico_pair[0]), alpha=alpha)
    pinned = source.pinned()
    assert pinned.model == f"{adapter}#base={pico_pair[0]}"
    assert (pinned.name, replace(pinned, alpha=1).name) == (source.name, "lora@alpha=1")
    out = tmp_path / "out"
    extrapolate(pico_pair[0], adapter, out, alpha=alpha, address="inline")
    monkeypatch.chdir(tmp_path)
    assert answers(pinned) == answers(ModelSource(model=str(out)))


def rewards(spec: str, **pair: str) -> list[float | None]:
    return [score.reward for score in load_reward_model(spec, **pair).score(CHATS)]


def test_reward_models_in_a_bucket_and_on_the_hub(
    pico_pair: Pair, pico_reward_model: Path, s3: str, hub: HubServer
) -> None:
    expected = rewards(str(pico_reward_model))
    assert len(set(expected)) == len(CHATS)
    assert rewards(upload(s3, pico_reward_model, "rm")) == expected
    assert rewards("hf://owner/rm") == expected
    spec, *_ = pin_reward_model(RewardModelSpec.parse("owner/rm"), initial=None, aligned=None)
    assert spec.model == f"hf://owner/rm@{hub.commits['owner/rm']}"
    pinned = load_reward_model(spec)
    assert (pinned.name, [s.reward for s in pinned.score(CHATS)]) == ("owner/rm", expected)
    both = {"initial": str(pico_pair[0]), "aligned": str(pico_pair[1])}
    remote = {"initial": "owner/sft", "aligned": upload(s3, pico_pair[1], "rm/aligned")}
    assert rewards("implicit:beta=1", **remote) == rewards("implicit:beta=1", **both)


def test_the_implicit_reward_of_an_adapter(pico_pair: Pair, adapter: Path) -> None:
    initial = str(pico_pair[0])
    found = rewards("implicit:beta=1", initial=initial, aligned=str(adapter))
    assert all(reward for reward in found)
    spec = RewardModelSpec.parse("implicit:beta=1")
    _, *pair = pin_reward_model(spec, initial=initial, aligned=str(adapter))
    assert pair == [initial, open_checkpoint(adapter, base=open_checkpoint(initial)).uri]
    assert rewards("implicit:beta=1", initial=pair[0], aligned=pair[1]) == found


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_commands_from_a_bucket_on_ray(
    pico_reward_model: Path, s3_url: str, tmp_path: Path, engine: str
) -> None:
    if engine == "vllm":
        pytest.importorskip("vllm", reason=REASON)
    pair = save_pair(tmp_path / "pair", tie_word_embeddings=False, **PICO_SHAPE)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("\n".join(json.dumps({"prompt": "q" * n}) for n in range(1, 4)))
    environment = {**os.environ, **settings(s3_url), "OMP_NUM_THREADS": "1"}

    def expo_ray(*words: object) -> dict[str, object]:
        command = [sys.executable, "-c", MAIN, *map(str, words), "--address", "local", "--json"]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr[-3000:]
        assert "of-tests" not in done.stdout + done.stderr
        return dict(json.loads(done.stdout))

    responses, scored = tmp_path / "responses.parquet", tmp_path / "rewards.parquet"
    initial, aligned = (upload(s3_url, folder, f"{engine}/{folder.name}") for folder in pair)
    live = ("--initial", initial, "--alpha", "0.5", "--engine", engine, "--max-tokens", "6")
    made = expo_ray("generate", aligned, *live, "--prompts", prompts, "--output", responses)
    extrapolate(*pair, tmp_path / "out", alpha=0.5, address="inline")
    digest = json.loads((tmp_path / "out" / "expo_ray.json").read_text())["weights_digest"]
    assert (made["weights_digest"], made["num_errors"], made["num_rows"]) == (digest, 0, 3)
    if engine == "transformers":
        uri = upload(s3_url, pico_reward_model, "ray/rm")
        found = expo_ray("score", responses, "--reward-model", uri, "--output", scored)
        assert (found["reward_model"], found["num_errors"]) == (uri, 0)
        assert pq.read_table(scored)["reward"].null_count == 0
