import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from expo_ray.errors import ConfigError
from expo_ray.rewards import load_reward_model
from expo_ray.serving import ModelSource, ServedModel, served_model
from expo_ray.serving.engines.transformers import Transformers
from expo_ray.serving.launching import ensure_serve
from expo_ray.tables import Message
from tests.pico import SPECIAL_TOKENS
from tests.rewards.own_heads import save_pairwise

KEY = "sk-pico"
LONG = "context_length_exceeded"
HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def served(
    ray_cluster: str, pico_pair: tuple[Path, Path], pico_reward_model: Path
) -> Iterator[ServedModel]:
    initial, aligned = map(str, pico_pair)
    source = ModelSource(model=aligned, initial=initial, alpha=0.3)
    with ServedModel(source, reward_model=str(pico_reward_model), api_key=KEY) as served:
        yield served


@pytest.fixture(scope="module")
def client(served: ServedModel) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key=KEY, max_retries=0)


def test_models_and_health(served: ServedModel, client: openai.OpenAI) -> None:
    assert served.url.startswith("http://127.0.0.1:")
    stable, model = client.models.list().data
    assert (stable.id, model.id) == ("aligned", served.model)
    assert {**stable.model_dump(), "id": model.id} == model.model_dump()
    assert served.model == "aligned@alpha=0.3"
    assert model.model_dump()["weights_digest"] == served.weights_digest
    assert model.model_dump()["max_model_len"] == 256
    for name in ("aligned", served.model):
        assert client.models.retrieve(name).id == name
    assert httpx.get(f"{served.url}/health").status_code == 200


def test_chat_streamed_and_whole_are_the_same(served: ServedModel, client: openai.OpenAI) -> None:
    settings = {"model": served.model, "messages": HELLO, "max_tokens": 20, "seed": 5}
    whole = client.chat.completions.create(**settings)
    [choice] = whole.choices
    assert choice.finish_reason in ("stop", "length")
    assert whole.system_fingerprint == served.weights_digest
    assert whole.usage is not None
    assert 0 < whole.usage.completion_tokens <= 20
    assert whole.usage.prompt_tokens == len("hello") + 4
    chunks = list(
        client.chat.completions.create(
            **settings, stream=True, stream_options={"include_usage": True}
        )
    )
    pieces = [
        c.choices[0].delta.content for c in chunks if c.choices and c.choices[0].delta.content
    ]
    assert "".join(pieces) == choice.message.content
    assert len(pieces) > 1
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == choice.finish_reason
    assert chunks[-1].usage == whole.usage
    other = client.chat.completions.create(**{**settings, "seed": 6})
    assert other.choices[0].message.content != choice.message.content


def test_completions_stop_and_text_parts(served: ServedModel, client: openai.OpenAI) -> None:
    text = client.completions.create(model=served.model, prompt="hello", seed=1).choices[0].text
    assert len(text) > 4
    cut = client.completions.create(
        model=served.model, prompt=["hello"], seed=1, stop=[text[2:4]]
    ).choices[0]
    assert cut.text == text.partition(text[2:4])[0]
    assert cut.finish_reason == "stop"
    stream = client.completions.create(model=served.model, prompt="hello", seed=1, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == text
    parts = [
        {
            "role": "user",
            "content": [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}],
        }
    ]
    answers = [
        client.chat.completions.create(model=served.model, messages=m, max_tokens=9, seed=1)
        for m in (HELLO, parts)
    ]
    assert answers[0].choices[0].message.content == answers[1].choices[0].message.content


def test_concurrent_requests_share_batches_and_keep_their_texts(
    served: ServedModel, client: openai.OpenAI
) -> None:
    def settings(i: int) -> dict[str, object]:
        messages = [{"role": "user", "content": "q" * (1 + i % 7)}]
        return {"model": served.model, "messages": messages, "max_tokens": 4 + i, "seed": i}

    async def ask_all() -> list[str | None]:
        async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key=KEY) as many:
            answers = await asyncio.gather(
                *(many.chat.completions.create(**settings(i)) for i in range(40))
            )
            return [answer.choices[0].message.content for answer in answers]

    together = asyncio.run(ask_all())
    alone = [client.chat.completions.create(**settings(i)) for i in range(0, 40, 7)]
    assert together[::7] == [answer.choices[0].message.content for answer in alone]


def test_a_client_that_goes_away_leaves_the_service_fine(
    served: ServedModel, client: openai.OpenAI
) -> None:
    settings = {"model": served.model, "messages": HELLO, "max_tokens": 200}
    for _ in range(3):
        with client.chat.completions.create(**settings, stream=True) as stream:
            next(iter(stream))
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.01).chat.completions.create(**settings)
    assert client.chat.completions.create(**{**settings, "max_tokens": 2}).usage is not None


