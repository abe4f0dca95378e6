"""`check:http=URL`: a service decides.

It gets `{"response", "messages"}` and, where the prompt has them, `answer`, `constraints` and
`tests`, and answers `{"reward": NUMBER}`, or `{"error": TEXT}` where it cannot say.
"""

from __future__ import annotations

import os
import sys
from urllib.parse import urlsplit

from expo_ray.credentials import read_api_key
from expo_ray.errors import ConfigError, argument
from expo_ray.proxies import http_client, through_proxy
from expo_ray.rewards.checks.kind import (
    Arguments,
    BrokenCheckError,
    Check,
    Checked,
    CheckKind,
    unusable_check,
)

API_KEY_ENV = "EXPO_RAY_CHECK_API_KEY"
_FORM = "check:http=http://HOST:PORT/PATH"
_TIMEOUT_SECONDS = 120.0


class HttpCheck(Check):
    """Asks a service about each response."""

    def __init__(self, url: str, api_key: str | None) -> None:
        self._url = url
        self._through = through_proxy(url)
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._client = http_client(url, timeout=_TIMEOUT_SECONDS, headers=headers)

    def reward(self, checked: Checked) -> float:
        """Return what the service says."""
        import httpx

        from expo_ray.rewards.http_calls import post_json

        body = {"response": checked.response, "messages": checked.messages, **checked.columns}
        try:
            answer = post_json(self._client, self._url, body)
        except (httpx.HTTPError, ValueError) as error:
            told = f"the service did not answer: {type(error).__name__}: {error}{self._through}"
            raise BrokenCheckError(told) from error
        reward = answer.get("reward") if isinstance(answer, dict) else None
        if isinstance(reward, bool | int | float) and abs(reward) <= sys.float_info.max:
            return float(reward)
        fault = answer.get("error") if isinstance(answer, dict) else None
        raise BrokenCheckError(
            f"the service says: {fault}" if fault else "the answer has no reward"
        )


def _parse(url: str | None) -> Arguments:
    try:
        parts = urlsplit(url or "")
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # brackets without an end, a port that is no number
        is_url = False
    if not is_url:
        raise unusable_check(f"check:http={url or ''}", _FORM)
    if parts.username or parts.password:
        raise ConfigError(
            "the URL of a check must not carry credentials",
            where=argument("reward_model"),
            hint=f"set {API_KEY_ENV} instead",
        )
    _api_key()
    return {"url": url}


def _open(arguments: Arguments) -> Check:
    return HttpCheck(arguments["url"], _api_key())


def _api_key() -> str | None:
    is_set = os.environ.get(API_KEY_ENV, "").strip()
    return read_api_key(API_KEY_ENV, name=None) if is_set else None


HTTP = CheckKind(
    name="http",
    form=_FORM,
    parse=_parse,
    open=_open,
    reads_all=True,
    gives_shares=False,
    has_own_process=False,
)
