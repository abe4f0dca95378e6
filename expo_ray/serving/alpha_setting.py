"""What alpha is set to: one number for the whole model, or rules for its parts. Light: no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from expo_ray.errors import ConfigError, argument
from expo_ray.extrapolation import format_alpha, parse_alpha
from expo_ray.extrapolation.planning.alpha_rules import FLAG, AlphaRules, read_alpha_rules

AlphaSetting = float | AlphaRules
RulesLike = str | Path | AlphaRules | Mapping[str, Any] | Sequence[Any]
"""Rules, or the YAML file or the table that holds them."""


def parse_setting(
    alpha: float | str | None, alpha_rules: RulesLike | None = None
) -> AlphaSetting | None:
    """Return what alpha shall be; None where neither is given.

    Args:
        alpha: A number; beside rules, for tensors without a rule.
        alpha_rules: Rules, their YAML file, or the table that such a file holds.

    Raises:
        ConfigError: A number or the rules are malformed.
    """
    number = None if alpha is None else parse_alpha(alpha)
    return number if alpha_rules is None else read_rules(alpha_rules).with_default(number)


def read_rules(source: RulesLike) -> AlphaRules:
    """Return rules, however they are given.

    Raises:
        ConfigError: They cannot be read or are malformed.
    """
    if isinstance(source, str | Path | AlphaRules):
        return read_alpha_rules(source)
    return AlphaRules.parse(source)


def require_setting(alpha: float | str | None, alpha_rules: RulesLike | None) -> AlphaSetting:
    """Return what alpha shall be.

    Raises:
        ConfigError: Neither is given, or it is malformed.
    """
    setting = parse_setting(alpha, alpha_rules)
    if setting is None:
        where = f"{argument('alpha')}, {FLAG}"
        raise ConfigError("neither alpha nor rules are given", where=where)
    return setting


def setting_label(setting: AlphaSetting) -> str:
    """Return what stands behind the @ of a model's name: alpha=0.3, or rules=1a2b3c4d."""
    if isinstance(setting, AlphaRules):
        return f"rules={setting.digest}"
    return f"alpha={format_alpha(setting)}"


def setting_fields(setting: AlphaSetting | None) -> dict[str, Any]:
    """Return `alpha` (null under rules) and `alpha_rules`, JSON-able; `parse_setting` reads it."""
    if isinstance(setting, AlphaRules):
        return {"alpha": None, "alpha_rules": setting.as_dict()}
    return {"alpha": setting, "alpha_rules": None}
