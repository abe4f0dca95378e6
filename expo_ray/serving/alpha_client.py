"""Changing alpha, or its rules, of a running service from outside. Light: no ray, no torch."""

from __future__ import annotations

import time
from typing import Any

import httpx

from expo_ray.errors import ConfigError, ExpoError, ServingError, argument
from expo_ray.http_text import limited_request
from expo_ray.json_text import parse_json
from expo_ray.proxies import http_client, through_proxy
from expo_ray.redaction import redacted
from expo_ray.serving.alpha_setting import RulesLike, require_setting, setting_fields

DRAIN_SECONDS = 300.0
_LOAD_SECONDS = 3600.0
_SILENT_SECONDS = 60.0
_LOOK_SECONDS = 0.5


class _LostError(ServingError):
    """What became of the request is not known."""


def set_alpha(
    alpha: float | str | None = None,
    *,
    url: str,
    alpha_rules: RulesLike | None = None,
    api_key: str | None = None,
    drain_seconds: float = DRAIN_SECONDS,
) -> dict[str, Any]:
    """Bring all replicas of a running service to another alpha, in place.

    Requests that are being answered finish first, by the old weights; the others wait, and are
    answered by the new ones. Those that ask for the name of the old alpha get 404; the model's own
    name, or none, always means the current weights.

    Args:
        alpha: The new one; beside rules, for tensors without a rule.
        url: Where the service answers, with or without /v1.
        alpha_rules: Rules that give parts of the model their own alpha: a YAML file as for
            `extrapolate`, or the table that it holds.
        api_key: Key that it asks for.
        drain_seconds: How long requests that are being answered may take; past that nothing is
            changed.

    Returns:
        The new model name, its weights digest, the generation, and what each replica holds.

    Raises:
        ConfigError: The URL, the key, alpha or a rule is wrong, or the service does not allow
            the change.
        ServingError: The change failed; the old alpha is served on.

    Example:
        Of a service that was started by
        `expo-ray serve ./dpo --initial ./sft --alpha 0.3 --allow-alpha-change`:

        >>> changed = expo_ray.set_alpha(0.5, url="http://127.0.0.1:8000")
        >>> changed["model"], changed["alpha"]
        ('dpo@alpha=0.5', 0.5)
    """
    wanted = setting_fields(require_setting(alpha, alpha_rules))
    seconds = drain_seconds + _LOAD_SECONDS
    body = {**wanted, "drain_seconds": drain_seconds}
    try:
        return _ask("POST", url, api_key, body, timeout_seconds=seconds)
    except _LostError as error:
        # The replica that led the change for this client may be dead; the change goes on.
        state = _state_at_the_end(url, api_key, seconds)
        if state is None:
            raise
        if {name: state[name] for name in wanted} == wanted:
            return state
        raise ServingError(
            "alpha was not changed",
            where=error.where,
            got=error.got,
            hint=f"{state['model']} is served on: try again",
        ) from error


def get_alpha(*, url: str, api_key: str | None = None) -> dict[str, Any]:
    """Return the current alpha of a running service, and what each replica holds.

    Args:
        url: Where the service answers, with or without /v1.
        api_key: Key that it asks for.

    Raises:
        ConfigError: The URL or the key is wrong, or alpha of this service does not change.
        ServingError: The service does not answer.
    """
    return _ask("GET", url, api_key, None, timeout_seconds=60)


def _state_at_the_end(url: str, api_key: str | None, seconds: float) -> dict[str, Any] | None:
    """Return the state when no change is going on; None where the service stays silent."""
    heard = started = time.monotonic()
    while time.monotonic() < min(heard + _SILENT_SECONDS, started + seconds):
        try:
            state = get_alpha(url=url, api_key=api_key)
        except ServingError:
            pass  # the replica that is asked may be the dead one still
        else:
            heard = time.monotonic()
            if not state["changing"]:
                return state
        time.sleep(_LOOK_SECONDS)
    return None


def _ask(
    verb: str, url: str, api_key: str | None, body: Any, *, timeout_seconds: float
) -> dict[str, Any]:
    endpoint = f"{url.rstrip('/').removesuffix('/v1')}/v1/alpha"
    headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
    timeout = httpx.Timeout(timeout_seconds, connect=30)
    try:
        with http_client(endpoint, headers=headers, timeout=timeout) as client:
            answer = limited_request(client, verb, endpoint, json=body)
    except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
        raise ConfigError("not a URL", where=argument("url"), got=url, hint=str(error)) from error
    except httpx.HTTPError as error:
        was_sent = not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
        raise (_LostError if was_sent else ServingError)(
            "the service does not answer",
            where=endpoint,
            got=f"{type(error).__name__}: {error}{through_proxy(endpoint)}",
        ) from error
    if answer.status_code == 200:
        try:
            return {"schema_version": 1, **parse_json(answer.content)}
        except (ValueError, TypeError) as error:
            raise ServingError(
                "the answer is no state of alpha", where=endpoint, got=answer.text[:100]
            ) from error
    try:
        message = str(parse_json(answer.content)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = redacted(answer.text)[:300]
    kind: type[ExpoError] = ConfigError
    if answer.status_code >= 500:
        kind = _LostError
    elif answer.status_code == 409:
        kind = ServingError
    raise kind(
        "the service refuses",
        where=endpoint,
        got=f"{answer.status_code}: {message}{through_proxy(endpoint)}",
    )
