"""The vLLM engine for real, on the CPU: one service for the whole module."""

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import openai
import pytest
from ray import serve

from expo_ray.checkpoints import open_checkpoint, weights_digest
from expo_ray.errors import ConfigError
from expo_ray.extrapolation import extrapolate
from expo_ray.extrapolation.planning.alpha_rules import AlphaRules
from expo_ray.serving import (
    EngineOptions,
    GeneratorReplicas,
    ModelSource,
    SamplingParams,
    ServedModel,
)
from expo_ray.serving.engines.interface import Row
from expo_ray.serving.engines.transformers_engine import TransformersEngine
from expo_ray.serving.engines.vllm_config import MAX_NUM_SEQS
from expo_ray.tables import RESPONSES_SCHEMA, Message, Prompt, read_table
from tests.pico import save_pair
from tests.serving.vllm_here import PICO_SHAPE, require_vllm

require_vllm()

KEY = "sk-pico"
# Long answers take seconds, in which a client can go away.
CONTEXT = 4096
# As the embedded engine, whatever the processor: some would compute bfloat16 weights as such.
FLOAT32 = {"dtype": "float32"}
LONG = "context_length_exceeded"
HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """So far apart that another alpha gives other texts; the head is tied, as in small models."""
    shape = {**PICO_SHAPE, "max_position_embeddings": CONTEXT}
    initial, aligned = save_pair(tmp_path_factory.mktemp("vllm"), scale=0.1, **shape)
    return str(initial), str(aligned)


@pytest.fixture(scope="module")
def served(ray_cluster: str, pair: tuple[str, str]) -> Iterator[ServedModel]:
    """Started from a pair and an alpha: no checkpoint is written."""
    source = ModelSource(model=pair[1], initial=pair[0], alpha=0.5)
    # Small blocks: prompts of these tests fill some, which the prefix cache then keeps. And few
    # tokens at a time: longer prompts are processed in parts.
    engine_args = {"max_num_seqs": 16, "block_size": 32, "max_num_batched_tokens": 256, **FLOAT32}
    options = EngineOptions(max_model_len=CONTEXT, engine_args=engine_args)
    with ServedModel(
        source, engine="vllm", api_key=KEY, options=options, allow_alpha_change=True
    ) as served:
        yield served


@pytest.fixture(scope="module")
def client(served: ServedModel) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key=KEY, max_retries=0)


def embedded(pair: tuple[str, str], alpha: float) -> TransformersEngine:
    engine = TransformersEngine()
    engine.load(ModelSource(model=pair[1], initial=pair[0], alpha=alpha))
    return engine


def test_models_and_digest(
    served: ServedModel, client: openai.OpenAI, pair: tuple[str, str]
) -> None:
    stable, model = client.models.list().data
    assert (stable.id, model.id, served.model) == ("aligned", served.model, "aligned@alpha=0.5")
    facts = model.model_dump()
    assert facts["weights_digest"] == served.weights_digest == embedded(pair, 0.5).weights_digest
    assert (facts["max_model_len"], facts["alpha"]) == (CONTEXT, 0.5)


def test_both_engines_answer_alike(
    served: ServedModel, client: openai.OpenAI, pair: tuple[str, str]
) -> None:
    """float32 on both sides: the same text, greedy or under the same seed.

    Tolerance: characters that the limit on tokens cuts (one engine shows what is there of them).
    """
    engine = embedded(pair, 0.5)
    for temperature in (1.0, 0.0):  # the second time the cache holds most of each prompt
        settings = {"temperature": temperature, "max_tokens": 16, "seed": 7, "top_p": 0.9}
        params = SamplingParams(temperature=temperature, top_p=0.9, top_k=50, max_tokens=16)
        # The longest are processed in parts, beside others whose tokens are drawn meanwhile.
        lengths = [*range(1, 8), 300, 700]
        chats = [[{"role": "user", "content": "q" * n}] for n in lengths]
        rows = [
            Row(prompt_ids=engine.encode_chat(chat), params=params, seed=7, max_tokens=16)
            for chat in chats
        ]
        for chat, made in zip(chats, engine.generate(rows), strict=True):
            answer = client.chat.completions.create(
                model=served.model, messages=chat, extra_body={"top_k": 50}, **settings
            )
            text = answer.choices[0].message.content
            assert text.rstrip("\ufffd") == made.text.rstrip("\ufffd")
            assert answer.usage.prompt_tokens == made.prompt_tokens
            assert answer.usage.completion_tokens == made.completion_tokens
            assert answer.choices[0].finish_reason == made.finish_reason


