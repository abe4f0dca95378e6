"""Rules of constraints beside the published code of IFEval, on texts of every form they ask for."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest

from expo_ray.rewards.checks.constraint_rules import RULES
from tests.rewards.checks.test_constraints import CASES

# What the published code asks NLTK, which loads data from the network when it is called.
_BY_NLTK = {"length_constraints:number_sentences", "change_case:capital_word_frequency"}
_BY_LANGUAGE = {
    "language:response_language",
    "change_case:english_capital",
    "change_case:english_lowercase",
}
_COUNTS: dict[str, tuple[int, ...]] = {
    "num_words": (3, 12),
    "num_paragraphs": (1, 2, 3),
    "nth_paragraph": (1, 2),
    "num_placeholders": (1, 2),
    "num_bullets": (1, 2, 3),
    "num_highlights": (1, 2, 3),
    "num_sections": (1, 2),
    "frequency": (1, 2),
    "let_frequency": (1, 4),
}
_PIECES = (
    *("Tea is a drink.", "tea, and milk", "ALL OF THIS IS IN CAPITAL LETTERS HERE", "red wine"),
    *("this is all in lowercase letters, as asked for.", "It's Red; red's best!", "redwood"),
    *("* one", "- two", " * three *", "** four **", "*five* and *six*", "**seven**", "***", "* *"),
    *("[name]", "[a] [b]", "[]", "<<On tea>>", "<< >>", "<<>>"),
    *("P.S. more", "p. s. less", "P.P.S x"),
    *("Section 1", "Section 2", "section 3", "My answer is yes.", "My answer is maybe"),
    *('"quoted"', '"', "******", "Say it", "The end.", 'The end."', "'Then, so.", "Then. so", "-"),
    *('{"a": 1}', "```json\n[1]\n```", "```\n{}\n```", "It costs 3,5 or 1.5", "e.g. this"),
)
# Of shorter texts the two packages that tell languages say different things.
_PLAIN = (
    *(
        "This is a plain English sentence, and it is long enough.",
        "Das ist ein ganz normaler deutscher Satz und lang genug.",
    ),
    *(
        "THIS IS A PLAIN ENGLISH SENTENCE, AND IT IS LONG ENOUGH.",
        "DAS IST EIN GANZ NORMALER DEUTSCHER SATZ UND LANG GENUG.",
    ),
    *(
        "this is a plain english sentence, and it is long enough.",
        "das ist ein ganz normaler deutscher satz und lang genug.",
    ),
    *("Il pleut depuis ce matin et nous restons dans la maison.", "12 345"),
)


def _texts(name: str) -> list[str]:
    """Return texts of the rules' own tests, every piece alone, and pieces put together."""
    if name in _BY_LANGUAGE:
        return list(_PLAIN)
    rng = np.random.default_rng(0)
    joined = [
        rng.choice(["\n", "\n\n", " ", "\n***\n"]).join(
            str(each) for each in rng.choice(_PIECES, size=rng.integers(2, 6))
        )
        for _ in range(400)
    ]
    own = [text for case in CASES for text in case[2:]]
    return [*own, *_PIECES, *joined, *(f'"{each}"' for each in joined[:40])]


def _asked(settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Return settings with every count and relation that is worth a try."""
    options = {name: _COUNTS[name] for name in settings if name in _COUNTS}
    relations = {name: ("less than", "at least") for name in settings if name.endswith("relation")}
    tried: dict[str, tuple[Any, ...]] = options | relations
    found = [
        {**settings, **dict(zip(tried, each, strict=True))} for each in product(*tried.values())
    ]
    # Of another paragraph than there are the published code draws one by chance.
    return [each for each in found if each.get("nth_paragraph", 0) <= each.get("num_paragraphs", 9)]


@pytest.mark.parametrize(
    "case", [case for case in CASES if case[0] not in _BY_NLTK], ids=lambda case: case[0]
)
def test_a_rule_says_what_the_published_code_does(
    case: tuple[str, dict[str, Any], str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    official = pytest.importorskip("lm_eval.tasks.ifeval.instructions_registry").INSTRUCTION_DICT
    # Its package for languages draws lots, and has no seed by itself.
    monkeypatch.setattr(pytest.importorskip("langdetect").DetectorFactory, "seed", 0)
    name, settings, *_ = case
    if "keywords" in settings:  # the published code takes them as patterns, where "c++" is none
        settings = {"keywords": ["red", "tea"]}
    said = set()
    for asked in _asked(settings):
        rule = official[name](name)
        rule.build_description(**asked)
        for text in _texts(name):
            told = bool(rule.check_following(text))
            assert RULES[name](text, **asked) == told, (asked, text)
            said.add(told)
    assert said == {True, False}
