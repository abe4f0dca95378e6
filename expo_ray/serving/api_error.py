"""Errors of the HTTP API: one format, nothing of the server's folders, no endless echo."""

from __future__ import annotations

import re
from typing import Any

_MAX_CHARS = 1000
# Folders of the server, by path or address; not the paths of this API.
_FOLDERS = re.compile(r"(?<![\w/:.<])(?:(?:file|s3|gs):/)?/(?!v1/)(?:[^\s/:;,'\"()]+/)+")


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
                "message": _clean(str(self)),
                "type": kind,
                "param": None if self.param is None else _clean(self.param),
                "code": self.code,
            }
        }


def _clean(text: str) -> str:
    text = _FOLDERS.sub("", text)
    if len(text) > _MAX_CHARS:
        text = f"{text[:_MAX_CHARS]}..."
    # A name that a client gave may hold half of a surrogate pair.
    return text.encode(errors="replace").decode()