def test_vllm_is_told_neither_seed_nor_what_is_kept_of_the_vocabulary() -> None:
    from vllm import SamplingParams as Settings

    from expo_ray.serving.engines.vllm_noise import take_seed

    seeded = Settings(seed=-3, top_k=-1, top_p=0.5, extra_args={"expo_ray_kept": "x", "more": 1})
    take_seed(seeded)
    assert (seeded.seed, seeded.top_k, seeded.top_p) == (None, 0, 1.0)
    assert seeded.extra_args == {
        "more": 1,
        "expo_ray_seed": 2**63 - 3,
        "expo_ray_kept": [0, 0.5],
    }
    unseeded = Settings(top_k=5, top_p=0.5, extra_args={"expo_ray_seed": 1})
    take_seed(unseeded)
    assert (unseeded.top_k, unseeded.top_p, unseeded.extra_args) == (5, 0.5, None)


def test_seeds_of_long_prompts_and_of_several_answers(
    served: ServedModel, client: openai.OpenAI
) -> None:
    """vLLM's own seeds end its engine here: on CPUs it cannot wind back what a part has drawn."""
    chat = [{"role": "user", "content": "long " * 150}]
    settings = {"model": served.model, "messages": chat, "max_tokens": 12, "temperature": 1}

    def answers(seed: int, n: int, **more: object) -> list[str | None]:
        made = client.chat.completions.create(**settings, seed=seed, n=n, extra_body=more or None)
        return [choice.message.content for choice in made.choices]

    three = answers(5, 3)
    assert len({*three}) == 3, "each answer has a seed of its own"
    assert three == [answers(5 + i, 1)[0] for i in range(3)]
    # What a client gives under our own name for the seed neither counts nor harms.
    ours = {"expo_ray_seed": "x", "expo_ray_kept": "x"}
    assert answers(5, 1, vllm_xargs=ours) == three[:1]
    unseeded = {"expo_ray_seed": "x"}
    client.chat.completions.create(**settings, extra_body={"vllm_xargs": unseeded})
    for seed in (-5, 2**63 - 1):
        assert answers(seed, 2) == answers(seed, 2)


def test_streams_and_vllm_features(served: ServedModel, client: openai.OpenAI) -> None:
    settings = {"model": served.model, "messages": HELLO, "max_tokens": 12, "seed": 3}
    whole = client.chat.completions.create(**settings)
    assert whole.system_fingerprint == served.weights_digest
    chunks = list(
        client.chat.completions.create(
            **settings, stream=True, stream_options={"include_usage": True}
        )
    )
    pieces = [c.choices[0].delta.content or "" for c in chunks if c.choices]
    assert "".join(pieces) == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage
    assert {chunk.model for chunk in chunks} == {served.model}
    fixed = client.chat.completions.create(
        **{**settings, "max_tokens": 5}, n=2, extra_body={"ignore_eos": True}
    )
    assert (len(fixed.choices), fixed.usage.completion_tokens) == (2, 10)
    text = client.completions.create(model=served.model, prompt="hello", max_tokens=4)
    assert text.usage.completion_tokens <= 4


@pytest.mark.parametrize(
    ("changes", "status", "code"),
    [
        ({"model": "gpt-4"}, 404, "model_not_found"),
        ({"model": "aligned@alpha=0.7"}, 404, "model_not_found"),
        ({"max_tokens": 2 * CONTEXT}, 400, "context_length_exceeded"),
        (
            {"messages": [{"role": "user", "content": "x" * CONTEXT}]},
            400,
            "context_length_exceeded",
        ),
        ({"temperature": -1}, 400, "invalid_value"),
        ({"top_p": 7}, 400, "invalid_value"),
        ({"messages": 3}, 400, "invalid_value"),
        ({"extra_body": {"guided_json": {"type": "object"}}}, 400, "invalid_value"),
        ({"extra_body": {"temprature": 1}}, 400, "unknown_parameter"),
        ({"extra_body": {"chat_template_kwargs": {"thinks": True}}}, 400, "invalid_value"),
        ({"extra_body": {"response_format": {"type": "text", "x": 1}}}, 400, "unknown_parameter"),
        ({"messages": [{**HELLO[0], "weight": 0}]}, 400, "unknown_parameter"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "x": 1}]}]},
            400,
            "unknown_parameter",
        ),
        ({"messages": [{"role": "user", "content": "x" * 14_000_000}]}, 400, LONG),
    ],
)
def test_wrong_requests_and_the_next_one_works(
    served: ServedModel, client: openai.OpenAI, changes: dict[str, object], status: int, code: str
) -> None:
    for stream in (False, True):
        settings = {"model": served.model, "messages": HELLO, "stream": stream, **changes}
        with pytest.raises(openai.APIStatusError) as caught:
            client.chat.completions.create(**settings)
        assert caught.value.status_code == status
        assert isinstance(caught.value.body, dict)
        assert (caught.value.body["code"], bool(caught.value.body["message"])) == (code, True)
    fine = client.chat.completions.create(model=served.model, messages=HELLO, max_tokens=1)
    assert fine.usage.completion_tokens == 1


