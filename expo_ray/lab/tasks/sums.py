"""Sums of small numbers: answers that can be checked, and manners around them.

A prompt asks for one ("What is 7 + 5 kg?"); a perfect answer is "Sure! It is 12. Enjoy!". The
truth is what `check:number` says: the last number is the right one, or not. Manners are no part
of it, so that a labeller, or a reward model made after him, can like something else.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import TYPE_CHECKING

from expo_ray.lab.tasks.drawing import DAMAGES, draw_closer, draw_opener, pick
from expo_ray.lab.tasks.interface import LabTask
from expo_ray.lab.tasks.manners import score_manners
from expo_ray.rewards.checks.kind import Checked
from expo_ray.rewards.checks.number import NUMBER, NumberCheck

if TYPE_CHECKING:
    import numpy as np

    from expo_ray.tables import Message

TEMPLATES: tuple[str, ...] = (
    "What is {}?",
    "How much is {}?",
    "Work out {}.",
    "Tell me {}.",
    "I need {}.",
    "Please add up {}.",
    "Can you work out {}?",
    "Give me {}.",
)
UNITS: tuple[str, ...] = (
    "m", "km", "cm", "feet", "miles", "yards", "kg", "g", "tons", "pounds", "liters", "cups",
    "pints", "days", "hours", "weeks", "months", "years", "euros", "dollars", "cents", "watts",
    "volts", "amps", "joules", "points", "pages", "boxes", "bags", "cans", "jars", "rolls",
    "rows", "steps", "coins", "seats", "votes", "goals", "laps", "bits",
)  # fmt: skip
MAX_NUMBER = 9
WRONG_SHARES = (0.05, 0.2, 0.4)
"""How often writers of different care are wrong: mistakes come together, as in data of people."""
_SUM = re.compile(rf"(\d+) ([+-]) (\d+) (?:{'|'.join(UNITS)})\b")


@dataclass(frozen=True, kw_only=True, slots=True)
class SumRequest:
    """A sum or difference of two small numbers of something, not negative."""

    first: int
    second: int
    """Negative where it is taken away."""
    unit: str

    @property
    def total(self) -> int:
        """Return the right answer."""
        return self.first + self.second

    def text(self, template: str) -> str:
        """Return the prompt in the words of a template."""
        sign = "-" if self.second < 0 else "+"
        return template.format(f"{self.first} {sign} {abs(self.second)} {self.unit}")


@cache
def all_requests() -> tuple[SumRequest, ...]:
    """Return every request of the task, in a fixed order."""
    numbers = range(1, MAX_NUMBER + 1)
    return tuple(
        SumRequest(first=first, second=sign * second, unit=unit)
        for first, second, sign, unit in product(numbers, numbers, (1, -1), UNITS)
        if first + sign * second >= 0
    )


def right_answer(prompt: str) -> int:
    """Return the sum that a prompt asks for.

    Raises:
        ValueError: It asks for none.
    """
    found = _SUM.search(prompt)
    if found is None:
        raise ValueError(f"not a sum of the laboratory: {prompt!r}")
    return int(found[1]) + int(found[2] + found[3])


def is_right(messages: Sequence[Message], response: str) -> float:
    """Return 1 where the last number of a response is the sum that was asked for, else 0.

    Args:
        messages: The conversation; the last user message is the prompt.
        response: The text that the model answered.

    Raises:
        ValueError: The prompt is none of this task.
    """
    prompt = next((m["content"] for m in reversed(messages) if m["role"] == "user"), "")
    columns = {"answer": str(right_answer(prompt))}
    return NumberCheck().reward(Checked(messages=[], response=response, columns=columns))


def _draw_pieces(rng: np.random.Generator, request: SumRequest) -> list[str]:
    """Draw opener, answer and closer from one writer: careful, hasty or careless."""
    said = request.total
    if rng.random() < pick(rng, WRONG_SHARES):
        said += pick(rng, [off for off in (-2, -1, 1, 2) if said + off >= 0])
    return [draw_opener(rng), f"It is {said}.", draw_closer(rng)]


def _damage(rng: np.random.Generator, answer: str, _: SumRequest) -> str:
    return pick(rng, DAMAGES)(rng, answer)


SUMS = LabTask(
    name="sums",
    templates=TEMPLATES,
    requests=all_requests,
    draw_pieces=_draw_pieces,
    damage=_damage,
    truth=is_right,
    truth_version="1",
    manners=lambda response: score_manners(response.strip())[0],
    columns=lambda request: {"answer": str(request.total)},
    check=NUMBER,
)
