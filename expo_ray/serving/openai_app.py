"""The OpenAI API over a generator: /v1/chat/completions, /v1/completions, /v1/models, /health.

Beyond OpenAI's: /v1/rewards where a reward model is served, `weights_digest` in the model list,
and the digest as `system_fingerprint` of every response.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import AsyncIterator
from typing import Any, Literal

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from ray import serve
from starlette.exceptions import HTTPException

from expo_ray.errors import ExpoError
from expo_ray.serving.engines.interface import Generated, Row
from expo_ray.serving.generator import Generator
from expo_ray.serving.openai_protocol import (
    ApiError,
    ChatBody,
    CompletionBody,
    GenerationBody,
    ResponseFormat,
    RewardsBody,
    server_sent_event,
)
from expo_ray.serving.source import ModelSource

REPLICA_HEADER = "x-expo-ray-replica"
"""Response header that names the replica, so that a load test sees how evenly they share."""

_DEFAULT_COMPLETION_TOKENS = 16  # OpenAI's, for /v1/completions alone

app = FastAPI(title="expo-ray", docs_url=None, redoc_url=None)


@app.exception_handler(ApiError)
async def _api_error(request: Request, error: ApiError) -> Response:
    return JSONResponse(error.body(), status_code=error.status)


@app.exception_handler(RequestValidationError)
async def _invalid_request(request: Request, error: RequestValidationError) -> Response:
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"] if part != "body")
    is_syntax = first["type"] == "json_invalid"
    message = "the body is not valid JSON" if is_syntax else f"{field}: {first['msg']}"
    code = "invalid_json" if is_syntax else "invalid_value"
    return await _api_error(
        request, ApiError(400, message, code=code, param=None if is_syntax else field or None)
    )


@app.exception_handler(ExpoError)
async def _refused_chat(request: Request, error: ExpoError) -> Response:
    return await _api_error(request, ApiError(400, str(error), code="invalid_value"))


@app.exception_handler(HTTPException)
async def _http_error(request: Request, error: HTTPException) -> Response:
    return await _api_error(
        request, ApiError(error.status_code, str(error.detail), code="not_found")
    )


def key_digest(key: str) -> str:
    """Return what replicas keep of an API key: the key itself never enters Ray."""
    return hashlib.sha256(key.encode()).hexdigest()


# Before the class: `serve.ingress` copies what the routes refer to at this point.
def _replica() -> str:
    return str(serve.get_replica_context().replica_id.unique_id)


@serve.deployment
@serve.ingress(app)
class OpenAIServer(Generator):
    """A generator replica that answers HTTP requests.

    Args:
        engine: As `resolve_engine` returns it.
        source: Weights to serve.
        rewarder: Handle of a reward deployment; None answers /v1/rewards with 404.
        api_key_digest: `key_digest` of the key that clients must send; None asks for none.
    """

    def __init__(
        self,
        engine: str,
        source: ModelSource,
        rewarder: Any = None,
        api_key_digest: str | None = None,
    ) -> None:
        super().__init__(engine, source)
        self._name = source.name
        self._alpha = source.alpha
        self._rewarder = rewarder
        self._api_key_digest = api_key_digest
        self._created = int(time.time())

    @app.get("/health")
    async def health(self) -> Response:
        """Answer 200 when the weights are loaded."""
        ready = self._loaded.weights_digest is not None
        return JSONResponse(
            {"status": "ok" if ready else "not ready"}, status_code=200 if ready else 503
        )

    @app.get("/v1/models")
    async def models(self, request: Request) -> dict[str, Any]:
        """List the one model."""
        self._authorize(request)
        return {"object": "list", "data": [self._model_entry()]}

    @app.get("/v1/models/{name:path}")
    async def model(self, name: str, request: Request) -> dict[str, Any]:
        """Describe the model."""
        self._authorize(request)
        self._require_model(name)
        return self._model_entry()

    @app.post("/v1/chat/completions")
    async def chat_completions(self, body: ChatBody, request: Request) -> Response:
        """Continue a chat."""
        self._authorize(request)
        self._require_model(body.model)
        wanted = body.max_completion_tokens or body.max_tokens
        row = self._row(body, self._engine.encode_chat(body.chat()), wanted)
        return await self._respond("chat", body, row)

    async def chat_events(self, body: dict[str, Any]) -> AsyncIterator[str]:
        """Stream a chat completion to a caller with a Serve handle, without proxy and HTTP.

        Args:
            body: As for POST /v1/chat/completions; the first piece is an SSE comment that names
                the replica.
        """
        asked = ChatBody.model_validate(body)
        self._require_model(asked.model)
        wanted = asked.max_completion_tokens or asked.max_tokens
        row = self._row(asked, self._engine.encode_chat(asked.chat()), wanted)
        yield f": {REPLICA_HEADER} {_replica()}\n\n"
        async for event in self._events(self._format("chat"), row, with_usage=True):
            yield event

    @app.post("/v1/completions")
    async def completions(self, body: CompletionBody, request: Request) -> Response:
        """Continue a text."""
        self._authorize(request)
        self._require_model(body.model)
        wanted = body.max_tokens or _DEFAULT_COMPLETION_TOKENS
        row = self._row(body, self._engine.encode_text(body.prompt), wanted)
        return await self._respond("text", body, row)

    @app.post("/v1/rewards")
    async def rewards(self, body: RewardsBody, request: Request) -> dict[str, Any]:
        """Score a chat whose last turn is the assistant's."""
        self._authorize(request)
        if self._rewarder is None:
            raise ApiError(404, "no reward model is served here", code="not_found")
        chat = [{"role": m.role, "content": m.content} for m in body.messages]
        scored = await self._rewarder.score.remote([chat])
        if scored.error is not None:
            raise ApiError(503, scored.error.message, code="not_ready")
        [score] = scored.scores
        return {
            "object": "reward",
            "model": scored.name,
            "model_revision": scored.revision,
            "reward": score.reward,
            "truncated": score.truncated,
            "error": score.error,
            "usage": {"prompt_tokens": score.tokens, "total_tokens": score.tokens},
        }

    def _authorize(self, request: Request) -> None:
        if self._api_key_digest is None:
            return
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        right = hmac.compare_digest(key_digest(key.strip()), self._api_key_digest)
        if scheme.lower() != "bearer" or not right:
            raise ApiError(401, "the API key is missing or wrong", code="invalid_api_key")

    def _require_model(self, name: str) -> None:
        if self._loaded.weights_digest is None:
            raise ApiError(503, "the weights are not loaded", code="not_ready")
        if name != self._name:
            raise ApiError(
                404,
                f"the model {name!r} does not exist, {self._name!r} is served here",
                code="model_not_found",
                param="model",
            )

    def _model_entry(self) -> dict[str, Any]:
        return {
            "id": self._name,
            "object": "model",
            "created": self._created,
            "owned_by": "expo-ray",
            "max_model_len": self._loaded.max_model_len,
            "weights_digest": self._loaded.weights_digest,
            "alpha": self._alpha,
        }

    def _row(self, body: GenerationBody, ids: list[int], max_tokens: int | None) -> Row:
        context = self._loaded.max_model_len
        room = context - len(ids)
        if not ids:
            raise ApiError(400, "the prompt has no tokens", code="invalid_value", param="prompt")
        if room < (max_tokens or 1):
            asked = f" and max_tokens is {max_tokens}" if max_tokens else ""
            raise ApiError(
                400,
                f"the model's context is {context} tokens; the prompt has {len(ids)}{asked}",
                code="context_length_exceeded",
                param="max_tokens" if room >= 1 else "messages",
            )
        limit = max_tokens or room
        return Row(
            prompt_ids=ids,
            params=body.sampling(limit),
            seed=secrets.randbits(63) if body.seed is None else body.seed % 2**63,
            max_tokens=limit,
        )

    async def _respond(
        self, kind: Literal["chat", "text"], body: GenerationBody, row: Row
    ) -> Response:
        answer = self._format(kind)
        headers = {REPLICA_HEADER: _replica()}
        if body.stream:
            with_usage = body.stream_options is not None and body.stream_options.include_usage
            events = self._events(answer, row, with_usage=with_usage)
            return StreamingResponse(events, media_type="text/event-stream", headers=headers)
        result = [event async for event in self.stream(row) if isinstance(event, Generated)][-1]
        if result.error is not None:
            raise ApiError(500, result.error, code="generation_failed")
        return JSONResponse(answer.whole(result), headers=headers)

    def _format(self, kind: Literal["chat", "text"]) -> ResponseFormat:
        return ResponseFormat(
            kind,
            request_id=secrets.token_hex(12),
            model=self._name,
            weights_digest=str(self._loaded.weights_digest),
        )

    async def _events(
        self, answer: ResponseFormat, row: Row, *, with_usage: bool
    ) -> AsyncIterator[str]:
        first = True
        async for event in self.stream(row):
            if isinstance(event, str):
                yield answer.piece(event, first=first)
                first = False
            elif event.error is not None:
                failure = ApiError(500, event.error, code="generation_failed")
                yield server_sent_event(failure.body())
            else:
                yield answer.piece("", first=first, finish_reason=event.finish_reason)
                if with_usage:
                    yield answer.usage_piece(event)
        yield "data: [DONE]\n\n"
