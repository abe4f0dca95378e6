"""Prompts of the real language model: what they ask for is what their rules check."""

from __future__ import annotations

import json

import pytest

from expo_ray.lab.language.pairs import open_check, training_prompts, truth_of
from expo_ray.lab.language.prompts import (
    _REQUESTS,
    _TOPICS,
    NUM_KINDS,
    TRAINED,
    UNTRAINED,
    LanguagePrompt,
    draw_prompts,
)
from expo_ray.lab.language.settings import LanguageSettings

SETTINGS = LanguageSettings(num_preference_prompts=300, num_reward_prompts=150)
KEPT = {
    "commas": "No pauses here",
    "lowercase": "all of it is lowercase",
    "words": "A few words only",
    "sentences": None,
    "quotation": '"Said by someone."',
    "ending": None,
    "bullets": None,
    "keyword": None,
    "capitals": "ALL OF IT IS LOUD",
    "title": "<<Bread>> Bake it.",
    "postscript": "Bake it. P.S. Eat it.",
    "forbidden": "Bake it now.",
    "highlight": "Bake *it* now.",
}


def topics_of(prompts: list[LanguagePrompt]) -> set[str]:
    starts = [form.partition("{}") for form in _REQUESTS]
    return {
        topic
        for prompt in prompts
        for topic in _TOPICS
        if any(prompt.text.startswith(f"{a}{topic}{b}") for a, _, b in starts)
    }


def test_topics_belong_to_one_purpose_alone() -> None:
    purposes = ("aligned", "reward_model", "guard_reward_model", "evaluation")
    owned = [topics_of(draw_prompts(SETTINGS, purpose, 400)) for purpose in purposes]  # type: ignore[arg-type]
    assert sum(map(len, owned)) == len(set().union(*owned)) == len(_TOPICS)
    other = draw_prompts(SETTINGS, "evaluation", 400, kinds=UNTRAINED)
    assert topics_of(other) == owned[-1]


def test_no_prompt_asks_for_what_only_odd_answers_keep_to() -> None:
    asked = [{*prompt.kinds} for prompt in draw_prompts(SETTINGS, "aligned", 2000)]
    assert all(len(kinds) == NUM_KINDS for kinds in asked)
    assert {"bullets", "quotation"} not in asked and {"bullets", "sentences"} not in asked
    assert {"bullets", "keyword"} in asked and {"quotation", "sentences"} in asked


def test_more_prompts_begin_with_those_of_fewer() -> None:
    assert draw_prompts(SETTINGS, "aligned", 30) == draw_prompts(SETTINGS, "aligned", 300)[:30]
    small = SETTINGS.model_copy(update={"fractions": (0.05,)})
    assert (
        list(training_prompts(small, "aligned").items())
        == (list(training_prompts(SETTINGS, "aligned").items())[:15])
    )
    assert small.digest() == SETTINGS.digest()


def test_another_seed_draws_other_prompts() -> None:
    other = SETTINGS.model_copy(update={"seed": 1})
    assert draw_prompts(other, "aligned", 30) != draw_prompts(SETTINGS, "aligned", 30)
    assert other.digest() != SETTINGS.digest()


@pytest.mark.parametrize("kinds", [TRAINED, UNTRAINED], ids=["trained", "untrained"])
def test_prompts_ask_for_two_kinds_in_words(kinds: dict[str, object]) -> None:
    check = open_check()
    for prompt in draw_prompts(SETTINGS, "evaluation", 200, kinds=kinds):  # type: ignore[arg-type]
        assert len({*prompt.kinds}) == NUM_KINDS
        for constraint in json.loads(prompt.constraints):
            for value in constraint.values():
                shown = value if isinstance(value, list) else [value]
                assert all(
                    str(each) in prompt.text
                    for each in shown
                    if each not in (constraint["id"], "at most", "exactly", 1)
                )
        assert 0 <= truth_of(check, prompt, "Something.") <= 1


@pytest.mark.parametrize(("name", "answer"), [(n, a) for n, a in KEPT.items() if a])
def test_an_answer_that_keeps_to_a_kind_is_told(name: str, answer: str) -> None:
    check = open_check()
    kind = {**TRAINED, **UNTRAINED}[name]
    rule = {"id": kind.rule, **kind.settings(kind.values[0])}
    prompt = LanguagePrompt(text="Tell me.", kinds=(name,), constraints=json.dumps([rule]))
    broken = "Well, The 16th of its kind goes On, the way that you and I, " * 3
    assert truth_of(check, prompt, answer) == 1
    assert truth_of(check, prompt, broken) == 0


def test_all_kinds_are_tried_above() -> None:
    assert set(KEPT) == {*TRAINED, *UNTRAINED}
    assert not TRAINED.keys() & UNTRAINED.keys()
