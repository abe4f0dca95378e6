"""The OpenAI API over the embedded engine: /v1/chat/completions and /v1/completions.

The digest of the weights is the `system_fingerprint` of every response.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any, Literal

from fastapi.responses import Response
from ray import serve

from expo_ray.rewards.token_bound import TooLongError
from expo_ray.serving.api_error import ApiError
from expo_ray.serving.engines.interface import Engine, Generated, Row
from expo_ray.serving.front_door import ServiceSettings
from expo_ray.serving.generator import Generator
from expo_ray.serving.loaded import Loaded
from expo_ray.serving.openai_protocol import ResponseFormat, server_sent_event
from expo_ray.serving.openai_requests import ChatBody, CompletionBody, GenerationBody
from expo_ray.serving.openai_service import (
    REPLICA_HEADER,
    OpenAIService,
    openai_ingress,
    replica_name,
)
from expo_ray.serving.source import ModelSource
from expo_ray.serving.weights_gate import WeightsGate

_PROMPT_FIELDS = {"chat": "messages", "text": "prompt"}
_DEFAULT_COMPLETION_TOKENS = 16  # OpenAI's, for /v1/completions alone


@serve.deployment
@openai_ingress
class OpenAIServer(OpenAIService, Generator):
    """A generator replica that answers HTTP requests.

    Args:
        make_engine: Returns a new engine.
        source: Weights to serve.
        settings: Settings of the service.
        rewarder: Handle of a reward deployment; None answers /v1/rewards with 404.
    """

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self,
        make_engine: Callable[[], Engine],
        source: ModelSource,
        settings: ServiceSettings,
        rewarder: Any = None,
    ) -> None:
        Generator.__init__(self, make_engine)
        self._gate = WeightsGate()
        await self.start_service(source, settings, rewarder)

    async def replace(self, source: ModelSource) -> Loaded:
        """Put other weights in place while nobody is inside the gate."""
        return await self.load(source)

    async def check_health(self) -> None:
        """Raise an error where Serve shall start another replica in place of this one."""
        self._require_weights()

    async def chat_completions(self, body: ChatBody) -> Response:
        """Continue a chat."""
        events = self._admit(body.model, lambda: self._chat(body))
        return await self._respond(events, is_stream=bool(body.stream))

    async def text_completions(self, body: CompletionBody) -> Response:
        """Continue a text."""
        events = self._admit(body.model, lambda: self._text(body))
        return await self._respond(events, is_stream=bool(body.stream))

    async def chat_events(self, body: dict[str, Any]) -> AsyncIterator[str]:
        """Stream a chat completion to a caller with a Serve handle, without proxy and HTTP.

        Args:
            body: As for POST /v1/chat/completions; the first piece is an SSE comment that names
                the replica.
        """
        asked = ChatBody.model_validate(
            {**body, "stream": True, "stream_options": {"include_usage": True}}
        )
        yield f": {REPLICA_HEADER} {replica_name()}\n\n"
        admitted = self._admit(asked.model, lambda: self._chat(asked))
        async with aclosing(admitted) as events:  # type: ignore[type-var]
            async for event in events:
                yield event

    def _chat(self, body: ChatBody) -> AsyncIterator[Any]:
        def encode() -> list[int]:
            opens = body.add_generation_prompt
            return self._engine.encode_chat(
                body.chat(),
                add_generation_prompt=not body.continue_final_message if opens is None else opens,
                continue_final_message=body.continue_final_message,
                variables=body.chat_template_kwargs,
            )

        return self._events("chat", body, encode, body.max_completion_tokens or body.max_tokens)

    def _text(self, body: CompletionBody) -> AsyncIterator[Any]:
        wanted = body.max_tokens or _DEFAULT_COMPLETION_TOKENS
        return self._events("text", body, lambda: self._engine.encode_text(body.prompt), wanted)

    def _row(self, body: GenerationBody, ids: list[int], max_tokens: int | None, param: str) -> Row:
        context = self._loaded.max_model_len
        room = context - len(ids)
        if not ids:
            raise ApiError(400, "the prompt has no tokens", code="invalid_value", param=param)
        if room < (max_tokens or 1):
            asked = f" and max_tokens is {max_tokens}" if max_tokens else ""
            raise ApiError(
                400,
                f"the model's context is {context} tokens; the prompt has {len(ids)}{asked}",
                code="context_length_exceeded",
                param="max_tokens" if room >= 1 else param,
            )
        limit = max_tokens or room
        return Row(
            prompt_ids=ids,
            params=body.sampling(limit),
            seed=secrets.randbits(63) if body.seed is None else body.seed % 2**63,
            max_tokens=limit,
            ignore_eos=body.ignore_eos,
            keep_special_tokens=not body.skip_special_tokens,
            keep_stop=body.include_stop_str_in_output,
        )

    async def _events(
        self,
        kind: Literal["chat", "text"],
        body: GenerationBody,
        encode: Callable[[], list[int]],
        max_tokens: int | None,
    ) -> AsyncIterator[Any]:
        """Yield server-sent events, or the one body of a response that is not streamed."""
        try:
            # In a thread: a long prompt would keep all others waiting.
            ids = await asyncio.to_thread(encode)
        except TooLongError as error:
            raise ApiError(
                400, str(error), code="context_length_exceeded", param=_PROMPT_FIELDS[kind]
            ) from error
        row = self._row(body, ids, max_tokens, _PROMPT_FIELDS[kind])
        answer = ResponseFormat(
            kind,
            request_id=secrets.token_hex(12),
            model=str(self._loaded.model),
            weights_digest=str(self._loaded.weights_digest),
        )
        with_usage = body.stream_options is not None and body.stream_options.include_usage
        first = True
        async for event in self.stream(row):
            failure = None
            if isinstance(event, Generated) and event.error is not None:
                failure = ApiError(500, event.error, code="generation_failed")
            if not body.stream:
                if failure is not None:
                    raise failure
                if isinstance(event, Generated):
                    yield answer.whole(event)
            elif isinstance(event, str):
                yield answer.piece(event, first=first)
                first = False
            elif failure is not None:
                yield server_sent_event(failure.body())
            else:
                yield answer.piece("", first=first, finish_reason=event.finish_reason)
                if with_usage:
                    yield answer.usage_piece(event)
        if body.stream:
            yield "data: [DONE]\n\n"
