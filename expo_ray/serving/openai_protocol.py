"""The OpenAI API as data: what requests may hold, what responses and errors look like.

Whatever would change the answer and is not supported is refused, never ignored.
"""

from __future__ import annotations

import json
import time
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from expo_ray.serving.engines.interface import Generated
from expo_ray.serving.sampling import SamplingParams
from expo_ray.tables.prompts import Message


class ApiError(Exception):
    """An answer in the OpenAI error format."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers
        self.code = code
        self.param = param

    def body(self) -> dict[str, Any]:
        """Return the JSON body."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {
            "error": {
                "message": str(self),
                "type": kind,
                "param": self.param,
                "code": self.code,
            }
        }


def _join_parts(content: object) -> object:
    if not isinstance(content, list):
        return content
    if not all(isinstance(p, dict) and p.get("type") == "text" for p in content):
        raise ValueError("only text parts are supported")
    return "".join(str(part.get("text", "")) for part in content)


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _one_prompt(value: object) -> object:
    return value[0] if isinstance(value, list) and len(value) == 1 else value


class StreamOptions(BaseModel):
    """What a stream carries besides text."""

    include_usage: bool = False


class ChatMessage(BaseModel):
    """One turn of a chat; text parts are joined."""

    role: str = Field(min_length=1)
    content: Annotated[str, BeforeValidator(_join_parts)]


class GenerationBody(BaseModel):
    """What chat completions and completions share."""

    model_config = ConfigDict(allow_inf_nan=False)

    model: str
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1)
    stop: Annotated[list[Annotated[str, Field(min_length=1)]] | None, BeforeValidator(_as_list)] = (
        None
    )
    seed: int | None = None
    ignore_eos: bool = False
    """As vLLM's: go on to the limit on tokens, for load tests."""
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    stream: bool = False
    stream_options: StreamOptions | None = None
    # Accepted only with the value that changes nothing.
    min_p: float | None = Field(None, ge=0, le=0)
    min_tokens: int | None = Field(None, ge=0, le=0)
    repetition_penalty: float | None = Field(None, ge=1, le=1)
    stop_token_ids: None = None
    n: Literal[1] | None = None
    best_of: Literal[1] | None = None
    echo: Literal[False] | None = None
    suffix: None = None
    logprobs: Literal[False] | None = None
    top_logprobs: None = None
    logit_bias: None = None
    tools: None = None
    functions: None = None
    response_format: dict[Literal["type"], Literal["text"]] | None = None

    def sampling(self, max_tokens: int) -> SamplingParams:
        """Return the sampling settings; OpenAI's defaults where the client names none."""
        return SamplingParams(
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            top_k=max(self.top_k or 0, 0),
            max_tokens=max_tokens,
            stop=tuple(self.stop or ()),
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
        )


class ChatBody(GenerationBody):
    """POST /v1/chat/completions."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)

    def chat(self) -> list[Message]:
        """Return the turns as other rooms know them."""
        return [Message(role=m.role, content=m.content) for m in self.messages]


class CompletionBody(GenerationBody):
    """POST /v1/completions, one prompt."""

    prompt: Annotated[str, BeforeValidator(_one_prompt)]


class RewardsBody(BaseModel):
    """POST /v1/rewards: a chat that ends with the assistant's turn."""

    messages: list[ChatMessage] = Field(min_length=1)
    model: str | None = None
    reference: Annotated[str | None, BeforeValidator(_join_parts)] = None
    """For pairwise models: another response to the same prompt, which this one is compared with."""


class AlphaBody(BaseModel):
    """POST /v1/alpha."""

    model_config = ConfigDict(allow_inf_nan=False, extra="forbid")

    alpha: float | None = None
    """Beside rules, for tensors without a rule."""
    alpha_rules: dict[str, Any] | list[Any] | None = None
    """What a file for --alpha-rules holds."""
    drain_seconds: float = Field(300.0, gt=0, le=86400)
    """How long requests that are being answered may take to finish."""


class ResponseFormat:
    """Writes the responses of one request.

    Args:
        kind: Which endpoint.
        request_id: Its id.
        model: The name that the client used.
        weights_digest: Of the weights that answer; sent as `system_fingerprint`.
    """

    def __init__(
        self, kind: Literal["chat", "text"], *, request_id: str, model: str, weights_digest: str
    ) -> None:
        self._is_chat = kind == "chat"
        self._common = {
            "id": f"{'chatcmpl' if self._is_chat else 'cmpl'}-{request_id}",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": weights_digest,
        }

    def whole(self, result: Generated) -> dict[str, Any]:
        """Return the body of a response that is not streamed."""
        text: dict[str, Any] = {"text": result.text}
        if self._is_chat:
            text = {"message": {"role": "assistant", "content": result.text}}
        choice = {"index": 0, **text, "logprobs": None, "finish_reason": result.finish_reason}
        return {
            **self._common,
            "object": "chat.completion" if self._is_chat else "text_completion",
            "choices": [choice],
            "usage": usage(result),
        }

    def piece(self, text: str, *, first: bool, finish_reason: str | None = None) -> str:
        """Return one server-sent event with a piece of text, or with the reason of the end."""
        content: dict[str, Any] = {"text": text}
        if self._is_chat:
            delta = {"role": "assistant"} if first else {}
            content = {"delta": {**delta, **({"content": text} if text else {})}}
        choice = {"index": 0, **content, "logprobs": None, "finish_reason": finish_reason}
        return self._event({"choices": [choice]})

    def usage_piece(self, result: Generated) -> str:
        """Return the server-sent event with the token counts."""
        return self._event({"choices": [], "usage": usage(result)})

    def _event(self, body: dict[str, Any]) -> str:
        kind = "chat.completion.chunk" if self._is_chat else "text_completion"
        return server_sent_event({**self._common, "object": kind, **body})


def server_sent_event(body: dict[str, Any]) -> str:
    """Return one event of a stream."""
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"


def usage(result: Generated) -> dict[str, int]:
    """Return the token counts of a response."""
    return {
        "prompt_tokens": result.prompt_tokens,
        "completion_tokens": result.completion_tokens,
        "total_tokens": result.prompt_tokens + result.completion_tokens,
    }
