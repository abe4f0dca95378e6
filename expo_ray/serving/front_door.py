"""ASGI middleware: who may come in, before anything of a body is held or parsed.

In this order: whose name the request was sent to, from which page, with which key; then the body,
which has an end in bytes and in seconds. Light: no ray, no torch.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import json
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from expo_ray.serving.api_error import ApiError

MAX_BODY_BYTES = 16 * 1024 * 1024
BODY_SECONDS = 60.0

ANY_ADDRESS = ("0.0.0.0", "::")  # noqa: S104
_DISCARDED_BODIES = 4
_DISCARD_SECONDS = 10.0
_LOCAL_NAMES = frozenset({"127.0.0.1", "localhost", "::1"})
_OPEN_PATH = "/health"


def key_digest(key: str) -> str:
    """Return what replicas keep of an API key: the key itself never enters Ray."""
    return hashlib.sha256(key.encode()).hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class ServiceSettings:
    """What a service is started with besides its model."""

    api_key_digest: str | None = None
    """`key_digest` of the key that clients must send; None asks for none."""
    host: str = "127.0.0.1"
    """The address that it listens on."""
    allowed_hosts: tuple[str, ...] = ()
    """Further names by which clients may call a service without a key."""
    allow_alpha_change: bool = False
    """Whether clients may change alpha of the running service."""
    max_requests: int = 384
    """Requests of one replica, those that wait included; more are answered by 503."""


class FrontDoor:
    """Lets in whoever may come in, with a body that is whole.

    Args:
        app: What comes next.
        settings: Of the service, asked for at each request.
        max_body_bytes: Limit of a body.
        body_seconds: How long one may take to come.
    """

    def __init__(
        self,
        app: Any,
        settings: Callable[[], ServiceSettings],
        max_body_bytes: int = MAX_BODY_BYTES,
        body_seconds: float = BODY_SECONDS,
    ) -> None:
        self._app = app
        self._settings = settings
        self._max_body_bytes = max_body_bytes
        self._body_seconds = body_seconds

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Handle one ASGI scope."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            if scope["path"].removeprefix(scope.get("root_path", "")) != _OPEN_PATH:
                _check_sender(_headers(scope), self._settings())
            messages: list[Any] = []
            if scope["method"] in ("POST", "PUT", "PATCH"):
                messages.append(await self._body(scope, receive))
                _require_json(_headers(scope))
        except ApiError as error:
            await _refuse(send, error)
            return

        async def replay() -> Any:
            return messages.pop(0) if messages else await receive()

        await self._app(scope, replay, send)

    async def _body(self, scope: Any, receive: Any) -> Any:
        announced = _headers(scope).get("content-length", "0")
        if announced.isdecimal() and int(announced[:20]) > self._max_body_bytes:
            await self._discard(receive)
            raise self._too_large()
        body, more = bytearray(), True
        try:
            async with asyncio.timeout(self._body_seconds):
                while more:
                    message = await receive()
                    if message["type"] != "http.request":
                        return message  # the client has gone
                    body += message.get("body", b"")
                    more = message.get("more_body", False)
                    if len(body) > self._max_body_bytes:
                        break
        except TimeoutError as error:
            raise ApiError(
                408,
                f"the body did not come within {self._body_seconds:g} s",
                code="timeout",
                headers={"connection": "close"},
            ) from error
        if len(body) > self._max_body_bytes:
            await self._discard(receive)
            raise self._too_large()
        return {"type": "http.request", "body": bytes(body), "more_body": False}

    async def _discard(self, receive: Any) -> None:
        """Take in some of what is on its way: who still sends would see a reset, not the answer."""
        left = _DISCARDED_BODIES * self._max_body_bytes
        with suppress(TimeoutError):
            async with asyncio.timeout(_DISCARD_SECONDS):
                while left > 0:
                    message = await receive()
                    left -= len(message.get("body", b""))
                    if not message.get("more_body", False):
                        return

    def _too_large(self) -> ApiError:
        return ApiError(
            413, f"the body is longer than {self._max_body_bytes} bytes", code="body_too_large"
        )


def _check_sender(headers: Mapping[str, str], settings: ServiceSettings) -> None:
    if settings.api_key_digest is not None:
        scheme, _, key = headers.get("authorization", "").partition(" ")
        right = hmac.compare_digest(key_digest(key.strip()), settings.api_key_digest)
        if scheme.lower() != "bearer" or not right:
            raise ApiError(
                401,
                "the API key is missing or wrong",
                code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )
        return
    # Without a key any page in a browser of this machine could ask, by a name of its own that
    # leads here, or across origins.
    host = _name(f"//{headers.get('host', '')}")
    names = {*_LOCAL_NAMES, settings.host.lower(), *(n.lower() for n in settings.allowed_hosts)}
    if host not in names and not (settings.host in ANY_ADDRESS and _is_of_this_machine(host)):
        raise _foreign("host")
    if "origin" in headers and _name(headers["origin"]) not in {host, *names}:
        raise _foreign("origin")


def _foreign(field: str) -> ApiError:
    return ApiError(
        403,
        f"the {field.capitalize()} of the request is none of this service's names; `serve` takes "
        "more by --allow-host, and any name with an API key",
        code=f"{field}_not_allowed",
    )


def _name(url: str) -> str:
    try:
        return (urlsplit(url).hostname or "").rstrip(".")
    except ValueError:
        return ""


def _is_of_this_machine(name: str) -> bool:
    # No name server leads an address elsewhere.
    return _is_address(name) or name == socket.gethostname().lower()


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _require_json(headers: Mapping[str, str]) -> None:
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not kind.endswith("+json"):
        raise ApiError(
            400,
            f"the Content-Type of the request is {kind or 'missing'}, send the body as JSON with "
            "Content-Type: application/json (curl: -H 'Content-Type: application/json')",
            code="invalid_content_type",
        )


def _headers(scope: Any) -> dict[str, str]:
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}


async def _refuse(send: Any, error: ApiError) -> None:
    body = json.dumps(error.body()).encode()
    headers = {
        "content-type": "application/json",
        "content-length": str(len(body)),
        **(error.headers or {}),
    }
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})