def test_alpha_changes_in_place_and_back(
    served: ServedModel, client: openai.OpenAI, pair: tuple[str, str], tmp_path: Path
) -> None:
    extrapolate(*pair, tmp_path / "out", alpha=0.3, address="inline")
    written = weights_digest(open_checkpoint(tmp_path / "out"))
    settings = {"messages": HELLO, "max_tokens": 16, "temperature": 0}
    before = client.chat.completions.create(model=served.model, **settings)
    old_model, old_digest = served.model, served.weights_digest

    async def ask(many: openai.AsyncOpenAI) -> tuple[str, str]:
        answer = await many.chat.completions.create(
            model=old_model, messages=HELLO, max_tokens=100, extra_body={"ignore_eos": True}
        )
        return answer.model, str(answer.system_fingerprint)

    async def change_under_load() -> tuple[list[tuple[str, str]], dict[str, object]]:
        async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key=KEY) as many:
            asked = [asyncio.create_task(ask(many)) for _ in range(6)]
            await asyncio.sleep(0.2)
            state = await asyncio.to_thread(served.set_alpha, 0.3)
            return await asyncio.gather(*asked), state

    finished, state = asyncio.run(change_under_load())
    # Those that were inside finished under the old name, by the old weights.
    assert set(finished) == {(old_model, old_digest)}
    assert served.model == state["model"] == "aligned@alpha=0.3"
    assert served.weights_digest == state["weights_digest"] == written
    assert state["generation"] == 2
    assert {r["weights_digest"] for r in state["replicas"].values()} == {written}
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model=old_model, **settings)
    kept = client.chat.completions.create(model="aligned", **settings)
    assert (kept.model, kept.system_fingerprint) == (served.model, written)
    engine = TransformersEngine()
    engine.load(ModelSource(model=str(tmp_path / "out")))
    params = SamplingParams(temperature=0, max_tokens=16)
    ids = engine.encode_chat(HELLO)
    [made] = engine.generate([Row(prompt_ids=ids, params=params, seed=1, max_tokens=16)])
    now = client.chat.completions.create(model=served.model, **settings)
    assert now.choices[0].message.content.rstrip("\ufffd") == made.text.rstrip("\ufffd")
    assert now.model == "aligned@alpha=0.3"
    assert now.choices[0].message.content != before.choices[0].message.content

    served.set_alpha(0.5)
    again = client.chat.completions.create(model=served.model, **settings)
    assert served.weights_digest == old_digest
    assert again.choices[0].message.content == before.choices[0].message.content


def test_rules_in_place_and_no_cache_of_other_weights(
    served: ServedModel, client: openai.OpenAI, pair: tuple[str, str], tmp_path: Path
) -> None:
    rules = AlphaRules.parse([{"match": "*norm*", "alpha": 0}, {"match": "*", "alpha": 2}])
    written = tmp_path / "out"
    extrapolate(*pair, written, alpha_rules=rules, address="inline")
    chat = [{"role": "user", "content": "hold these in the cache " * 4}]

    def answered() -> str:
        answer = client.chat.completions.create(
            model=served.model, messages=chat, max_tokens=16, temperature=0
        )
        return str(answer.choices[0].message.content)

    before = answered()
    assert answered() == before
    state = served.set_alpha(alpha_rules=rules)
    assert served.model == f"aligned@rules={rules.digest}"
    assert served.weights_digest == weights_digest(open_checkpoint(written))
    assert (state["alpha"], state["alpha_rules"]) == (None, rules.as_dict())
    engine = TransformersEngine()
    engine.load(ModelSource(model=str(written)))
    params = SamplingParams(temperature=0, max_tokens=16)
    ids = engine.encode_chat(chat)
    [made] = engine.generate([Row(prompt_ids=ids, params=params, seed=1, max_tokens=16)])
    assert answered().rstrip("\ufffd") == made.text.rstrip("\ufffd") != before.rstrip("\ufffd")
    served.set_alpha(0.5)
    assert answered() == before


