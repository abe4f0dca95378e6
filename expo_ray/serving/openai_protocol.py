"""The OpenAI API as data: what responses look like."""

from __future__ import annotations

import json
import time
from typing import Any, Literal

from expo_ray.serving.engines.interface import Generated


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
