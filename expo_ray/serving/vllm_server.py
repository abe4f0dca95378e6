"""The OpenAI API over vLLM: requests are what `ray.serve.llm` understands, tools and all."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import Response
from pydantic import ValidationError
from ray import serve
from ray.serve.llm import LLMConfig
from ray.serve.llm.openai_api_models import (
    ChatCompletionRequest,
    CompletionRequest,
)

from expo_ray.serve_internals import name_vllm_model
from expo_ray.serving.api_error import ApiError
from expo_ray.serving.front_door import ServiceSettings
from expo_ray.serving.loaded import Loaded
from expo_ray.serving.openai_requests import require_characters
from expo_ray.serving.openai_service import (
    REPLICA_HEADER,
    OpenAIService,
    openai_app,
    replica_name,
)
from expo_ray.serving.request_fields import heeded_in_turn, refuse_extra
from expo_ray.serving.source import ModelSource
from expo_ray.serving.vllm_generator import VLLMGenerator

_TURN_FIELDS = (
    "role",
    "content",
    "name",
    "reasoning",
    "reasoning_content",
    "tool_calls",
    "tool_call_id",
)
_ERROR_EVENT = 'data: {"error"'


@serve.ingress()
class VLLMServer(OpenAIService, VLLMGenerator):
    """A vLLM replica that answers HTTP requests.

    Args:
        llm_config: Of `engines.vllm_config.llm_config`.
        source: The weights that it names.
        settings: Settings of the service.
        rewarder: Handle of a reward deployment; None answers /v1/rewards with 404.
    """

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self,
        llm_config: LLMConfig,
        *,
        source: ModelSource,
        settings: ServiceSettings,
        rewarder: Any = None,
    ) -> None:
        await VLLMGenerator.__init__(self, llm_config, source=source)
        self._show()
        await self.start_service(source, settings, rewarder)

    async def __serve_build_asgi_app__(self) -> FastAPI:
        """Return the HTTP application; that of `LLMServer` would be vLLM's own."""
        return openai_app(self)

    async def replace(self, source: ModelSource) -> Loaded:
        """Put other weights in place while nobody is inside the gate."""
        loaded = self._loaded
        if source != self._source:
            loaded = await VLLMGenerator.replace(self, source)
        self._show()
        return loaded

    async def check_health(self) -> None:
        """Raise an error where Serve shall start another replica in place of this one."""
        self._require_weights()
        await VLLMGenerator.check_health(self)

    async def chat_completions(self, request: Request) -> Response:
        """Continue a chat."""
        asked = self._asked(ChatCompletionRequest, await _json(request))
        events = self._admit(asked.model, lambda: self._events("chat", asked))
        return await self._respond(events, is_stream=bool(asked.stream))

    async def text_completions(self, request: Request) -> Response:
        """Continue a text."""
        asked = self._asked(CompletionRequest, await _json(request))
        events = self._admit(asked.model, lambda: self._events("completions", asked))
        return await self._respond(events, is_stream=bool(asked.stream))

    async def chat_events(self, body: dict[str, Any]) -> AsyncIterator[str]:
        """Stream a chat completion to a caller with a Serve handle, see `OpenAIServer`."""
        streamed = {**body, "stream": True, "stream_options": {"include_usage": True}}
        asked = self._asked(ChatCompletionRequest, streamed)
        yield f": {REPLICA_HEADER} {replica_name()}\n\n"
        admitted = self._admit(asked.model, lambda: self._events("chat", asked))
        async with aclosing(admitted) as events:  # type: ignore[type-var]
            async for event in events:
                yield event

    def _asked(self, kind: Any, body: Any) -> Any:
        asked = _parsed(kind, body)
        # Also of these, vLLM passes over those that the template does not read.
        if variables := getattr(asked, "chat_template_kwargs", None):
            self._chats.require_template()
            self._chats.require_variables(variables)
        return asked

    async def _events(self, method: str, asked: Any) -> AsyncIterator[Any]:
        # vLLM knows one name; which ones are right was checked before.
        asked.model = self._loaded.model
        answers = await getattr(VLLMGenerator, method)(self, asked)
        has_begun = False  # later, an error is an event of the stream
        async with aclosing(answers):
            async for answer in answers:
                for part in answer if isinstance(answer, list) else [answer]:
                    if isinstance(part, str):
                        if not has_begun and part.startswith(_ERROR_EVENT):
                            raise _api_error(json.loads(part.removeprefix("data: "))["error"])
                        has_begun = True
                        yield part
                    else:
                        body = part.model_dump(mode="json")
                        if "error" in body:
                            raise _api_error(body["error"])
                        yield body

    def _show(self) -> None:
        """Let vLLM's responses carry the name and the digest of what is loaded."""
        if self._source is not None:
            name, digest = self._source.name, self._loaded.weights_digest
            name_vllm_model(self, name=name, fingerprint=digest)


async def _json(request: Request) -> Any:
    content = await request.body()
    try:
        body = json.loads(content)
        if b"\\ud" in content.lower():  # only an escape can be half of a pair
            require_characters(json.dumps(body, ensure_ascii=False))
    except (ValueError, RecursionError) as error:
        raise ApiError(400, "the body is not valid JSON in UTF-8", code="invalid_json") from error
    return body


def _parsed(kind: Any, body: Any) -> Any:
    """Return a request as vLLM takes it; what it would ignore in silence is refused."""
    # Before vLLM reads them: its types drop what they do not know.
    turns = body.get("messages") if isinstance(body, dict) else None
    for turn in turns if isinstance(turns, list) else ():
        heeded_in_turn(turn, _TURN_FIELDS)
        parts = turn.get("content") if isinstance(turn, dict) else None
        for part in parts if isinstance(parts, list) else ():
            if isinstance(part, dict) and part.get("type") == "text":
                heeded_in_turn(part, ("type", "text"), "messages.content.")
    try:
        asked = kind.model_validate(body)
    except ValidationError:
        raise  # answered with the field's name
    except (TypeError, AttributeError, LookupError, ValueError) as error:
        # vLLM's own validators expect the shapes that they are to check.
        raise ApiError(400, f"the body is malformed: {error}", code="invalid_value") from error
    refuse_extra(asked)
    return asked


def _api_error(info: dict[str, Any]) -> ApiError:
    message, status = str(info.get("message")), info.get("code")
    too_long = "context length" in message or "max_model_len" in message
    status = status if isinstance(status, int) else 400
    default = "invalid_value" if status < 500 else "generation_failed"
    return ApiError(
        status,
        message,
        code="context_length_exceeded" if too_long else default,
        param=info.get("param"),
    )
