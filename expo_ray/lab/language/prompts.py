"""Everyday requests that say something of the form of the answer, which a rule can check.

Texts and rules are the project's own; the rules are of the kinds of IFEval. Every prompt asks for
two kinds, and its truth is the share of them that an answer keeps to (`check:constraints`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal, TypeVar

import numpy as np

from expo_ray.lab.language.settings import LanguageSettings

T = TypeVar("T")
Purpose = Literal["aligned", "reward_model", "guard_reward_model", "evaluation"]
CHECK = "check:constraints=strict-share"
"""The truth, as a reward model."""
NUM_KINDS = 2
"""Constraints of a prompt, each of another kind."""

_REQUESTS = (
    "Give me one good tip about {}.",
    "Tell me in a few words why people like {}.",
    "What should a beginner know about {}?",
    "Write a short message to a friend about {}.",
    "Describe {} to a child.",
    "Name one common mistake with {}.",
)
_TOPICS = (
    *("baking bread", "brewing tea", "cooking rice", "making soup", "packing lunch"),
    *("growing tomatoes", "watering plants", "raking leaves", "planting trees", "composting"),
    *("learning to swim", "riding a bicycle", "morning walks", "playing chess", "juggling"),
    *("painting a room", "fixing a chair", "sewing a button", "washing wool", "ironing shirts"),
    *("saving money", "writing letters", "reading aloud", "keeping a diary", "telling jokes"),
    *("train journeys", "packing a suitcase", "camping", "reading maps", "visiting museums"),
    *("adopting a cat", "walking a dog", "feeding birds", "keeping bees", "riding horses"),
    *("learning the guitar", "singing in a choir", "taking photographs", "drawing faces"),
    *("a good night's sleep", "stretching", "drinking water", "eating fruit", "deep breathing"),
    *("sharing a flat", "meeting neighbours", "giving presents", "hosting a dinner"),
    *("using a dictionary", "studying for a test", "public speaking", "taking notes"),
    *("rainy days", "snow", "the sea", "old bridges", "street markets", "lighthouses"),
)
_ENDINGS = ("Good luck!", "That is all.", "Have a nice day.")
_WORDS = ("simple", "always", "because", "first", "small", "often")


@dataclass(frozen=True, kw_only=True, slots=True)
class LanguagePrompt:
    """A request with what is asked of the form."""

    text: str
    kinds: tuple[str, ...]
    constraints: str
    """What `check:constraints` reads: JSON."""

    def row(self, prompt_id: str) -> dict[str, str]:
        """Return the row of a prompt file."""
        return {"prompt_id": prompt_id, "prompt": self.text, "constraints": self.constraints}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Kind:
    """A kind of constraint: how a prompt says it, and its rule."""

    rule: str
    words: str
    values: Sequence[Any] = (None,)
    settings: Callable[[Any], Mapping[str, Any]] = lambda value: {}

    def draw(self, rng: np.random.Generator) -> tuple[str, dict[str, Any]]:
        value = _pick(rng, self.values)
        return self.words.format(value), {"id": self.rule, **self.settings(value)}


TRAINED: Mapping[str, _Kind] = {
    "commas": _Kind(rule="punctuation:no_comma", words="Do not use any commas."),
    "lowercase": _Kind(
        rule="change_case:english_lowercase", words="Write everything in lowercase letters."
    ),
    "words": _Kind(
        rule="length_constraints:number_words",
        words="Use at most {} words.",
        values=(15, 20, 30),
        settings=lambda n: {"num_words": n, "relation": "at most"},
    ),
    "sentences": _Kind(
        rule="length_constraints:number_sentences",
        words="Write exactly {} sentences.",
        values=(2, 3),
        settings=lambda n: {"num_sentences": n, "relation": "exactly"},
    ),
    "quotation": _Kind(
        rule="startend:quotation", words="Put the whole answer in double quotation marks."
    ),
    "ending": _Kind(
        rule="startend:end_checker",
        words='End your answer with "{}"',
        values=_ENDINGS,
        settings=lambda text: {"end_phrase": text},
    ),
    "bullets": _Kind(
        rule="detectable_format:number_bullet_lists",
        words="Answer with exactly {} bullet points that start with *.",
        values=(2, 3),
        settings=lambda n: {"num_bullets": n},
    ),
    "keyword": _Kind(
        rule="keywords:existence",
        words='Use the word "{}".',
        values=_WORDS,
        settings=lambda word: {"keywords": [word]},
    ),
}
"""What the preferences are about."""
UNTRAINED: Mapping[str, _Kind] = {
    "capitals": _Kind(
        rule="change_case:english_capital", words="Write everything in capital letters."
    ),
    "title": _Kind(
        rule="detectable_format:title",
        words="Give it a title in double angular brackets such as <<title>>.",
    ),
    "postscript": _Kind(
        rule="detectable_content:postscript",
        words="Add a postscript that starts with P.S.",
        settings=lambda _: {"postscript_marker": "P.S."},
    ),
    "forbidden": _Kind(
        rule="keywords:forbidden_words",
        words='Do not use the word "{}".',
        values=("the", "you", "and"),
        settings=lambda word: {"forbidden_words": [word]},
    ),
    "highlight": _Kind(
        rule="detectable_format:number_highlighted_sections",
        words="Highlight one part with *asterisks*.",
        settings=lambda _: {"num_highlights": 1},
    ),
}
"""What no preference is about: evaluation alone asks for them."""
# One rule reads lines that begin with *, the other an answer that begins with a quotation mark, or
# full stops: only odd answers keep to both.
_APART = ({"bullets", "quotation"}, {"bullets", "sentences"})
# Of the topics that evaluation leaves, the share of each kind of training.
_SHARES: Mapping[Purpose, float] = {
    "aligned": 0.5,
    "reward_model": 0.25,
    "guard_reward_model": 0.25,
}
_EVALUATION_SHARE = 0.3


def random_source(settings: LanguageSettings, label: str) -> np.random.Generator:
    """Return the generator of one purpose, from the seed of the settings and a label."""
    return np.random.default_rng(settings.derive_seed(label))


def draw_prompts(
    settings: LanguageSettings,
    purpose: Purpose,
    num_prompts: int,
    *,
    kinds: Mapping[str, _Kind] = TRAINED,
) -> list[LanguagePrompt]:
    """Draw prompts about topics that one purpose owns alone.

    Args:
        settings: The seed.
        purpose: Whose topics.
        num_prompts: How many; more prompts begin with those of fewer.
        kinds: Which constraints.

    Returns:
        The prompts. Requests come again, in another order, with other constraints, only when all
        have had their turn.
    """
    rng = random_source(settings, f"{purpose}-prompts-{'-'.join(kinds)}")
    requests = [
        form.format(topic) for topic, form in product(_topics(settings, purpose), _REQUESTS)
    ]
    prompts: list[LanguagePrompt] = []
    while len(prompts) < num_prompts:
        for i in rng.permutation(len(requests)):
            names = _together([list(kinds)[k] for k in rng.permutation(len(kinds))])
            drawn = [kinds[name].draw(rng) for name in names]
            prompts.append(
                LanguagePrompt(
                    text=" ".join([requests[i], *(words for words, _ in drawn)]),
                    kinds=tuple(names),
                    constraints=json.dumps([rule for _, rule in drawn]),
                )
            )
    return prompts[:num_prompts]


def _together(names: Sequence[str]) -> list[str]:
    """Return the first kinds that one answer can keep to in any natural form."""
    chosen: list[str] = []
    for name in names:
        if not any({name, other} in _APART for other in chosen):
            chosen.append(name)
    return chosen[:NUM_KINDS]


def _topics(settings: LanguageSettings, purpose: Purpose) -> list[str]:
    order = random_source(settings, "topics").permutation(len(_TOPICS))
    dealt = [_TOPICS[i] for i in order]
    num_evaluation = round(_EVALUATION_SHARE * len(dealt))
    if purpose == "evaluation":
        return dealt[:num_evaluation]
    rest = dealt[num_evaluation:]
    names = list(_SHARES)
    before = sum(_SHARES[name] for name in names[: names.index(purpose)])
    return rest[round(before * len(rest)) : round((before + _SHARES[purpose]) * len(rest))]


def _pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    return options[int(rng.integers(len(options)))]
