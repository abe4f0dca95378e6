"""The guards' thresholds, each with its default and the reason for it, and their names.

`--guard NAME=VALUE` sets one; a recipe sets it as `selection: {FIELD: VALUE}`, a Python call as
`guards={FIELD: VALUE}`, by the field's name. A run directory belongs to its thresholds: others need
another directory. What the guards measure is in `guards`.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from expo_ray.errors import ConfigError, argument
from expo_ray.flags import require_first

Doubt = Literal["pass", "by-value", "stop"]


class GuardThresholds(BaseModel):
    """What a candidate may do before a guard stops it; a part of `SelectionSettings`."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)

    # Evidence: benchmarks/results/guard_doubt.md.
    guard_doubt: Doubt = Field(
        default="pass",
        description="What a guard does where so many prompts cannot tell whether its threshold is "
        "passed: `pass`, nothing; `by-value`, it stops the candidate if the value lies beyond "
        "the threshold, however uncertain; `stop`, it stops the candidate unless the whole "
        "interval lies within. `pass` hardly ever stops a sound candidate and always a broken "
        "one; harm of once or twice a threshold it finds with hundreds of prompts only, as "
        "simulated. The share of null rewards is a count, and a gain has to be shown by guard "
        "reward models and at equal length: those guards stop by "
        "their values.",
    )

    max_error_rate: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="Largest share of rewards that may be null or missing. Rows do not fail at "
        "random (long ones fail first), so a mean over the rest would flatter the "
        "candidate.",
    )

    max_length_ratio: float | None = Field(
        default=1.3,
        gt=0,
        description="Largest mean response length relative to alpha 0; null switches the limit "
        "off. Reward models like length. The twelve published models that gained "
        "grew by 4% to 30%; in trials with a known truth, choices that were really "
        "worse had grown by 31% to 48%. Models aligned on a tenth of their data "
        "doubled in the paper and still gained: raise the limit for those, and only "
        "together with a guard reward model.",
    )

    min_length_ratio: float | None = Field(
        default=0.7,
        ge=0,
        description="Smallest mean response length relative to alpha 0; null switches the limit "
        "off. All published extrapolated models write longer, so a clearly shorter "
        "one has lost part of its answers.",
    )

    max_truncation_rate: float = Field(
        default=0.10,
        ge=0,
        le=1,
        description="Largest share of responses that stop at the token limit. Where the aligned "
        "model itself is above it, the candidate must not be above the aligned "
        "model.",
    )

    max_truncation_increase: float = Field(
        default=0.05,
        ge=0,
        le=1,
        description="Largest increase of that share over alpha 0: a model that no longer ends "
        "has collapsed.",
    )

    max_repetition_increase: float = Field(
        default=0.05,
        ge=0,
        le=1,
        description="Largest increase over alpha 0 of the share of four-word sequences that "
        "repeat within a response; at the published alphas this share does not rise "
        "at all.",
    )

    max_echo_increase: float | None = Field(
        default=0.05,
        ge=0,
        le=1,
        description="Largest increase over alpha 0 of the share of responses that restate the "
        "prompt (half of their four-word sequences stand in it), as was reported of "
        "a lightly trained model at alpha 12; null switches the guard off. "
        "Relative, because some prompts ask for their own words.",
    )

    max_special_token_increase: float | None = Field(
        default=0.01,
        ge=0,
        le=1,
        description="Largest increase over alpha 0 of the share of responses with markers of a "
        "chat template in their text (`<|im_end|>`, `[INST]`); sound models write "
        "none, so one in a hundred is a defect; null switches the guard off.",
    )

    max_language_drift_increase: float | None = Field(
        default=0.02,
        ge=0,
        le=1,
        description="Largest increase over alpha 0 of the share of responses in another "
        "language than the prompt, where both are long enough to tell. Relative, "
        "because translations are asked for; 2% is above the error of the detector "
        "on texts of a sentence or more; null switches the guard off.",
    )

    min_length_controlled_gain: float | None = Field(
        default=0.0,
        description="The gain that must remain at equal length, by a regression of reward "
        "differences on length differences: at 0 or below, length explains all of "
        "the gain. Asked of longer candidates only; null switches the guard off.",
    )

    guard_agreement: Literal["sign", "significant"] = Field(
        default="sign",
        description="What a guard reward model must say of a candidate: `sign`, its mean gain "
        "is positive too; `significant`, its interval lies above zero.",
    )


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
    "doubt": "guard_doubt",
}
"""Field of `GuardThresholds` by name of the guard; `doubt` is of them all."""


def guard_of_field(field: str) -> str | None:
    """Return the name of the guard whose threshold a field holds."""
    return next((name for name, known in FIELDS.items() if known == field), None)


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
                where=argument("guards"),
                got=text,
                expected=f"one of {', '.join(FIELDS)}",
                hint=f"did you mean {close[0]}?" if close else None,
            )
        require_first(FIELDS[name], settings, setting="guards", text=text)
        settings[FIELDS[name]] = None if value == "off" else _number(value)
    return settings


def parse_margins(texts: Sequence[str]) -> dict[str, float]:
    """Return the margins of gates from `NAME=MARGIN` texts; a name may hold `=` itself.

    Raises:
        ConfigError: The form is wrong, or the margin is no number above 0.
    """
    margins: dict[str, float] = {}
    for text in texts:
        name, _, value = text.rpartition("=")
        margin = _number(value)
        if not name or isinstance(margin, str) or not 0 < margin < math.inf:
            raise ConfigError(
                "a gate is set as NAME=MARGIN",
                where=argument("no_worse_than"),
                got=text,
                expected="a margin above 0, such as check:number=0.02",
            )
        require_first(name, margins, setting="no_worse_than", text=text)
        margins[name] = margin
    return margins


def _number(value: str) -> float | str:
    try:
        return float(value)
    except ValueError:
        return value
