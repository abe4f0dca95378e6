"""The record of implicit rewards: the log-ratio of the pair itself."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from expo_ray.rewards.kinds.kind import RewardKind, unusable

if TYPE_CHECKING:
    from expo_ray.rewards.spec import RewardModelSpec


def _parse(text: str) -> tuple[str, Mapping[str, Any]]:
    match = re.fullmatch(r"implicit:beta=([0-9.eE+-]+)", text)
    try:
        beta = float(match[1]) if match else 0.0
    except ValueError:
        beta = 0.0
    if not 0 < beta < float("inf"):
        raise unusable(text, "implicit:beta=NUMBER with a number above 0")
    return "", {"beta": beta}


def _load(spec: RewardModelSpec, **pair_and_how: Any) -> Any:
    from expo_ray.rewards.implicit import ImplicitRewardModel

    return ImplicitRewardModel(beta=spec.arguments["beta"], **pair_and_how)


IMPLICIT = RewardKind(
    name="implicit",
    prefix="implicit:",
    form="implicit:beta=0.1",
    parse=_parse,
    load=_load,
    needs_pair=True,
    takes_bare_word=True,
    is_general=False,
)
