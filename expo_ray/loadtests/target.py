"""What is tested: a service at a URL, or a model that is served for as long as the test runs."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import httpx
import ray

from expo_ray.credentials import read_api_key
from expo_ray.errors import ConfigError, ServingError, argument
from expo_ray.http_text import limited_request
from expo_ray.json_text import parse_json
from expo_ray.loadtests.options import LoadtestOptions
from expo_ray.loadtests.stream import Endpoint
from expo_ray.proxies import http_client, is_loopback, through_proxy
from expo_ray.redaction import redacted
from expo_ray.serving.alpha_setting import RulesLike, setting_fields

_TIMEOUT_SECONDS = 30.0
_NO_SUCH_PATH = (404, 405, 410, 501)
"""Of a service that answers chats and lists no models."""
_NAME_IT = f"does it answer chats and list no models? then name one: {argument('model', 'NAME')}"


@contextlib.contextmanager
def open_target(
    target: str,
    *,
    initial: str | None,
    alpha: float | None,
    alpha_rules: RulesLike | None = None,
    extra_tensors: Sequence[str] = (),
    options: LoadtestOptions,
) -> Iterator[Endpoint]:
    """Yield where to send requests; a model is served until the block ends.

    Args:
        target: URL of an OpenAI-compatible service, or a model.
        initial: theta0, for a model that is extrapolated while it loads.
        alpha: Its alpha.
        alpha_rules: Alpha by part of the model: a YAML file as for `extrapolate`, or its table.
        extra_tensors: `copy:PATTERN`: tensors that one side may lack, as for `extrapolate`.
        options: Model name and API key of a service.

    Raises:
        ConfigError: A pair was given with a URL, the rules do not fit the pair, or the API key or
            model name is missing.
        ServingError: The service does not answer, or replicas did not start.
    """
    if is_url(target):
        if (initial, alpha, alpha_rules, *extra_tensors) != (None, None, None):
            raise ConfigError(
                "a running service already has its weights",
                where=f"{argument('initial')}, {argument('alpha')}, {argument('alpha_rules')}",
                got=target,
                hint="give a model instead of a URL to serve it extrapolated",
            )
        yield resolve_endpoint(
            Endpoint(
                url=target, model=options.model or "", api_key=read_api_key(options.api_key_env)
            )
        )
        return
    from expo_ray.serving import ServedModel
    from expo_ray.serving.commands import model_source

    source = model_source(target, initial, alpha, alpha_rules, extra_tensors)
    is_private = is_loopback(options.host)
    key = None if is_private else secrets.token_urlsafe(32)
    with ServedModel(
        source,
        num_replicas=options.num_replicas,
        engine=options.engine,
        options=options.engine_options,
        host=options.host,
        api_key=key,
    ) as served:
        yield Endpoint(
            url=served.url if is_private else _reachable(served.url),
            model=served.model,
            weights_digest=served.weights_digest,
            **setting_fields(source.setting),
            api_key=key,
            app_name=served.app_name,
        )


def is_url(target: str) -> bool:
    """Say whether a target is a running service rather than a model."""
    return target.startswith(("http://", "https://"))


def _reachable(url: str) -> str:
    """Name this machine as other nodes of the cluster know it, instead of its loopback address."""
    parts = urlsplit(url)
    if not is_loopback(parts.hostname):
        return url
    return parts._replace(netloc=f"{ray.util.get_node_ip_address()}:{parts.port}").geturl()


def resolve_endpoint(endpoint: Endpoint) -> Endpoint:
    """Ask a service for its models: that it answers, the name, the weights and their alpha.

    Raises:
        ConfigError: It has several models, and none is named.
        ServingError: It does not answer.
    """
    url = f"{endpoint.api_url}/models"
    try:
        with http_client(url, headers=endpoint.headers, timeout=_TIMEOUT_SECONDS) as client:
            answer = limited_request(client, "GET", url)
        if endpoint.model and answer.status_code in _NO_SUCH_PATH:
            return endpoint
        models = _listed(answer.raise_for_status())
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        is_missing = isinstance(error, httpx.HTTPStatusError) and not endpoint.model
        raise ServingError(
            "the service does not answer",
            where=url,
            got=f"{type(error).__name__}: {error}{through_proxy(url)}",
            expected="a list of models",
            hint=_NAME_IT if is_missing else None,
        ) from error
    if models is None and endpoint.model:
        return endpoint
    if models is None:
        raise ServingError(
            "the service lists no models",
            where=url,
            got=f"{redacted(answer.text)[:100]!r}{through_proxy(url)}",
            expected="a list of models, as of the OpenAI API",
            hint=_NAME_IT,
        )
    # Of names of the same weights the last one: `serve` lists the name that stays first, and who
    # measures weights asks for these.
    names = {str(entry.get("weights_digest") or name): name for name, entry in models.items()}
    if not endpoint.model and len(names) != 1:
        raise ConfigError(
            "the service has not exactly one model",
            where=url,
            got=", ".join(sorted(models)) or "none",
            expected="the name of one of them",
        )
    model = endpoint.model or next(iter(names.values()))
    entry = models.get(model, {})
    model = names.get(str(entry.get("weights_digest")), model)
    digest, alpha, rules = (entry.get(n) for n in ("weights_digest", "alpha", "alpha_rules"))
    return replace(
        endpoint,
        model=model,
        weights_digest=digest if isinstance(digest, str) else None,
        alpha=float(alpha) if isinstance(alpha, int | float) else None,
        alpha_rules=rules if isinstance(rules, dict) else None,
    )


def _listed(answer: httpx.Response) -> dict[str, Any] | None:
    try:
        return {str(model["id"]): model for model in parse_json(answer.content)["data"]}
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
