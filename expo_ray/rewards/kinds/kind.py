"""What a kind of reward model is to the rest of the house.

Light, and so is every record: whoever parses a `--reward-model` loads no model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expo_ray.errors import ConfigError, argument

if TYPE_CHECKING:
    from expo_ray.checkpoints import Checkpoint
    from expo_ray.rewards.spec import RewardModelSpec


def as_it_is(spec: RewardModelSpec) -> RewardModelSpec:
    """Return a spec that means the same everywhere already."""
    return spec


def unchanged(text: str, folder: Path) -> str:
    """Return a text in which there is no local path."""
    return text


def no_column(arguments: Mapping[str, Any]) -> str | None:
    """Return that prompts need no column of their own."""
    return None


def no_vote(arguments: Mapping[str, Any]) -> None:
    """Return that answers cannot be compared."""
    return None


def unknown_version(spec: RewardModelSpec) -> None:
    """Return that nothing tells what is behind a text from what was behind it before."""
    return None


def no_bounds(arguments: Mapping[str, Any]) -> None:
    """Return that rewards may lie apart however far."""
    return None


def no_classifier(spec: RewardModelSpec) -> None:
    """Return that it is no plain classifier."""
    return None


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardKind:
    """One kind of reward model. `registry.REWARD_KINDS` holds one record of each."""

    name: str
    """One word, also the name of a folder where a reward model has no better one."""
    prefix: str
    """What its texts begin with (`judge:`); "" for the kind that takes every other text."""
    form: str
    """How it is written, for `--help` and errors."""
    parse: Callable[[str], tuple[str, Mapping[str, Any]]]
    """Returns the name of the model, "" where it has none, and what else the text says; raises
    `ConfigError` by `unusable`. Loads nothing."""
    load: Callable[..., Any]
    """Returns the `RewardModel` of a spec; besides takes `initial` and `aligned` where it
    `needs_pair`, `device` and `dtype` (of torch) where it `has_dtypes`."""
    pin: Callable[[RewardModelSpec], RewardModelSpec] = as_it_is
    """Returns a spec that means the same on every node; refuses what is no reward model."""
    version: Callable[[RewardModelSpec], object] = unknown_version
    """Takes a pinned spec; returns what tells what it names now from what it named before, as plain
    JSON values; None where nobody can know."""
    against: Callable[[str, Path], str] = unchanged
    """Returns a text with the local paths in it made absolute against a folder."""
    classifier: Callable[[RewardModelSpec], Checkpoint | None] = no_classifier
    """Takes a pinned spec; returns the checkpoint of a sequence classifier with one label, which
    other engines may compute as well; None for whatever else it is."""
    needs_pair: bool = False
    """Whether it is made of the pair itself."""
    has_dtypes: bool = True
    """Whether it computes where it is loaded: in a dtype, on a device, and on as many tokens as it
    can read, beyond which it may leave out the beginning (`truncates`)."""
    takes_bare_word: bool = False
    """Whether the prefix without its colon is of this kind, too, and no folder of that name."""
    is_general: bool = True
    """Whether general pairs of good and bad answers say anything about it."""
    reads_columns: bool = False
    """Whether it is told what the prompt says that its answers are checked against."""
    column: Callable[[Mapping[str, Any]], str | None] = no_column
    """Takes the arguments of a spec; returns which of these columns prompts must have."""
    vote: Callable[[Mapping[str, Any]], Callable[[str], str | None] | None] = no_vote
    """Takes the arguments of a spec; returns what reads the answer of a response, for a majority of
    several, None where answers cannot be compared."""
    widest: Callable[[Mapping[str, Any]], float | None] = no_bounds
    """Takes the arguments of a spec; returns how far two rewards can lie apart, None where nothing
    bounds them."""
    is_remembered: bool = True
    """Whether the same chat has the same score for ever, so that it need not be computed again."""


def unusable(text: str, expected: str) -> ConfigError:
    """Return the error for a text that a kind cannot take."""
    return ConfigError(
        "unknown kind of reward model",
        where=argument("reward_model"),
        got=repr(text),
        expected=expected,
    )
