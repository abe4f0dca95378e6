"""What `--reward-model` accepts, parsed without loading anything."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Literal, Self
from urllib.parse import urlsplit

from expo_ray.credentials import read_api_key
from expo_ray.errors import ConfigError, argument

API_KEY_ENV = "EXPO_RAY_JUDGE_API_KEY"
_IMPLICIT = "implicit:"
_JUDGE = "judge:"


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardModelSpec:
    """A reward model that was asked for."""

    text: str
    """As the user wrote it."""
    kind: Literal["classifier", "implicit", "judge"]
    """A checkpoint with a head of one label; a pair's log-ratio; a model that writes a rating."""
    model: str
    """Classifier: path, URI or Hub id. Judge: the model name at the service. Implicit: empty."""
    beta: float = 0.0
    """Implicit: the factor on the log-ratio, above 0."""
    url: str = ""
    """Judge: base URL of an OpenAI-compatible service (`http://host:8000/v1`)."""

    @property
    def short_name(self) -> str:
        """A name that is fit for a folder."""
        tail = self.model.rstrip("/").rsplit("/", 1)[-1] if self.model else self.kind
        return re.sub(r"[^A-Za-z0-9._-]+", "-", tail).strip(".-") or self.kind

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse `PATH`, `implicit:beta=0.1` or `judge:URL#model`.

        Args:
            text: The value of `--reward-model`.

        Raises:
            ConfigError: It is none of these.
        """
        if text.startswith(_IMPLICIT) or text == _IMPLICIT[:-1]:
            return cls(text=text, kind="implicit", model="", beta=_parse_beta(text))
        if text.startswith(_JUDGE):
            url, model = _parse_judge(text)
            return cls(text=text, kind="judge", model=model, url=url)
        if not text.strip():
            raise _unusable(text, "a checkpoint, implicit:beta=0.1 or judge:URL#model")
        return cls(text=text, kind="classifier", model=text)


def _parse_beta(text: str) -> float:
    match = re.fullmatch(r"implicit:beta=([0-9.eE+-]+)", text)
    try:
        beta = float(match[1]) if match else 0.0
    except ValueError:
        beta = 0.0
    if not 0 < beta < float("inf"):
        raise _unusable(text, "implicit:beta=NUMBER with a number above 0")
    return beta


def _parse_judge(text: str) -> tuple[str, str]:
    url, _, model = text.removeprefix(_JUDGE).rpartition("#")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or not model:
        raise _unusable(text, "judge:http://HOST:PORT/v1#MODEL")
    if parts.username or parts.password:
        raise ConfigError(
            "a judge URL must not carry credentials",
            where=argument("reward_model"),
            hint=f"set {API_KEY_ENV} instead",
        )
    judge_api_key()  # a key that no request can carry shows at once, not in every replica
    return url.rstrip("/"), model


def judge_api_key() -> str | None:
    """Return the key that judges ask for; None where the environment holds none.

    Raises:
        ConfigError: It cannot be sent.
    """
    is_set = os.environ.get(API_KEY_ENV, "").strip()
    return read_api_key(API_KEY_ENV, name=None) if is_set else None


def _unusable(text: str, expected: str) -> ConfigError:
    return ConfigError(
        "unknown kind of reward model",
        where=argument("reward_model"),
        got=repr(text),
        expected=expected,
    )
