"""ASGI middleware: a request body has an end, and a huge one is refused before it is parsed."""

from __future__ import annotations

import json
from typing import Any

MAX_BODY_BYTES = 16 * 1024 * 1024


class BodyLimit:
    """Reads a body up to a limit, then hands it on; 413 where it is longer.

    Args:
        app: What comes next.
        max_body_bytes: The limit.
    """

    def __init__(self, app: Any, max_body_bytes: int = MAX_BODY_BYTES) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Handle one ASGI scope."""
        if scope["type"] != "http" or scope["method"] not in ("POST", "PUT", "PATCH"):
            await self._app(scope, receive, send)
            return
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if announced.isdigit() and int(announced) > self._max_body_bytes:
            await self._refuse(send)
            return
        messages: list[Any] = []
        num_bytes = 0
        more = True
        while more:
            message = await receive()
            messages.append(message)
            num_bytes += len(message.get("body", b""))
            more = message["type"] == "http.request" and message.get("more_body", False)
            if num_bytes > self._max_body_bytes:
                await self._refuse(send)
                return

        async def replay() -> Any:
            return messages.pop(0) if messages else await receive()

        await self._app(scope, replay, send)

    async def _refuse(self, send: Any) -> None:
        message = f"the body is longer than {self._max_body_bytes} bytes"
        error = {"message": message, "type": "invalid_request_error", "param": None}
        body = json.dumps({"error": {**error, "code": "body_too_large"}}).encode()
        headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": 413, "headers": headers})
        await send({"type": "http.response.body", "body": body})
