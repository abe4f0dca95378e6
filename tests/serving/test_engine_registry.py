"""A new engine is one record: registered here, it generates and serves like the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from expo_ray.checkpoints import weights_digest
from expo_ray.errors import ConfigError
from expo_ray.serving import EngineOptions, GeneratorReplicas, ModelSource, SamplingParams
from expo_ray.serving.engines.embedded import EmbeddedEngine
from expo_ray.serving.engines.interface import Generated, Row
from expo_ray.serving.engines.registry import ENGINES, engine_help, engine_names, resolve_engine
from expo_ray.serving.served_model import ServedModel
from expo_ray.tables import Prompt, read_table
from expo_ray.tables.prompts import Message
from expo_ray.tables.thoughts import Reasoning

MAX_MODEL_LEN = 200


class EchoEngine:
    """Answers every prompt with its own last characters."""

    source: ModelSource
    weights_digest: str
    max_model_len = MAX_MODEL_LEN

    def load(self, source: ModelSource) -> None:
        self.source = source
        self.weights_digest = weights_digest(source.open())

    def encode_chat(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> list[int]:
        return self.encode_text(messages[-1]["content"])

    def encode_text(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]

    def generate(self, rows: Sequence[Row]) -> list[Generated]:
        return [self._echo(row) for row in rows]

    def tell_apart(
        self, made: Generated, row: Row, *, messages: Sequence[Message], reasoning: Reasoning
    ) -> Generated:
        return made

    def _echo(self, row: Row) -> Generated:
        said = row.prompt_ids[-row.max_tokens :]
        made = Generated(
            text="".join(map(chr, said)),
            finish_reason="length",
            prompt_tokens=len(row.prompt_ids),
            completion_tokens=len(said),
        )
        if row.on_text is not None and row.on_done is not None:
            row.on_text(made.text)
            row.on_done(made)
        return made


class Echo(EmbeddedEngine):
    """The record of the engine above."""

    name = "echo"

    def make(self, options: EngineOptions) -> EchoEngine:
        return EchoEngine()


@pytest.fixture
def echo(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(ENGINES, Echo.name, Echo())
    return Echo.name


def test_every_record_is_registered_by_its_name() -> None:
    assert {kind.name: kind for kind in ENGINES.values()} == ENGINES
    with pytest.raises(ConfigError, match="unknown engine") as caught:
        resolve_engine("echo")
    assert caught.value.expected == "auto, transformers, vllm"


def test_a_new_engine_is_named_and_refuses_what_it_has_not(echo: str) -> None:
    assert engine_names() == ["auto", "echo", "transformers", "vllm"]
    assert engine_help().startswith("echo, transformers, vllm, or auto: vllm where ")
    assert resolve_engine("auto").name != echo
    with pytest.raises(ConfigError, match="the echo engine has no such settings") as caught:
        GeneratorReplicas(1, echo, options=EngineOptions(tensor_parallel_size=2))
    assert caught.value.hint == "choose engine=vllm, or leave them out"


def test_a_new_engine_fills_a_table(
    ray_cluster: str, echo: str, pico_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    texts = ["Hello there", "x" * (MAX_MODEL_LEN + 1)]
    prompts = [
        Prompt(prompt_id=str(i), messages=(Message(role="user", content=text),))
        for i, text in enumerate(texts)
    ]
    with GeneratorReplicas(1, echo) as replicas:
        made = replicas.write_responses(
            ModelSource(model=str(pico_pair[1])),
            prompts,
            tmp_path / "responses.parquet",
            sampling=SamplingParams(max_tokens=5),
        )
    assert made["engine"] == "echo"
    fine, too_long = read_table(tmp_path / "responses.parquet").to_pylist()
    assert fine["response"] == "there"
    assert fine["weights_digest"] == weights_digest(ModelSource(model=str(pico_pair[1])).open())
    assert too_long["response"] is None and too_long["error"]


def test_a_new_engine_serves(ray_cluster: str, echo: str, pico_pair: tuple[Path, Path]) -> None:
    with ServedModel(ModelSource(model=str(pico_pair[1])), engine=echo) as served:
        assert served.engine == "echo"
        chat = {
            "model": served.model,
            "messages": [{"role": "user", "content": "Hello there"}],
            "max_tokens": 5,
        }
        url = f"{served.url}/v1/chat/completions"
        answer = httpx.post(url, json=chat, timeout=60).json()
        assert answer["choices"][0]["message"]["content"] == "there"
        assert answer["system_fingerprint"] == served.weights_digest
        streamed = httpx.post(url, json={**chat, "stream": True}, timeout=60).text
        assert '"content":"there"' in streamed.replace(" ", "")