@pytest.mark.parametrize(
    ("changes", "status", "code"),
    [
        ({"model": "gpt-4"}, 404, "model_not_found"),
        ({"max_tokens": 0}, 400, "invalid_value"),
        ({"max_tokens": 250}, 400, "context_length_exceeded"),
        ({"messages": [{"role": "user", "content": "x" * 300}]}, 400, "context_length_exceeded"),
        ({"messages": []}, 400, "invalid_value"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            400,
            "invalid_value",
        ),
        ({"temperature": -1}, 400, "invalid_value"),
        ({"top_p": 0}, 400, "invalid_value"),
        ({"n": 2}, 400, "invalid_value"),
        ({"logprobs": True}, 400, "invalid_value"),
        ({"tools": [{"type": "function"}]}, 400, "invalid_value"),
        ({"extra_body": {"guided_choice": ["a"]}}, 400, "invalid_value"),
        ({"extra_body": {"temprature": 1}}, 400, "unknown_parameter"),
        ({"extra_body": {"chat_template_kwargs": {"thinks": True}}}, 400, "invalid_value"),
        ({"messages": [{"role": "user", "content": "x" * 14_000_000}]}, 400, LONG),
    ],
)
def test_wrong_requests_get_errors_in_the_openai_format(
    served: ServedModel,
    client: openai.OpenAI,
    changes: dict[str, object],
    status: int,
    code: str,
) -> None:
    for stream in (False, True):
        settings = {"model": served.model, "messages": HELLO, "stream": stream, **changes}
        with pytest.raises(openai.APIStatusError) as caught:
            client.chat.completions.create(**settings)
        assert caught.value.status_code == status
        assert isinstance(caught.value.body, dict)
        assert caught.value.body["code"] == code
        assert caught.value.body["message"]


def test_malformed_json_unknown_paths_and_wrong_keys(served: ServedModel) -> None:
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    url = f"{served.url}/v1/chat/completions"
    for content in (b'{"model": ', b"\xff", b"[" * 100_000, b'{"seed": ' + b"9" * 5000 + b"}"):
        broken = httpx.post(url, content=content, headers=headers)
        assert (broken.status_code, broken.json()["error"]["code"]) == (400, "invalid_json")
    other = httpx.get(url, headers=headers)
    assert (other.status_code, other.json()["error"]["code"]) == (405, "method_not_allowed")
    whole = json.dumps({"model": served.model, "messages": HELLO}).encode()
    for kind in (None, "text/plain", "application/x-www-form-urlencoded"):
        typed = {k: v for k, v in headers.items() if k != "Content-Type"}
        typed |= {} if kind is None else {"Content-Type": kind}
        error = httpx.post(url, content=whole, headers=typed)
        assert (error.status_code, error.json()["error"]["code"]) == (400, "invalid_content_type")
        assert "Content-Type: application/json" in error.json()["error"]["message"]
    named = {**headers, "Content-Type": "application/json; charset=utf-8"}
    assert httpx.post(url, content=whole, headers=named, timeout=60).status_code == 200
    nowhere = httpx.get(f"{served.url}/v1/nowhere", headers=headers)
    assert (nowhere.status_code, nowhere.json()["error"]["code"]) == (404, "not_found")
    for wrong in ({}, {"Authorization": "Bearer sk-other"}, {"Authorization": KEY}):
        for answer in (
            httpx.get(f"{served.url}/v1/models", headers=wrong),
            httpx.post(url, json={"model": served.model, "messages": HELLO}, headers=wrong),
        ):
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")


CHAT = [Message(role="user", content="q"), Message(role="assistant", content="a")]


def ask_reward(served: ServedModel, **fields: object) -> httpx.Response:
    body = {"messages": CHAT, **fields}
    headers = {"Authorization": f"Bearer {KEY}"}
    return httpx.post(f"{served.url}/v1/rewards", json=body, headers=headers, timeout=60)


def test_rewards_endpoint(served: ServedModel, pico_reward_model: Path) -> None:
    [expected] = load_reward_model(str(pico_reward_model)).score([CHAT])
    answer = ask_reward(served).json()
    assert answer["reward"] == pytest.approx(expected.reward, abs=1e-4)
    assert answer["usage"]["prompt_tokens"] == expected.tokens
    refused = ask_reward(served, reference="b")
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "reference")
    assert "by itself" in refused.json()["error"]["message"]


