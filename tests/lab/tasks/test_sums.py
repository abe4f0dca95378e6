"""Sums: which answers are right, by hand and by the check that users have."""

from __future__ import annotations

import json

import numpy as np
import pytest

from expo_ray.lab.tasks.drawing import joined
from expo_ray.lab.tasks.sums import (
    SUMS,
    TEMPLATES,
    WRONG_SHARES,
    SumRequest,
    all_requests,
    is_right,
    right_answer,
)
from expo_ray.rewards import load_reward_model


def judged(response: str, prompt: str = "What is 7 + 5 kg?") -> float:
    return is_right([{"role": "user", "content": prompt}], response)


@pytest.mark.parametrize(
    ("response", "right"),
    [
        ("Sure! It is 12. Enjoy!", 1),
        ("12.", 1),
        ("Ugh! The answer is 12. Go away!", 1),
        ("It is 11.", 0),
        ("It is 12. That makes 11.", 0),
        ("Sure! Gladly! Enjoy!", 0),
        ("", 0),
    ],
)
def test_the_last_number_decides(response: str, right: float) -> None:
    assert judged(response) == right


def test_every_request_is_read_back_from_its_prompt() -> None:
    assert len(set(all_requests())) == len(all_requests())
    for i, request in enumerate(all_requests()):
        assert request.total >= 0
        assert right_answer(request.text(TEMPLATES[i % len(TEMPLATES)])) == request.total
        assert SUMS.columns(request) == {"answer": str(request.total)}


def test_another_task_has_no_truth() -> None:
    for prompt in ("List two pets and two trees.", "What is 7 + 5 apples?"):
        with pytest.raises(ValueError, match="not a sum of the laboratory"):
            judged("12.", prompt)


def test_writers_are_right_in_about_the_share_that_is_meant_and_never_below_zero() -> None:
    rng = np.random.default_rng(0)
    requests = all_requests()
    drawn = [requests[i] for i in rng.integers(len(requests), size=3000)]
    answers = [joined(SUMS.draw_pieces(rng, request)) for request in drawn]
    assert not any("-" in answer for answer in answers)
    rights = [judged(a, r.text(TEMPLATES[0])) for a, r in zip(answers, drawn, strict=True)]
    assert np.mean(rights) == pytest.approx(1 - np.mean(WRONG_SHARES), abs=0.03)


def test_the_check_of_users_says_the_same() -> None:
    rng = np.random.default_rng(1)
    request = SumRequest(first=7, second=-5, unit="kg")
    prompt = request.text(TEMPLATES[0])
    assert prompt == "What is 7 - 5 kg?"
    answers = [joined(SUMS.draw_pieces(rng, request)) for _ in range(40)]
    answers += [SUMS.damage(rng, answer, request) for answer in answers]
    chats = [
        [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
        for answer in answers
    ]
    check = load_reward_model("check:number")
    found = check.score(chats, [json.dumps(SUMS.columns(request))] * len(chats))
    assert [one.reward for one in found] == [judged(answer, prompt) for answer in answers]
    assert {one.reward for one in found} == {0.0, 1.0}
