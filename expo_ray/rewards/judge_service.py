"""A language model behind an OpenAI-compatible URL that is asked for a judgement."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import httpx

from expo_ray.proxies import http_client, through_proxy
from expo_ray.rewards.http_calls import post_json
from expo_ray.tables import Message
from expo_ray.tables.thoughts import AUTO

_TIMEOUT_SECONDS = 120.0
_FAULTS = (
    *(httpx.HTTPError, ValueError, KeyError),
    *(IndexError, TypeError, AttributeError),
)


class Judgement(NamedTuple):
    """What a judge said."""

    text: str
    """Its answer, without what it thought."""
    is_closed: bool
    """Whether it ended its thought."""
    num_tokens: int
    """Of the prompt, as the service counts them; 0 where it does not."""
    error: str | None = None
    """Why there is no answer."""


class Choice(NamedTuple):
    """What a judge said, whole."""

    fields: dict[str, Any]
    """The first choice of the service's answer: message, log probabilities, tool calls."""
    error: str | None = None
    """Why there is none."""


class JudgeService:
    """Asks one model of a service; what fails for a moment is tried again.

    Args:
        url: Base URL of the service, such as `http://127.0.0.1:8000/v1`.
        model: The model's name there.
        api_key: Key to send; None sends none.
    """

    def __init__(self, *, url: str, model: str, api_key: str | None = None) -> None:
        self._model = model
        self._through = through_proxy(url)
        self._client = http_client(
            url,
            base_url=url,
            timeout=_TIMEOUT_SECONDS,
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
        )

    def ask(self, messages: Sequence[Message], **sampling: Any) -> Judgement:
        """Return the answer to a chat; a fault of the service is its error, never raised."""
        try:
            answer, choice = self._post(messages, sampling)
            said = AUTO.split_message(choice["message"])
        except _FAULTS as error:
            return Judgement("", is_closed=True, num_tokens=0, error=self._told(error))
        tokens = _num_tokens(answer.get("usage"))
        return Judgement(said.answer, is_closed=said.is_closed, num_tokens=tokens)

    def choose(self, messages: Sequence[Message], **sampling: Any) -> Choice:
        """Return the first choice as the service gave it; a fault is its error, never raised."""
        try:
            return Choice(dict(self._post(messages, sampling)[1]))
        except _FAULTS as error:
            return Choice({}, error=self._told(error))

    def _post(self, messages: Sequence[Message], sampling: dict[str, Any]) -> tuple[Any, Any]:
        body = {"model": self._model, "messages": list(messages), **sampling}
        answer = post_json(self._client, "chat/completions", body)
        return answer, answer["choices"][0]

    def _told(self, error: Exception) -> str:
        return f"the judge did not answer: {type(error).__name__}: {error}{self._through}"


def _num_tokens(usage: object) -> int:
    """Return how long the judge says the prompt was; 0 where it does not say it in a number."""
    number = usage.get("prompt_tokens") if isinstance(usage, dict) else None
    return number if type(number) is int and 0 <= number < 2**63 else 0
