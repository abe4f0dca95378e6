"""The record of judges: a model behind an OpenAI-compatible URL that writes a rating."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from expo_ray.credentials import read_api_key
from expo_ray.errors import ConfigError, argument
from expo_ray.rewards.kinds.kind import RewardKind, unusable

if TYPE_CHECKING:
    from expo_ray.rewards.spec import RewardModelSpec

API_KEY_ENV = "EXPO_RAY_JUDGE_API_KEY"
_PREFIX = "judge:"


def _parse(text: str) -> tuple[str, Mapping[str, Any]]:
    url, _, model = text.removeprefix(_PREFIX).rpartition("#")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or not model:
        raise unusable(text, "judge:http://HOST:PORT/v1#MODEL")
    if parts.username or parts.password:
        raise ConfigError(
            "a judge URL must not carry credentials",
            where=argument("reward_model"),
            hint=f"set {API_KEY_ENV} instead",
        )
    judge_api_key()  # a key that no request can carry shows at once, not in every replica
    return model, {"url": url.rstrip("/")}


def _load(spec: RewardModelSpec) -> Any:
    from expo_ray.rewards.judge import JudgeRewardModel

    return JudgeRewardModel(url=spec.arguments["url"], model=spec.model, api_key=judge_api_key())


def judge_api_key() -> str | None:
    """Return the key of the judge's service, None where none is set."""
    is_set = os.environ.get(API_KEY_ENV, "").strip()
    return read_api_key(API_KEY_ENV, name=None) if is_set else None


JUDGE = RewardKind(
    name="judge",
    prefix=_PREFIX,
    form="judge:URL#model",
    parse=_parse,
    load=_load,
    widest=lambda arguments: 9.0,  # from 1 to 10
    has_dtypes=False,
)
