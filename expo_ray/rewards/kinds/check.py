"""The record of checks: answers that are right or wrong by a rule."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expo_ray.rewards.checks.kind import version_of
from expo_ray.rewards.checks.registry import CHECK_KINDS, check_forms
from expo_ray.rewards.kinds.kind import RewardKind, unusable

if TYPE_CHECKING:
    from expo_ray.rewards.spec import RewardModelSpec

_PREFIX = "check:"


def _parse(text: str) -> tuple[str, Mapping[str, Any]]:
    name, separator, argument_text = text.removeprefix(_PREFIX).partition("=")
    kind = CHECK_KINDS.get(name)
    if kind is None:
        raise unusable(text, check_forms())
    arguments = kind.parse(argument_text if separator else None)
    return f"check-{name}", {"check": name, **arguments}


def _pin(spec: RewardModelSpec) -> RewardModelSpec:
    return replace(spec, arguments={"check": spec.arguments["check"], **_pinned(spec)})


def _version(spec: RewardModelSpec) -> object:
    return version_of(_pinned(spec)) or None


def _load(spec: RewardModelSpec) -> Any:
    from expo_ray.rewards.checks.reward_model import CheckRewardModel

    return CheckRewardModel(spec.text, CHECK_KINDS[spec.arguments["check"]], _pinned(spec))


def _against(text: str, folder: Path) -> str:
    name, _, path = text.removeprefix(_PREFIX).partition("=")
    kind = CHECK_KINDS.get(name)
    if kind is None or not kind.takes_file or not path:
        return text
    return f"{_PREFIX}{name}={os.path.normpath(folder / Path(path).expanduser())}"


def _column(arguments: Mapping[str, Any]) -> str | None:
    return CHECK_KINDS[arguments["check"]].column


def _vote(arguments: Mapping[str, Any]) -> Callable[[str], str | None] | None:
    return CHECK_KINDS[arguments["check"]].vote


def _pinned(spec: RewardModelSpec) -> Mapping[str, Any]:
    own = {name: value for name, value in spec.arguments.items() if name != "check"}
    return CHECK_KINDS[spec.arguments["check"]].pin(own)


CHECK = RewardKind(
    name="check",
    prefix=_PREFIX,
    form="check:KIND",
    parse=_parse,
    pin=_pin,
    load=_load,
    version=_version,
    takes_bare_word=True,
    has_dtypes=False,
    is_general=False,
    reads_columns=True,
    column=_column,
    vote=_vote,
    widest=lambda arguments: 1.0 if CHECK_KINDS[arguments["check"]].gives_shares else None,
    against=_against,
    is_remembered=False,
)
