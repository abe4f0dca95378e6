"""The guards' names as settings: what `--guard NAME=VALUE` sets."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

from expo_ray.errors import ConfigError

FIELDS: Mapping[str, str] = {
    "null-rewards": "max_error_rate",
    "length-ratio": "max_length_ratio",
    "short-responses": "min_length_ratio",
    "truncation-rate": "max_truncation_rate",
    "truncation-increase": "max_truncation_increase",
    "repetition": "max_repetition_increase",
    "prompt-echo": "max_echo_increase",
    "special-tokens": "max_special_token_increase",
    "language-drift": "max_language_drift_increase",
    "length-controlled-gain": "min_length_controlled_gain",
    "reward-model": "guard_agreement",
}
"""Field of `SelectionSettings` by name of the guard."""


def parse_guards(texts: Sequence[str]) -> dict[str, float | str | None]:
    """Return settings from `NAME=VALUE` texts; `off` switches a guard off where that is allowed.

    Raises:
        ConfigError: The form is wrong, or there is no such guard.
    """
    settings: dict[str, float | str | None] = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if name not in FIELDS or not separator or not value:
            close = difflib.get_close_matches(name, FIELDS, n=1)
            raise ConfigError(
                "no such guard" if separator else "a guard is set as NAME=VALUE",
                where="--guard",
                got=text,
                expected=f"one of {', '.join(FIELDS)}",
                hint=f"did you mean {close[0]}?" if close else None,
            )
        settings[FIELDS[name]] = None if value == "off" else _number(value)
    return settings


def _number(value: str) -> float | str:
    try:
        return float(value)
    except ValueError:
        return value
