"""Rules that give parts of a model their own alpha: globs and depth ramps, the first match wins.

    default: 0.3                              # without it every tensor needs a rule
    rules:
      - {match: "*norm*", alpha: 0}
      - {match: "*.self_attn.*", alpha: {first: 0.1, last: 0.5}}

A plain list of rules is accepted too. A ramp runs from the first to the last layer of the stack a
tensor is in, so that a vision tower has a ramp of its own.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, StrictFloat, StrictInt, ValidationError

from expo_ray.errors import ConfigError, PairError, argument
from expo_ray.extrapolation.pairing.modules import layer_position
from expo_ray.extrapolation.planning.alpha import format_alpha, parse_alpha
from expo_ray.yaml_text import parse_yaml

if TYPE_CHECKING:
    # Light: a service names its rules without waiting for torch.
    from expo_ray.extrapolation.pairing.tensor_pair import TensorPair

FLAG = argument("alpha_rules")
Number = StrictFloat | StrictInt
Stack = dict[str, tuple[int, int]]


class Ramp(BaseModel):
    """Alpha by depth: linear from the first layer of a stack to its last."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    first: Number = Field(description="Alpha of the first layer.")
    last: Number = Field(description="Alpha of the last one.")


class AlphaRule(BaseModel):
    """One line of a rules file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    match: str = Field(description="Glob over the whole name of a tensor; `*` also passes dots.")
    alpha: Number | Ramp = Field(description="One alpha, or a ramp over the layers.")


class AlphaRules(BaseModel):
    """A rules file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rules: tuple[AlphaRule, ...] = Field(description="The first one that matches a tensor wins.")
    default: Number | None = Field(
        None, description="Alpha of tensors that no rule matches; null refuses them."
    )

    @classmethod
    def parse(cls, table: object, *, where: str = FLAG) -> AlphaRules:
        """Return the rules of a table.

        Args:
            table: A mapping with `rules` and perhaps `default`, or a list of rules.
            where: Named in errors.

        Raises:
            ConfigError: A key is unknown, a value is no finite number, or there is no rule.
        """
        if not table:
            raise ConfigError("there is no rule", where=where, expected="at least one")
        try:
            found = cls.model_validate({"rules": table} if isinstance(table, list) else table)
        except ValidationError as error:
            # The most specific one: a ramp without its end is not "no number".
            first = max(error.errors(), key=lambda found: len(found["loc"]))
            raise ConfigError(
                "the alpha rules are malformed",
                where=f"{where}: {_place(first['loc'])}",
                got=f"{first['input']!r} ({first['msg']})",
                expected="a list of {match: GLOB, alpha: NUMBER or {first: NUMBER, last: NUMBER}}",
            ) from error
        if not found.rules:
            raise ConfigError("there is no rule", where=where, expected="at least one")
        default = () if found.default is None else (found.default,)
        for value in (*default, *(n for rule in found.rules for n in _numbers(rule.alpha))):
            parse_alpha(value)
        return found

    def as_dict(self) -> dict[str, Any]:
        """Return what `parse` reads."""
        return self.model_dump(mode="json")

    @property
    def digest(self) -> str:
        """Eight hex digits that name these rules: the same however their numbers are written."""
        rows = [[rule.match, *map(format_alpha, _numbers(rule.alpha))] for rule in self.rules]
        default = None if self.default is None else format_alpha(self.default)
        return hashlib.sha256(json.dumps([rows, default]).encode()).hexdigest()[:8]

    def with_default(self, alpha: float | None) -> AlphaRules:
        """Return the rules with the alpha that was given beside them, for tensors without a rule.

        Raises:
            ConfigError: The rules have a default already.
        """
        if alpha is None:
            return self
        if self.default is not None:
            raise ConfigError(
                "two defaults are given",
                where=f"{argument('alpha')} and default of {FLAG}",
                got=f"{alpha:g} and {self.default:g}",
                expected="one of them",
            )
        return self.model_copy(update={"default": parse_alpha(alpha)})


def _place(location: tuple[int | str, ...]) -> str:
    """Return where in a rules file an error lies; rules count from 1, as in the other errors."""
    keys = [key for key in location if key not in ("float", "int", "Ramp")]
    if len(keys) > 1 and isinstance(keys[1], int):
        keys[:2] = [f"rule {keys[1] + 1}"]
    return ", ".join(map(str, keys)) or "top level"


def _numbers(alpha: float | Ramp) -> tuple[float, ...]:
    return (alpha.first, alpha.last) if isinstance(alpha, Ramp) else (alpha,)


