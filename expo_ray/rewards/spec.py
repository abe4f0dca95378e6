"""What `--reward-model` accepts, parsed without loading anything."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from expo_ray.rewards.kinds.kind import RewardKind, unusable
from expo_ray.rewards.kinds.registry import kind_of, reward_forms


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardModelSpec:
    """A reward model that was asked for."""

    text: str
    """As the user wrote it."""
    kind: RewardKind
    model: str
    """Of a checkpoint its path, URI or Hub id, of a judge the name at the service; else empty."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """What else the text says, as its kind reads it: `beta` of an implicit reward, `url` of a
    judge."""

    @property
    def column(self) -> str | None:
        """The column that prompts must have, for a check of what answers are checked against."""
        return self.kind.column(self.arguments)

    @property
    def vote(self) -> Callable[[str], str | None] | None:
        """What reads the answer of a response; None where answers cannot be compared."""
        return self.kind.vote(self.arguments)

    @property
    def widest(self) -> float | None:
        """How far two rewards can lie apart; None where nothing bounds them."""
        return self.kind.widest(self.arguments)

    @property
    def short_name(self) -> str:
        """A name that is fit for a folder."""
        name = self.kind.name
        tail = self.model.rstrip("/").rsplit("/", 1)[-1] if self.model else name
        return re.sub(r"[^A-Za-z0-9._-]+", "-", tail).strip(".-") or name

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse `PATH`, `implicit:beta=0.1`, `judge:URL#model` or what another kind takes.

        Args:
            text: The value of `--reward-model`.

        Raises:
            ConfigError: It is none of these.
        """
        if not text.strip():
            raise unusable(text, reward_forms())
        kind = kind_of(text)
        model, arguments = kind.parse(text)
        return cls(text=text, kind=kind, model=model, arguments=arguments)
