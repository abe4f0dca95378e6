"""Every field of a request is heeded, says nothing, or is refused by its name."""

from typing import Any

import pytest
from pydantic import ValidationError

from expo_ray.serving.api_error import ApiError
from expo_ray.serving.openai_requests import ChatBody, CompletionBody, RewardsBody

HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}]}
TEXT: dict[str, Any] = {"type": "text", "text": "hello"}

REFUSED: list[tuple[str, Any]] = [
    ("guided_json", {"type": "object"}),
    ("guided_choice", ["a", "b"]),
    ("guided_regex", "a+"),
    ("structured_outputs", {"choice": ["a"]}),
    ("chat_template", "{{ messages }}"),
    ("reasoning_effort", "high"),
    ("tool_choice", "required"),
    ("tool_choice", {"type": "function", "function": {"name": "f"}}),
    ("tools", [{"type": "function"}]),
    ("function_call", {"name": "f"}),
    ("functions", [{"name": "f"}]),
    ("bad_words", ["a"]),
    ("allowed_token_ids", [1]),
    ("use_beam_search", True),
    ("length_penalty", 0.5),
    ("truncate_prompt_tokens", 5),
    ("typical_p", 0.5),
    ("min_p", 0.1),
    ("min_tokens", 1),
    ("repetition_penalty", 1.1),
    ("stop_token_ids", [3]),
    ("logit_bias", {"5": 100}),
    ("logprobs", True),
    ("logprobs", 1),
    ("top_logprobs", 3),
    ("n", 2),
    ("n", True),
    ("best_of", 2),
    ("echo", True),
    ("response_format.type", {"type": "json_object"}),
    ("prompt_logprobs", 1),
    ("documents", [{"text": "x"}]),
    ("modalities", ["audio"]),
]
UNKNOWN: list[tuple[str, Any]] = [
    ("temprature", 0.5),
    ("do_sample", True),
    ("max_new_tokens", 3),
    ("\ud800", 1),
    ("", None),
]
PASSED: dict[str, Any] = {
    "user": "u",
    "metadata": {"a": "b"},
    "store": True,
    "service_tier": "auto",
    "parallel_tool_calls": False,
    "safety_identifier": "x",
    "logit_bias": {},
    "tools": [],
    "tool_choice": "none",
    "function_call": "auto",
    "length_penalty": 1.0,
    "use_beam_search": False,
    "typical_p": 1,
    "n": 1,
    "logprobs": False,
    "top_logprobs": 0,
    "stop_token_ids": [],
    "min_p": 0.0,
    "response_format": {"type": "text"},
    "modalities": ["text"],
    "skip_special_tokens": True,
    "guided_json": None,
    "reasoning_effort": None,
    "stop": None,
    "stream": None,
}


@pytest.mark.parametrize(("name", "value"), REFUSED)
def test_what_is_not_supported_is_refused_by_name(name: str, value: Any) -> None:
    field = name.partition(".")[0]
    with pytest.raises((ApiError, ValidationError)) as caught:
        ChatBody.model_validate({**HELLO, field: value})
    if isinstance(caught.value, ApiError):
        told = caught.value.body()["error"]
        assert (caught.value.status, told["param"], told["code"]) == (400, name, "invalid_value")
        assert told["message"].startswith(f"{name}: ")
    else:
        assert ".".join(map(str, caught.value.errors()[0]["loc"])) == name


@pytest.mark.parametrize(("name", "value"), UNKNOWN)
def test_what_is_unknown_is_refused_whatever_it_says(name: str, value: Any) -> None:
    for kind, body in ((ChatBody, HELLO), (CompletionBody, {"prompt": "x"}), (RewardsBody, HELLO)):
        with pytest.raises(ApiError) as caught:
            kind.model_validate({**body, name: value})
        told = caught.value.body()["error"]
        assert told["code"] == "unknown_parameter"
        assert told["message"].encode()


def test_what_says_nothing_passes() -> None:
    asked = ChatBody.model_validate({**HELLO, **PASSED})
    assert asked == ChatBody.model_validate({**HELLO, "response_format": {"type": "text"}})


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"stream": True, "stream_options": {"include_usage": True, "every": 3}}, "every"),
        (
            {"stream": True, "stream_options": {"continuous_usage_stats": True}},
            "continuous_usage_stats",
        ),
        ({"messages": [{"role": "user", "content": "x", "weight": 0}]}, "messages.weight"),
        ({"messages": [{"role": "user", "content": "x", "name": "Bob"}]}, "messages.name"),
        (
            {"messages": [{"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}]},
            "messages.tool_calls",
        ),
    ],
)
def test_deeper_fields_are_refused_by_name(changes: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        ChatBody.model_validate({**HELLO, **changes})
    assert str(caught.value.param).endswith(param)


@pytest.mark.parametrize(
    "changes",
    [
        {"response_format": {"type": "text", "strict": True}},
        {"response_format": {}},
        {"messages": [{"role": "user", "content": [{**TEXT, "cache_control": {}}]}]},
        {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
        {"messages": [{"role": "user", "content": []}]},
        {"messages": [{"role": "user", "content": "\ud800"}]},
        {"stream_options": {"include_usage": True}},
        {"max_tokens": 3, "max_completion_tokens": 4},
        {"continue_final_message": True, "add_generation_prompt": True},
    ],
)
def test_malformed_and_contradicting_fields_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ChatBody.model_validate({**HELLO, **changes})


def test_an_answer_comes_back_as_clients_send_it() -> None:
    answer = {
        "role": "assistant",
        "content": "x",
        "refusal": None,
        "annotations": [],
        "audio": None,
        "function_call": None,
        "tool_calls": None,
    }
    body = ChatBody.model_validate({"messages": [*HELLO["messages"], answer]})
    assert body.chat()[1] == {"role": "assistant", "content": "x"}


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("no weights in /srv/models/secret/dpo here", "no weights in dpo here"),
        ("where: s3://bucket/models/dpo\n", "where: dpo\n"),
        ("ask by GET /v1/alpha which; application/json", None),
        ("see http://127.0.0.1:8000/v1/models", None),
        ("x" * 5000, "x" * 1000 + "..."),
    ],
)
def test_errors_tell_no_folders_of_the_server(message: str, told: str | None) -> None:
    body = ApiError(400, message, code="c").body()
    assert body["error"]["message"] == (message if told is None else told)