def read_alpha_rules(source: str | Path | AlphaRules) -> AlphaRules:
    """Return the rules of a YAML file.

    Raises:
        ConfigError: The file cannot be read or is malformed.
    """
    if isinstance(source, AlphaRules):
        return source
    where = argument("alpha_rules", source)
    try:
        table = parse_yaml(Path(source).expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError("the alpha rules cannot be read", where=where, got=error) from error
    return AlphaRules.parse(table, where=where)


def default_of_rules(alpha: str | float | Sequence[str | float]) -> tuple[float, ...]:
    """Return the alpha given beside rules, for tensors that no rule matches.

    Raises:
        ConfigError: There are several: rules give one checkpoint.
    """
    values = [alpha] if isinstance(alpha, str | int | float) else list(alpha)
    if len(values) > 1:
        raise ConfigError(
            "rules give one checkpoint",
            where=f"{argument('alpha')} beside {FLAG}",
            got=", ".join(map(str, values)),
            expected="at most one alpha, for tensors that no rule matches",
        )
    return tuple(parse_alpha(value) for value in values)


@dataclass(frozen=True, kw_only=True, slots=True)
class Resolution:
    """Alpha of every tensor that the formula covers."""

    rules: AlphaRules
    alphas: Mapping[str, float]
    """By tensor name, sorted."""
    counts: tuple[int, ...]
    """Number of tensors per rule."""
    num_default: int

    def of(self, tensors: Sequence[TensorPair]) -> dict[str, float]:
        """Return the alphas of some tensors, such as those of one file."""
        return {p.name: self.alphas[p.name] for p in tensors if p.num_extrapolated}

    def as_dict(self) -> dict[str, Any]:
        """Return the rules and what each of them got, JSON-able; `rules` can be parsed again."""
        table = self.rules.as_dict()
        for row, count in zip(table["rules"], self.counts, strict=True):
            row["num_tensors"] = count
        return {**table, "num_default": self.num_default}


def resolve(
    source: str | Path | AlphaRules,
    tensors: Sequence[TensorPair],
    *,
    default: float | None = None,
) -> Resolution:
    """Give every tensor that the formula covers its alpha.

    Tensors that are copied (integers, rows of a vocabulary that one side lacks) need none.

    Args:
        source: A YAML file, or rules that were read before.
        tensors: The tensors of the plan.
        default: As `--alpha`, for tensors that no rule matches.

    Raises:
        ConfigError: A tensor has no rule, a rule has no tensor, or a ramp meets no layer.
        PairError: Tied tensors have two alphas.
    """
    rules = read_alpha_rules(source).with_default(default)
    stacks = _stacks(tensors)
    names = sorted(pair.name for pair in tensors if pair.num_extrapolated)
    counts = [0] * len(rules.rules)
    alphas: dict[str, float] = {}
    without: list[str] = []
    for name in names:
        index = next((i for i, r in enumerate(rules.rules) if fnmatchcase(name, r.match)), None)
        if index is not None:
            counts[index] += 1
            alphas[name] = _value(rules.rules[index], index, name, stacks)
        elif rules.default is not None:
            alphas[name] = parse_alpha(rules.default)
        else:
            without.append(name)
    if without:
        raise ConfigError(
            "no rule matches a tensor",
            where=FLAG,
            got=f"{len(without)} tensors without alpha, first {without[0]!r}",
            expected="a rule for every tensor, or a default",
            hint=f"give {argument('alpha')} for the rest, or a last rule "
            '{match: "*", alpha: ALPHA}',
        )
    for index, count in enumerate(counts):
        if not count:
            raise _unused(rules, index, tensors)
    for pair in tensors:
        if pair.name in alphas and alphas[pair.name] != alphas.get(pair.tied_to or pair.name):
            raise _untied(pair, alphas)
    num_default = len(names) - sum(counts)
    return Resolution(rules=rules, alphas=alphas, counts=tuple(counts), num_default=num_default)


def _untied(pair: TensorPair, alphas: Mapping[str, float]) -> PairError:
    names = [str(pair.tied_to), pair.name]
    return PairError(
        "two tensors that are tied have two alphas: the output would not be tied",
        where=f"{FLAG}, tensors {names[0]!r} and {names[1]!r}",
        got=" and ".join(format_alpha(alphas[name]) for name in names),
        expected="one alpha",
        hint="let one rule match both, or none",
    )


def _stacks(tensors: Sequence[TensorPair]) -> Stack:
    depths: dict[str, list[int]] = defaultdict(list)
    for pair in tensors:
        position = layer_position(pair.name)
        if position is not None:
            depths[position[0]].append(position[1])
    return {stack: (min(found), max(found)) for stack, found in depths.items()}


def _value(rule: AlphaRule, index: int, name: str, stacks: Stack) -> float:
    if not isinstance(rule.alpha, Ramp):
        return parse_alpha(rule.alpha)
    position = layer_position(name)
    if position is None:
        raise ConfigError(
            "a ramp matches a tensor that is in no layer",
            where=f"{FLAG}, rule {index + 1} ({rule.match})",
            got=name,
            expected="a name with a layer number, such as model.layers.3.mlp.up_proj.weight",
            hint="narrow the pattern, or put a rule with a plain alpha before it",
        )
    first, last = stacks[position[0]]
    share = (position[1] - first) / (last - first) if last > first else 0.0
    return parse_alpha(rule.alpha.first + (rule.alpha.last - rule.alpha.first) * share)


def _unused(rules: AlphaRules, index: int, tensors: Sequence[TensorPair]) -> ConfigError:
    pattern = rules.rules[index].match
    matches = [pair for pair in tensors if fnmatchcase(pair.name, pattern)]
    taken = [pair.name for pair in matches if pair.num_extrapolated]
    got = "no tensor has such a name"
    if taken:
        got = f"earlier rules take all {len(taken)} tensors that it matches, first {taken[0]!r}"
    elif matches:
        got = f"only tensors that are copied, first {matches[0].name!r}"
    return ConfigError(
        "a rule is never used",
        where=f"{FLAG}, rule {index + 1} ({pattern})",
        got=got,
        expected="at least one tensor of the formula per rule",
        hint="`expo-ray inspect -v` lists the names; put narrow patterns first",
    )
