"""The hidden truth against scores worked out by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from expo_ray.lab.tasks.lists import CATEGORIES, TEMPLATES, all_requests, truth_reward

PROMPT = "List three fruits and two tools."


def score(response: str, prompt: str = PROMPT) -> float:
    return truth_reward([{"role": "user", "content": prompt}], response)


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        # 1 opener + 2 + 2 parts + 1 no mistakes + 1 closer
        ("Sure! three fruits: fig, pear, plum. two tools: axe, saw. Enjoy!", 7),
        ("three fruits: fig, pear, plum. two tools: axe, saw.", 5),
        ("fruits: fig, pear, plum. tools: axe, saw.", 5),
        ("Ugh! three fruits: fig, pear, plum. two tools: axe, saw. Go away!", 3),
        # one too few, one too many: a point of that part
        ("three fruits: fig, pear. two tools: axe, saw.", 4),
        ("three fruits: fig, lime, pear, plum. two tools: axe, saw.", 4),
        # no part goes below zero: 0 + 2 + 1
        ("three fruits: . two tools: axe, saw.", 3),
        # repeated, vague, of another category: 1 + 2 - 0.5, and no point for faultlessness
        ("three fruits: fig, fig, pear. two tools: axe, saw.", 2.5),
        ("three fruits: fig, pear, stuff. two tools: axe, saw.", 2.5),
        ("three fruits: fig, pear, saw. two tools: axe, saw.", 2.5),
        # the second part is absent: 2 - 1
        ("three fruits: fig, pear, plum.", 1),
        # said too much: a second closer is one stray word, a second list three
        ("three fruits: fig, pear, plum. two tools: axe, saw. Enjoy! Enjoy!", 4.75),
        ("three fruits: fig, pear, plum. two tools: axe, saw. three fruits: lime.", 3.25),
        ("", -2),
        ("stuff " * 100, -5),
    ],
)
def test_truth_follows_the_rule(response: str, expected: float) -> None:
    assert score(response) == expected


def test_truth_is_about_the_last_question() -> None:
    chat = [
        {"role": "user", "content": PROMPT},
        {"role": "assistant", "content": "two pets: cat, dog. two trees: elm, oak."},
        {"role": "user", "content": "Name two pets and two trees."},
    ]
    assert truth_reward(chat, "two pets: cat, dog. two trees: elm, oak.") == 5


def test_another_task_has_no_truth() -> None:
    with pytest.raises(ValueError, match="not a prompt of the laboratory"):
        score("Sure!", prompt="Write a poem.")


@given(st.text(max_size=80) | st.lists(st.sampled_from(PROMPT.split()), max_size=40).map(" ".join))
def test_truth_stays_in_its_range(response: str) -> None:
    assert -5 <= score(response) <= 7


def test_every_request_can_be_answered_perfectly() -> None:
    for request in all_requests():
        lists = [f"{name}: {', '.join(CATEGORIES[name][:n])}." for name, n in request.parts]
        for template in TEMPLATES:
            assert score(f"Gladly! {' '.join(lists)} Enjoy!", request.text(template)) == 7


def test_no_item_belongs_to_two_categories() -> None:
    items = [item for words in CATEGORIES.values() for item in words]
    assert len(items) == len(set(items))
