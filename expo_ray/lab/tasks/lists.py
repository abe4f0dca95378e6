"""The standing task and its hidden truth: list what was asked for, as many, and politely.

A prompt asks for two counted categories ("List three fruits and two tools."); a perfect answer is
"Sure! three fruits: fig, pear, plum. two tools: axe, saw. Enjoy!". The truth score is a rule over
the text, so it can be worked out by hand; no model of the laboratory sees it but those that GRPO
trains, whose reward it is. What does not belong here: how answers are drawn (`list_writers.py`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import permutations, product
from typing import TYPE_CHECKING

from expo_ray.lab.tasks.manners import score_manners

if TYPE_CHECKING:
    from expo_ray.tables import Message

TRUTH_MAX = 7.0
TRUTH_FLOOR = -5.0
# Raise it with every change of the score: rewards tables carry it as the model's revision.
TRUTH_VERSION = "1"

CATEGORIES: dict[str, tuple[str, ...]] = {
    "fruits": ("fig", "lime", "mango", "peach", "pear", "plum"),
    "tools": ("axe", "clamp", "drill", "file", "hammer", "saw"),
    "pets": ("cat", "dog", "hamster", "parrot", "pony", "rabbit"),
    "metals": ("copper", "lead", "nickel", "silver", "tin", "zinc"),
    "colors": ("black", "blue", "green", "pink", "red", "white"),
    "trees": ("birch", "cedar", "elm", "maple", "oak", "pine"),
    "drinks": ("cider", "cocoa", "cola", "milk", "tea", "water"),
    "rivers": ("congo", "indus", "nile", "rhine", "seine", "volga"),
    "sports": ("chess", "golf", "hockey", "judo", "polo", "tennis"),
    "foods": ("bread", "pasta", "pizza", "rice", "salad", "soup"),
}
NUMBERS: dict[str, int] = {"two": 2, "three": 3, "four": 4, "five": 5}
TEMPLATES: tuple[str, ...] = (
    "List {} and {}.",
    "Name {} and {}.",
    "Give me {} and {}.",
    "Please write {} and {}.",
    "I need {} and {}.",
    "Tell me {} and {}.",
    "Can you list {} and {}?",
    "Show me {} and {}.",
)

_WORDS = {count: word for word, count in NUMBERS.items()}
_REQUEST = re.compile(rf"\b({'|'.join(NUMBERS)}) ({'|'.join(CATEGORIES)})\b")
_SECTION = re.compile(rf"\s*(?:(?:{'|'.join(NUMBERS)}) )?(\w+):(.*)", re.DOTALL)


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What a prompt asks for: two different categories, two to five items of each."""

    parts: tuple[tuple[str, int], tuple[str, int]]
    """(category, count) in the order of the prompt."""

    def text(self, template: str) -> str:
        """Return the prompt in the words of a template."""
        return template.format(*(heading(name, count) for name, count in self.parts))


def heading(category: str, count: int) -> str:
    """Return what is asked for in words, as prompts and answers write it ("three fruits")."""
    return f"{_WORDS[count]} {category}"


@cache
def all_requests() -> tuple[Request, ...]:
    """Return every request of the task, in a fixed order."""
    counts = NUMBERS.values()
    return tuple(
        Request(parts=((first, m), (second, n)))
        for (first, second), m, n in product(permutations(CATEGORIES, 2), counts, counts)
    )


def truth_reward(messages: Sequence[Message], response: str) -> float:
    """Score a response by the hidden rule.

    Each asked part: 2 points less one per item missing or too many (not below 0), or -1 when the
    part is absent. A polite opener or closer +1, a rude one -1. Each wrong or repeated item -0.5,
    each word that belongs nowhere -0.25, and +1 when there is neither and both parts are there.

    Args:
        messages: The conversation; the last user message is the prompt.
        response: The text that the model answered.

    Returns:
        A score between -5 and 7.

    Raises:
        ValueError: The prompt is none of this task.
    """
    prompt = next((m["content"] for m in reversed(messages) if m["role"] == "user"), "")
    parts = [(name, NUMBERS[word]) for word, name in _REQUEST.findall(prompt)]
    if len(parts) != 2:
        raise ValueError(f"not a prompt of the laboratory: {prompt!r}")
    manners, body = score_manners(response.strip())
    sections, num_stray = _read_sections(body, [name for name, _ in parts])
    score, num_defects = manners, 0
    for name, count in parts:
        if name not in sections:
            score -= 1
            continue
        right = set(sections[name]) & set(CATEGORIES[name])
        num_defects += len(sections[name]) - len(right)
        score += max(0, 2 - abs(count - len(right)))
    score -= 0.5 * num_defects + 0.25 * num_stray
    if not num_defects and not num_stray and len(sections) == len(parts):
        score += 1
    return max(TRUTH_FLOOR, score)


def _read_sections(body: str, asked: Sequence[str]) -> tuple[dict[str, list[str]], int]:
    """Return the items under each asked heading, and the number of words found elsewhere."""
    sections: dict[str, list[str]] = {}
    num_stray = 0
    for sentence in body.split("."):
        match = _SECTION.fullmatch(sentence)
        if match and match[1] in asked and match[1] not in sections:
            sections[match[1]] = match[2].replace(",", " ").split()
        else:
            num_stray += len(sentence.split())
    return sections, num_stray
