"""What a plan knows of a trajectory: the fit and the steps, as records and digests have them.

Light: no torch. What does not belong here: the fits themselves, and opening checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

LAST: Final = "last"
"""From the last checkpoint along the fitted change over the whole span, alpha times."""
FITTED: Final = "fitted"
"""The fitted model of a step itself."""
FITTED_ALPHA: Final = 1.0
"""Of a fitted model: its direction leads from the last checkpoint all the way to it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FittedPath:
    """How the checkpoints of a trajectory make what takes the place of delta."""

    fit: str
    steps: tuple[float, ...]
    """Of all checkpoints of the trajectory, increasing."""
    read: tuple[float, ...]
    """Of those that are read; the others have the weight 0."""
    copied: tuple[str, ...] = ()
    """Tensors of the last checkpoint that no fit covers: integers, and what some checkpoint lacks,
    even one that is not read."""
    start: str
    """LAST or FITTED."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of the fit, where they are not its defaults."""
    has_gram_pass: bool = False
    """Whether the weights come from a pass of their own over all checkpoints."""

    @property
    def is_pair(self) -> bool:
        """Whether the line through two checkpoints makes delta what it is of a pair."""
        return self.fit == "line" and len(self.steps) == 2 and self.start == LAST

    def as_dict(self) -> dict[str, Any]:
        """Return what decides which weights come out, JSON-able."""
        return {
            "fit": self.fit,
            "options": dict(self.options),
            "steps": list(self.steps),
            "from": self.start,
            "copied": list(self.copied),
        }


def step_name(step: float) -> str:
    """Return how a step is written: 200, 1.5.

    Example:
        >>> step_name(200.0), step_name(1.5)
        ('200', '1.5')
    """
    return str(int(step)) if float(step).is_integer() else repr(float(step))


def step_checkpoint_name(step: float) -> str:
    """Return the folder name of a checkpoint for one step: step-800."""
    return f"step-{step_name(step)}"