def candidates_answer_as_the_embedded_engine(
    replicas: GeneratorReplicas, pair: tuple[str, str], folder: Path
) -> None:
    """Write the tables of several candidates on the same replicas, and compare them."""
    live = ModelSource(model=pair[1], initial=pair[0], alpha=0.5)
    rules = AlphaRules.parse([{"match": "*norm*", "alpha": 0}, {"match": "*", "alpha": 2}])
    candidates = [ModelSource(model=pair[1]), live, live.at(rules)]
    prompts = [
        Prompt(prompt_id=f"p{i}", messages=(Message(role="user", content="q" * i),))
        for i in (*range(1, 8), 500)
    ]
    columns = ["prompt_id", "weights_digest", "response", "completion_tokens", "finish_reason"]
    texts: list[str] = []
    with GeneratorReplicas() as embedded:
        for i, source in enumerate(candidates):
            for temperature in (0.0, 1.0):
                sampling = SamplingParams(max_tokens=16, num_samples=2, temperature=temperature)
                tables = []
                for name, engine in (("vllm", replicas), ("embedded", embedded)):
                    path = folder / f"{name}-{i}-{temperature}.parquet"
                    engine.write_responses(source, prompts, path, sampling=sampling)
                    tables.append(read_table(path, RESPONSES_SCHEMA).select(columns))
                assert tables[0].equals(tables[1])
                texts += tables[0].column("response").to_pylist()
    assert len(set(texts)) > len(texts) // 4, "texts that say nothing would be equal, too"
    assert any("<|" in text for text in texts), "special tokens in mid-text are seen"


def test_candidates_on_the_same_vllm_replicas(
    served: ServedModel, pair: tuple[str, str], tmp_path: Path
) -> None:
    """The service's own replica, which is a bulk replica with HTTP on top: starting one is slow."""
    replicas = GeneratorReplicas(engine="vllm")
    replicas._handle = serve.get_app_handle(served.app_name)
    replicas._launched = ModelSource(model=pair[1], initial=pair[0], alpha=0.5)
    candidates_answer_as_the_embedded_engine(replicas, pair, tmp_path)
    # As the service knows it again, which did not order these changes.
    loaded = replicas._handle.load.remote(replicas._launched).result(timeout_s=60)
    assert loaded.weights_digest == served.weights_digest


@pytest.mark.slow
def test_candidates_on_vllm_replicas_of_their_own(
    ray_cluster: str, pair: tuple[str, str], tmp_path: Path
) -> None:
    options = EngineOptions(max_model_len=1024, engine_args={"max_num_seqs": 16, **FLOAT32})
    with GeneratorReplicas(engine="vllm", options=options) as replicas:
        candidates_answer_as_the_embedded_engine(replicas, pair, tmp_path)


def test_parallel_and_autoscaling_settings_reach_the_engine(
    ray_cluster: str, pair: tuple[str, str]
) -> None:
    source = ModelSource(model=pair[1])
    parallel = EngineOptions(
        max_model_len=64,
        tensor_parallel_size=2,
        engine_args={"pipeline_parallel_size": 2, "max_num_seqs": 7},
    )

    def built(**settings: Any) -> tuple[Any, Any]:
        app = ServedModel(source, engine="vllm", **settings).bind()
        deployment = app._bound_deployment
        return deployment, deployment.init_kwargs["llm_config"]

    deployment, config = built(options=parallel)
    arguments = config.get_engine_config().get_initialization_kwargs()
    wanted = {
        "tensor_parallel_size": 2,
        "pipeline_parallel_size": 2,
        "max_num_seqs": 7,
        "max_model_len": 64,
    }
    assert {name: arguments[name] for name in wanted} == wanted
    assert deployment.num_replicas == 1
    bundles = deployment._replica_config.placement_group_bundles
    assert sum(bundle.get("CPU", 0) for bundle in bundles) == 4, "one worker for each shard"

    deployment, _ = built(options=EngineOptions(), num_replicas=2, max_replicas=3)
    scaling = deployment._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas) == (2, 3)
    assert scaling.target_ongoing_requests == MAX_NUM_SEQS
    assert deployment._deployment_config.max_ongoing_requests > 2 * MAX_NUM_SEQS
    assert deployment.backpressure_config.retry_after_s == 1
    with pytest.raises(ConfigError, match="too few"):
        built(options=EngineOptions(tensor_parallel_size=64))
    with pytest.raises(ConfigError, match="too few"):
        built(options=EngineOptions(engine_args={"tensor_parallel_size": 64}))


