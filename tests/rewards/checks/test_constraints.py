"""Constraints in the form of IFEval, each with what keeps to it and what does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from expo_ray.errors import ConfigError
from expo_ray.rewards import RewardModelSpec
from expo_ray.rewards.checks.constraint_rules import RULES, count_sentences
from expo_ray.rewards.checks.constraints import CONSTRAINTS, ConstraintsCheck
from expo_ray.rewards.checks.kind import BrokenCheckError, Checked

# The name, what the prompt says, a response that keeps to it and one that does not.
CASES: list[tuple[str, dict[str, Any], str, str]] = [
    ("keywords:existence", {"keywords": ["red", "c++"]}, "Red, and C++.", "Red, and C."),
    (
        "keywords:frequency",
        {"keyword": "red", "frequency": 2, "relation": "at least"},
        "Red is red.",
        "Red.",
    ),
    ("keywords:forbidden_words", {"forbidden_words": ["red"]}, "Reduce it.", "It is Red."),
    (
        "keywords:letter_frequency",
        {"letter": "e", "let_frequency": 2, "let_relation": "less than"},
        "One",
        "Eve",
    ),
    (
        "language:response_language",
        {"language": "de"},
        "Das ist ein ganz normaler deutscher Satz, und er ist lang genug.",
        "This is a plain English sentence, and it is long enough.",
    ),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 2, "relation": "at least"},
        "Dr. Who came. He left!",
        "Dr. Who came",
    ),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "one\n***\ntwo\n***", "one"),
    (
        "length_constraints:number_words",
        {"num_words": 3.0, "relation": "less than"},
        "two words",
        "now three words",
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "then"},
        "One.\n\n'Then, two.",
        "One.\n\nNow two.",
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 1}, "[name]", "name"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Hi.\np. s. Bye", "Hi. Bye"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n - b", "* a\n** b **"),
    ("detectable_format:constrained_response", {}, "My answer is yes.", "Yes."),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 1}, "*a* b", "a ** b"),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "Section", "num_sections": 2},
        "Section 1 a Section 2 b",
        "Section 1 a Section b",
    ),
    ("detectable_format:json_format", {}, '```json\n{"a": 1}\n```', "a: 1"),
    ("detectable_format:title", {}, "<<On tea>>\nTea.", "<< >>"),
    ("combination:two_responses", {}, "a ****** b", "a ****** a"),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say it"}, "say it. It.", "It."),
    ("startend:end_checker", {"end_phrase": "The end."}, 'It was so. "The end."', "The end. No."),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 1, "capital_relation": "at most"},
        "NATO came",
        "NATO and UNO came",
    ),
    ("change_case:english_capital", {}, "THIS IS A PLAIN ENGLISH SENTENCE.", "This is one."),
    ("change_case:english_lowercase", {}, "this is a plain english sentence.", "This is one."),
    ("punctuation:no_comma", {}, "one and two", "one, two"),
    ("startend:quotation", {}, '"So."', '"So.'),
]


def reward(check: str, response: str, *constraints: dict[str, Any]) -> float:
    made = CONSTRAINTS.open(CONSTRAINTS.parse(check))
    target = json.dumps(constraints)
    assert made.target_fault(target) is None
    return made.reward(Checked(messages=[], response=response, columns={"constraints": target}))


@pytest.mark.parametrize(("name", "settings", "kept", "broken"), CASES)
def test_each_constraint(name: str, settings: dict[str, Any], kept: str, broken: str) -> None:
    assert reward("strict", kept, {"id": name, **settings}) == 1
    assert reward("strict", broken, {"id": name, **settings}) == 0
    assert reward("strict", "", {"id": name, **settings}) == 0, "nothing keeps to nothing"


def test_every_kind_is_tried() -> None:
    assert {case[0] for case in CASES} == set(RULES)
    assert len(RULES) == 25


def test_every_kind_is_in_the_documentation_with_its_settings() -> None:
    text = (Path(__file__).resolve().parents[3] / "docs/checked-rewards.md").read_text()
    for name, settings, *_ in CASES:
        row = f"| `{name}` | {', '.join(f'`{key}`' for key in settings)} |"
        assert row in text, row


def test_a_name_that_is_nearly_right_is_told() -> None:
    told = CONSTRAINTS.open({"mode": "strict"}).target_fault('[{"id": "punctuation:no_coma"}]')
    assert told is not None
    assert "did you mean 'punctuation:no_comma'?" in told


def test_strict_loose_and_shares() -> None:
    quoted = {"id": "startend:quotation"}
    no_comma = {"id": "punctuation:no_comma"}
    dressed = 'Sure, here it is:\n*"So."*'
    assert [reward(mode, dressed, quoted, no_comma) for mode in ("strict", "loose")] == [0, 1]
    assert reward("strict-share", '"So, so."', quoted, no_comma) == 0.5
    assert reward("loose-share", dressed, quoted, no_comma) == 1
    with pytest.raises(ConfigError, match="not written as its kind is"):
        RewardModelSpec.parse("check:constraints=lax")


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ("no json", "no JSON"),
        ("[]", "no list, or an empty one"),
        ('[{"id": "no:such"}]', "no such constraint: 'no:such'"),
        ('["punctuation:no_comma"]', "no such constraint"),
        ('[{"id": "length_constraints:number_words", "num_words": 3}]', "relation: Missing"),
        (
            '[{"id": "detectable_content:number_placeholders", "num_placeholders": "few"}]',
            "num_placeholders: Input should be a valid integer",
        ),
        ('[{"id": "punctuation:no_comma", "num_words": 3}]', "num_words: Unexpected"),
    ],
)
def test_malformed_constraints_are_a_fault_of_the_prompt(target: str, told: str) -> None:
    check = ConstraintsCheck(is_loose=False, shares=False)
    assert told in str(check.target_fault(target))
    with pytest.raises(BrokenCheckError):
        check.reward(Checked(messages=[], response="a", columns={"constraints": target}))


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("One. Two! Three?", 3),
        ("It costs 3.50 at www.shop.com", 1),
        ("Mr. Smith, e.g. J. Smith, came. He left", 2),
        ("Wait... what?!", 2),
        ("", 0),
    ],
)
def test_sentences(text: str, number: int) -> None:
    assert count_sentences(text) == number
