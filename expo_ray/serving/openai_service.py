"""What the OpenAI API is the same of, whichever engine answers: names, keys, limits, alpha.

/v1/models, /health; beyond OpenAI's: /v1/rewards where a reward model is served, /v1/alpha where
alpha may be changed, `weights_digest` and `alpha` in the model list.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from functools import partial
from typing import Any

import ray
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import ValidationError
from ray import serve
from ray.exceptions import RayActorError
from starlette.exceptions import HTTPException

from expo_ray.errors import ExpoError, ServingError
from expo_ray.serving.alpha_board import find_or_start_board
from expo_ray.serving.alpha_member import AlphaMember
from expo_ray.serving.alpha_setting import AlphaSetting, require_setting, setting_fields
from expo_ray.serving.api_error import ApiError
from expo_ray.serving.front_door import FrontDoor, ServiceSettings
from expo_ray.serving.loaded import Loaded
from expo_ray.serving.openai_requests import AlphaBody, RewardsBody
from expo_ray.serving.reward_answer import reward_answer
from expo_ray.serving.source import ModelSource
from expo_ray.serving.weights_gate import WeightsGate

REPLICA_HEADER = "x-expo-ray-replica"
"""Response header that names the replica, so that a load test sees how evenly they share."""

_UNREADY_SECONDS = 60.0
_HTTP_CODES = {404: "not_found", 405: "method_not_allowed"}
_ROUTES = {
    "health": ("GET", "/health"),
    "models": ("GET", "/v1/models"),
    "model": ("GET", "/v1/models/{name:path}"),
    "rewards": ("POST", "/v1/rewards"),
    "alpha": ("GET", "/v1/alpha"),
    "change_alpha": ("POST", "/v1/alpha"),
    "chat_completions": ("POST", "/v1/chat/completions"),
    "text_completions": ("POST", "/v1/completions"),
}


async def _api_error(request: Request, error: ApiError) -> Response:
    return JSONResponse(error.body(), status_code=error.status, headers=error.headers)


async def _invalid_request(
    request: Request, error: RequestValidationError | ValidationError
) -> Response:
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"] if part != "body")
    said = first["msg"].removeprefix("Value error, ")
    if first["type"] == "json_invalid":
        told = ApiError(400, "the body is not valid JSON", code="invalid_json")
    elif first["type"] == "extra_forbidden":
        message = f"{field}: there is no such field"
        told = ApiError(400, message, code="unknown_parameter", param=field)
    else:
        message = f"{field}: {said}" if field else said
        told = ApiError(400, message, code="invalid_value", param=field or None)
    return await _api_error(request, told)


async def _refused(request: Request, error: ExpoError) -> Response:
    return await _api_error(request, ApiError(400, str(error), code="invalid_value"))


async def _http_error(request: Request, error: HTTPException) -> Response:
    if error.status_code == 400:  # FastAPI could not read the body, and does not say why
        told = ApiError(400, "the body is not valid JSON in UTF-8", code="invalid_json")
    else:
        code = _HTTP_CODES.get(error.status_code, "invalid_request")
        told = ApiError(error.status_code, str(error.detail), code=code)
    return await _api_error(request, told)


async def _unexpected(request: Request, error: Exception) -> Response:
    # It is raised again behind this, and logged; clients are not shown what it says.
    return await _api_error(request, ApiError(500, "an unexpected error", code="internal_error"))


def openai_app(owner: Any) -> FastAPI:
    """Return the HTTP application of a service.

    Args:
        owner: An `OpenAIService`, or the class, for `serve.ingress` to bind.
    """
    app = FastAPI(
        title="expo-ray",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
    )
    app.add_middleware(FrontDoor, settings=partial(_settings_of, owner))
    app.add_exception_handler(ApiError, _api_error)  # type: ignore[arg-type]
    app.add_exception_handler(RequestValidationError, _invalid_request)  # type: ignore[arg-type]
    app.add_exception_handler(ValidationError, _invalid_request)  # type: ignore[arg-type]
    app.add_exception_handler(ExpoError, _refused)  # type: ignore[arg-type]
    app.add_exception_handler(HTTPException, _http_error)  # type: ignore[arg-type]
    app.add_exception_handler(Exception, _unexpected)
    for name, (verb, path) in _ROUTES.items():
        app.add_api_route(path, getattr(owner, name), methods=[verb], response_model=None)
    return app


def _settings_of(owner: Any) -> ServiceSettings:
    if isinstance(owner, type):  # the application was made before the replica
        owner = serve.get_replica_context().servable_object
    settings: ServiceSettings = owner._settings
    return settings


def openai_ingress(cls: Any) -> Any:
    """Make an `OpenAIService` the HTTP ingress of its application."""
    return serve.ingress(openai_app(cls))(cls)


def replica_name() -> str:
    """Return the name of the replica that runs this."""
    return str(serve.get_replica_context().replica_id.unique_id)


class OpenAIService:
    """Mixed into a replica, which has `replace` (weights), `_source`, `_loaded` and `_gate`."""

    _source: ModelSource | None
    _loaded: Loaded
    _gate: WeightsGate

    async def replace(self, source: ModelSource) -> Loaded:
        """Put other weights in place while nobody is inside the gate."""
        raise NotImplementedError

    async def start_service(
        self, source: ModelSource, settings: ServiceSettings, rewarder: Any
    ) -> None:
        """Load the weights that are current.

        Args:
            source: What the service was started with.
            settings: Of the service.
            rewarder: Handle of a reward deployment; None answers /v1/rewards with 404.
        """
        self._settings = settings
        self._rewarder = rewarder
        self._created = int(time.time())
        self._member: AlphaMember | None = None
        self._started = source
        self._is_loading = False
        if not settings.allow_alpha_change or source.setting is None:
            await self.replace(source)
        else:
            await self._join(source, source.setting)
        self._healthy_until = time.monotonic() + _UNREADY_SECONDS

    async def _join(self, source: ModelSource, setting: AlphaSetting) -> None:
        find_board = partial(
            find_or_start_board,
            serve.get_replica_context().app_name,
            setting,
            version=source.source_id,
        )

        async def load(setting: AlphaSetting) -> Loaded:
            wanted = source.at(setting)
            if wanted == self._source:
                return self._loaded
            self._is_loading = True
            try:
                return await self.replace(wanted)
            finally:
                self._is_loading = False

        self._member = AlphaMember(
            find_board,
            name=replica_name(),
            actor=ray.get_runtime_context().current_actor,
            gate=self._gate,
            load=load,
        )
        await self._member.join()

    def _require_weights(self) -> None:
        """Let Serve replace a replica that is without weights and will not get any by itself."""
        is_busy = self._is_loading or (self._member is not None and self._member.is_changing)
        if self._loaded.weights_digest is not None or is_busy:
            return
        # Whoever has just started it is told why there are none: an error that Serve would hide.
        if time.monotonic() > self._healthy_until:
            raise ServingError(
                "the weights are not loaded", where=replica_name(), got=self._loaded.error
            )

    async def health(self) -> Response:
        """Answer 200 when the weights are loaded."""
        ready = self._loaded.weights_digest is not None
        return JSONResponse(
            {"status": "ok" if ready else "not ready"}, status_code=200 if ready else 503
        )

    async def models(self) -> dict[str, Any]:
        """List the names of the one model: the one that stays, then the one that tells alpha."""
        async with self._gate.reading():
            data = [self._model_entry(name) for name in self._names()]
            return {"object": "list", "data": data}

    async def model(self, name: str) -> dict[str, Any]:
        """Describe the model."""
        async with self._gate.reading():
            self._require_model(name)
            return self._model_entry(name)

    async def rewards(self, body: RewardsBody) -> dict[str, Any]:
        """Score a chat whose last turn is the assistant's, by itself or against a reference."""
        if self._rewarder is None:
            raise ApiError(404, "no reward model is served here", code="not_found")
        return await reward_answer(self._rewarder, body)

    async def alpha(self) -> dict[str, Any]:
        """Say what every replica holds."""
        return await self._alpha_state()

    async def change_alpha(self, body: AlphaBody) -> dict[str, Any]:
        """Bring all replicas to another alpha, or to rules; answers when they serve it."""
        self._require_member()
        setting = require_setting(body.alpha, body.alpha_rules)
        wanted = self._started.at(setting)
        if wanted.alpha_rules is not None:
            # Those that do not fit this model are refused before anybody has to wait.
            await asyncio.to_thread(wanted.check_pair)
        problem = await self._ask_board("change", setting, body.drain_seconds)
        if problem is not None:
            # Nothing has changed: what was served before is served again.
            raise ApiError(409, str(problem), code="alpha_not_changed")
        return await self._alpha_state()

    async def _alpha_state(self) -> dict[str, Any]:
        state: dict[str, Any] = await self._ask_board("state")
        setting = require_setting(state["alpha"], state["alpha_rules"])
        digests = {replica["weights_digest"] for replica in state["replicas"].values()}
        return {
            "object": "alpha",
            "model": self._started.at(setting).name,
            "weights_digest": digests.pop() if len(digests) == 1 else None,
            **state,
        }

    async def _ask_board(self, method: str, *args: object) -> Any:
        board = self._require_member().board
        try:
            return await getattr(board, method).remote(*args)
        except RayActorError as error:
            raise ApiError(
                503,
                "what leads changes of alpha is being restarted; "
                "ask by GET /v1/alpha which one is served",
                code="restarting",
                headers={"retry-after": "1"},
            ) from error

    def _require_member(self) -> AlphaMember:
        if self._member is None:
            raise ApiError(
                403, "this service was started without --allow-alpha-change", code="not_allowed"
            )
        return self._member

    def _require_model(self, name: str | None) -> None:
        if self._loaded.weights_digest is None or self._source is None:
            raise ApiError(503, "the weights are not loaded", code="not_ready")
        if name is not None and name not in self._names():
            raise ApiError(
                404,
                f"the model {name!r} does not exist; served here: {', '.join(self._names())}",
                code="model_not_found",
                param="model",
            )

    def _names(self) -> list[str]:
        source = self._source
        return [] if source is None else [*dict.fromkeys((source.stable_name, source.name))]

    def _model_entry(self, name: str) -> dict[str, Any]:
        source = self._source
        return {
            "id": name,
            "object": "model",
            "root": None if source is None else source.stable_name,
            "created": self._created,
            "owned_by": "expo-ray",
            "max_model_len": self._loaded.max_model_len,
            "weights_digest": self._loaded.weights_digest,
            **setting_fields(None if source is None else source.setting),
        }

    async def _admit(
        self, model: str | None, events: Callable[[], AsyncIterator[Any]]
    ) -> AsyncIterator[Any]:
        """Yield the events of a request, during which the weights stay what the name says."""
        if self._gate.num_inside + self._gate.num_waiting >= self._settings.max_requests:
            raise ApiError(
                503,
                f"{self._settings.max_requests} requests are being answered already",
                code="overloaded",
                headers={"retry-after": "1"},
            )
        async with self._gate.reading():
            self._require_model(model)
            # The gate is left when what was abandoned has ended, not before.
            async with aclosing(events()) as made:  # type: ignore[type-var]
                async for event in made:
                    yield event

    async def _respond(self, events: AsyncIterator[Any], *, is_stream: bool) -> Response:
        """Send what `_admit` yields: pieces of a stream, or one body."""
        # The first one before any header is sent: refusals have their own status. From here on
        # the generator has begun, and ends (also for a client that goes) where it has to.
        first = await anext(events)
        headers = {REPLICA_HEADER: replica_name()}
        if is_stream:
            return StreamingResponse(
                _chained(first, events), media_type="text/event-stream", headers=headers
            )
        async with aclosing(events):  # type: ignore[type-var]
            return JSONResponse(first, headers=headers)


async def _chained(first: Any, rest: Any) -> AsyncIterator[Any]:
    async with aclosing(rest):
        yield first
        async for event in rest:
            yield event