def test_what_the_cpu_cannot_do_is_refused_before_anything_starts(
    ray_cluster: str, pico_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    source = ModelSource(model=str(pico_pair[1]))
    with pytest.raises(ConfigError, match="heads of this size"):
        ServedModel(source, engine="vllm").bind()
    with pytest.raises(ConfigError, match="heads of this size"):
        GeneratorReplicas(engine="vllm").write_responses(
            source,
            [Prompt(prompt_id="p", messages=(Message(role="user", content="q"),))],
            tmp_path / "o.parquet",
            sampling=SamplingParams(),
        )
    assert not (tmp_path / "o.parquet").exists()


def test_a_client_that_goes_away(served: ServedModel, client: openai.OpenAI) -> None:
    settings = {"model": served.model, "messages": HELLO, "max_tokens": 100}
    for _ in range(3):
        with client.chat.completions.create(**settings, stream=True) as stream:
            next(iter(stream))
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.01).chat.completions.create(**settings)
    # Nobody is counted as inside any more: a change of alpha need not wait for ghosts.
    served.set_alpha(0.25, drain_seconds=20)
    served.set_alpha(0.5, drain_seconds=20)
    headers = {"Authorization": f"Bearer {KEY}"}
    huge = httpx.post(
        f"{served.url}/v1/chat/completions", content=b"[" * (17 << 20), headers=headers, timeout=30
    )
    assert (huge.status_code, huge.json()["error"]["code"]) == (413, "body_too_large")
    url = f"{served.url}/v1/completions"
    untyped = httpx.post(url, content=b'{"model": ', headers=headers)
    assert (untyped.status_code, untyped.json()["error"]["code"]) == (400, "invalid_content_type")
    typed = {**headers, "Content-Type": "application/json"}
    broken = httpx.post(url, content=b'{"model": ', headers=typed)
    assert (broken.status_code, broken.json()["error"]["code"]) == (400, "invalid_json")


def ask_by_hand(served: ServedModel, **settings: object) -> socket.socket:
    """Send a request over a socket that takes in little, and leave reading to the caller."""
    parts = urlsplit(served.url)
    body = {"model": served.model, "prompt": "x", "seed": 1, "ignore_eos": True, **settings}
    content = json.dumps(body).encode()
    head = (
        f"POST {parts.path}/v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n"
        "Connection: close\r\n\r\n"
    )
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.settimeout(60)
    client.connect((str(parts.hostname), int(parts.port or 0)))
    client.sendall(head.encode() + content)
    return client


def being_made(served: ServedModel) -> dict[str, int]:
    """Tokens so far of the responses that the engine's worker computes."""
    handle = serve.get_app_handle(served.app_name)
    [found] = handle.collective_rpc.remote("expo_ray_requests").result(timeout_s=60)
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("is_stream", [True, False])
def test_what_a_client_abandons_is_not_generated(served: ServedModel, is_stream: bool) -> None:
    wanted = CONTEXT - 10
    with ask_by_hand(served, max_tokens=wanted, stream=is_stream) as leaving:
        if is_stream:
            assert leaving.recv(12) == b"HTTP/1.1 200"
        while not being_made(served):
            time.sleep(0.01)
    num_tokens = 0
    while seen := being_made(served):
        num_tokens = max(num_tokens, *seen.values())
        time.sleep(0.01)
    assert num_tokens < wanted // 2
    with ask_by_hand(served, max_tokens=1) as following:
        assert following.recv(12) == b"HTTP/1.1 200"


def test_a_slow_reader_holds_up_neither_engine_nor_others(
    served: ServedModel, client: openai.OpenAI
) -> None:
    settings = {"max_tokens": 200, "n": 4, "stream": True}
    with ask_by_hand(served, **settings) as slow:
        got = slow.recv(64)
        fine = client.chat.completions.create(model=served.model, messages=HELLO, max_tokens=1)
        assert fine.usage.completion_tokens == 1
        while being_made(served):
            time.sleep(0.01)
        parts = [got, *iter(lambda: slow.recv(1 << 16), b"")]
    whole = b"".join(parts)
    assert (whole.count(b"[DONE]"), whole.count(b'"finish_reason":"length"')) == (1, 4)


def test_wrong_engine_settings_are_refused_before_a_replica_starts(
    ray_cluster: str, pair: tuple[str, str]
) -> None:
    source = ModelSource(model=pair[1])
    for engine_args in ({"no_such_argument": 1}, {"load_format": "dummy"}):
        options = EngineOptions(engine_args=engine_args)
        with pytest.raises(ConfigError, match=r"engine arguments|refuses") as caught:
            ServedModel(source, engine="vllm", options=options).bind()
        assert json.dumps(caught.value.as_dict())
