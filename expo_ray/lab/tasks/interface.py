"""What a task is to the rest of the laboratory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np

    from expo_ray.rewards.checks.kind import CheckKind
    from expo_ray.tables import Message


class Request(Protocol):
    """What a prompt asks for, whatever its words."""

    def text(self, template: str) -> str:
        """Return the prompt in the words of a template."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class LabTask:
    """One task. `registry.TASKS` holds one record of each."""

    name: str
    templates: tuple[str, ...]
    """Each with a `{}` for every part that a request fills in."""
    requests: Callable[[], Sequence[Any]]
    """Returns every request of the task, in a fixed order."""
    draw_pieces: Callable[[np.random.Generator, Any], list[str]]
    """Draws an answer of random quality, in pieces: a phrase before, the answer, a phrase after."""
    damage: Callable[[np.random.Generator, str, Any], str]
    """Breaks an answer as extrapolated models do."""
    truth: Callable[[Sequence[Message], str], float]
    """Scores an answer by the hidden rule; raises `ValueError` for a prompt of another task."""
    truth_version: str
    """Another one with every change of the score: rewards tables carry it."""
    check: CheckKind
    """What rewards training on checked answers; its rewards are those of the truth."""
    manners: Callable[[str], float] | None = None
    """What a labeller likes in a response besides the truth; None where the truth has it all."""
    columns: Callable[[Any], Mapping[str, str]] | None = None
    """Returns what a prompt carries to be checked against; None where its words say it all."""