def a_pairwise_model_compares_with_the_reference(second: ServedModel, pairwise: Path) -> None:
    [expected] = load_reward_model(str(pairwise)).score([CHAT], ["b"])
    assert expected.reward
    refused = ask_reward(second)
    error = refused.json()["error"]
    assert (refused.status_code, error["code"]) == (400, "missing_reference")
    assert "`reference`" in error["message"]
    for reference in ("b", [{"type": "text", "text": "b"}]):
        answer = ask_reward(second, reference=reference).json()
        assert answer["reward"] == pytest.approx(expected.reward, abs=1e-4)
        assert (answer["error"], answer["usage"]["total_tokens"]) == (None, expected.tokens)
    assert ask_reward(second, reference="a").json()["reward"] == 0.0
    malformed = ask_reward(second, reference=3)
    assert (malformed.status_code, malformed.json()["error"]["param"]) == (400, "reference")


def test_two_models_live_beside_each_other_and_a_full_queue_says_503(
    served: ServedModel,
    pico_pair: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The second one has a pairwise reward model beside it, which needs references."""
    pairwise, _ = save_pairwise(tmp_path / "rm")
    monkeypatch.setattr(Transformers, "max_batch_rows", lambda self, options: 1)
    monkeypatch.setattr(served_model, "_MAX_WAITING_REQUESTS", 1)
    source = ModelSource(model=str(pico_pair[0]))
    with ServedModel(source, reward_model=str(pairwise)) as second:
        assert second.url != served.url
        assert second.weights_digest != served.weights_digest
        a_pairwise_model_compares_with_the_reference(second, pairwise)

        async def flood() -> list[tuple[int, str | None]]:
            body = {"model": second.model, "prompt": "x", "max_tokens": 200}
            async with httpx.AsyncClient(timeout=60) as many:
                posts = (many.post(f"{second.url}/v1/completions", json=body) for _ in range(30))
                answers = await asyncio.gather(*posts)
                return [(a.status_code, a.headers.get("retry-after")) for a in answers]

        answers = asyncio.run(flood())
        assert set(answers) == {(200, None), (503, "1")}
        body = {"model": second.model, "prompt": "x", "max_tokens": 1}
        assert httpx.post(f"{second.url}/v1/completions", json=body).status_code == 200
    gone = httpx.get(f"{second.url}/health")
    assert gone.status_code == 404
    assert httpx.get(f"{served.url}/health").json() == {"status": "ok"}


def test_serve_listens_on_one_address_per_cluster(served: ServedModel) -> None:
    port = int(served.url.split(":")[2].split("/")[0])
    assert ensure_serve(port=port) == ensure_serve() == f"http://127.0.0.1:{port}"
    with pytest.raises(ConfigError, match="another address") as caught:
        ensure_serve(port=port + 1)
    assert str(port) in str(caught.value.expected)
    assert json.dumps(caught.value.as_dict())


def test_the_name_that_stays_and_none_at_all_are_the_current_weights(served: ServedModel) -> None:
    headers = {"Authorization": f"Bearer {KEY}"}
    answers = []
    for named in ({}, {"model": None}, {"model": "aligned"}, {"model": served.model}):
        body = {**named, "prompt": "hello", "max_tokens": 4, "seed": 1}
        answer = httpx.post(f"{served.url}/v1/completions", json=body, headers=headers, timeout=60)
        answers.append({k: v for k, v in answer.json().items() if k not in ("id", "created")})
    assert answers[0]["model"] == served.model
    assert answers[0]["system_fingerprint"] == served.weights_digest
    assert all(answer == answers[0] for answer in answers)


def test_special_tokens_stop_texts_and_open_turns_as_asked(
    served: ServedModel, client: openai.OpenAI
) -> None:
    def text(**settings: object) -> str:
        answer = client.completions.create(
            model="aligned", prompt="hello", seed=1, max_tokens=240, **settings
        )
        return answer.choices[0].text

    plain = text()
    assert text(stop=[plain[2:4]], extra_body={"include_stop_str_in_output": True}) == plain[:4]
    marked = text(extra_body={"skip_special_tokens": False, "ignore_eos": True})
    assert any(token in marked for token in SPECIAL_TOKENS)
    assert not any(token in plain for token in SPECIAL_TOKENS)
    begun = [*HELLO, {"role": "assistant", "content": "Once"}]
    used = {}
    for continues in (False, True):
        answer = client.chat.completions.create(
            model="aligned",
            messages=begun,
            max_tokens=1,
            extra_body={"continue_final_message": continues},
        )
        used[continues] = answer.usage.prompt_tokens
    # Neither the end of the turn nor the beginning of another one.
    assert used[True] == used[False] - 2
