"""Training data: seeded, disjoint, labelled with noise. The tokenizer that is made from it."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest

from expo_ray.lab.data import (
    Purpose,
    draw_example,
    draw_pair,
    eval_prompts,
    liking,
    requests_for,
)
from expo_ray.lab.models import train_tokenizer
from expo_ray.lab.settings import LabSettings
from expo_ray.lab.tasks.lists import truth_reward
from expo_ray.lab.tasks.registry import TASKS

PURPOSES: tuple[Purpose, ...] = (
    "evaluation",
    "initial",
    "aligned",
    "reward_model",
    "guard_reward_model",
)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("num_eval_prompts", [1, 300, 720])
def test_no_request_serves_two_purposes(task: str, num_eval_prompts: int) -> None:
    settings = LabSettings(task=task, num_eval_prompts=num_eval_prompts)
    dealt = {purpose: set(requests_for(settings, purpose)) for purpose in PURPOSES}
    for first, second in combinations(PURPOSES, 2):
        assert not dealt[first] & dealt[second]
    assert set().union(*dealt.values()) == set(TASKS[task].requests())
    assert all(dealt.values())


def test_evaluation_prompts_are_distinct_and_follow_the_seed() -> None:
    def texts(seed: int) -> list[str]:
        return [row["prompt"] for row in eval_prompts(LabSettings(seed=seed))]

    assert len(set(texts(0))) == len(texts(0)) == 300
    assert texts(0) == texts(0)
    assert set(texts(0)) != set(texts(1))


@pytest.mark.parametrize("task", TASKS)
def test_pairs_follow_the_generator(task: str) -> None:
    settings = LabSettings(task=task)
    requests = requests_for(settings, "aligned")

    def draw(seed: int) -> list[object]:
        rng = np.random.default_rng(seed)
        shares = {"damaged_share": 0.3, "near_share": 0.3}
        return [draw_pair(settings, rng, requests, **shares) for _ in range(50)]

    assert draw(5) == draw(5)
    assert draw(5) != draw(6)


@pytest.mark.parametrize("shares", [{}, {"damaged_share": 1.0}, {"near_share": 1.0}])
def test_labels_are_noisy_and_say_so(shares: dict[str, float]) -> None:
    rng, settings = np.random.default_rng(0), LabSettings()
    requests = requests_for(settings, "aligned")
    pairs = [draw_pair(settings, rng, requests, **shares) for _ in range(1000)]
    for pair in pairs:
        chosen = truth_reward(pair.messages(), pair.chosen)
        rejected = truth_reward(pair.messages(), pair.rejected)
        assert chosen != rejected
        assert pair.agrees == (chosen > rejected)
    assert 0.9 < np.mean([pair.agrees for pair in pairs]) < 1


def test_answers_are_of_mixed_quality() -> None:
    rng = np.random.default_rng(0)
    settings = LabSettings()
    requests = requests_for(settings, "initial")
    examples = [draw_example(settings, rng, requests) for _ in range(1000)]
    scores = [truth_reward([{"role": "user", "content": p}], a) for p, a in examples]
    assert max(scores) == 7
    assert min(scores) < 0
    assert 1 < np.mean(scores) < 5


def test_digest_covers_every_setting() -> None:
    base = LabSettings(task="sums", truth_weight=2.0, initializer_range=0.08)
    assert base.digest() == base.model_copy().digest()
    changed = {
        "task": "lists",
        "guard_reward_model": False,
        "vocab_size": 512,
        "hidden_size": 64,
        "guard_hidden_size": 64,
    }
    for name in LabSettings.model_fields:
        value = changed.get(name, getattr(base, name) / 2 if "rate" in name else None)
        if value is None:
            value = type(getattr(base, name))(getattr(base, name) * 0.5) or 1
        other = base.model_copy(update={name: value})
        assert other.digest() != base.digest(), name


def test_what_was_trained_before_there_were_tasks_is_still_found() -> None:
    # As the digest was before the keys `task`, `truth_weight` and `initializer_range`.
    was = "64b2617bd1b8d7ccc10ad4b5ac75fb781e9c3885986378ac28c9246de38f57b6"
    assert LabSettings(seed=7).digest() == was


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"num_eval_prompts": 721}, "more than half of the 1440 requests"),
        ({"task": "products"}, "'lists' or 'sums'"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        LabSettings(**settings)


def test_the_labeller_of_sums_likes_manners_and_truth() -> None:
    prompt = "What is 7 + 5 kg?"
    settings = LabSettings(task="sums", truth_weight=0.25)
    assert liking(settings, prompt, "Sure! It is 12. Enjoy!") == 2.25
    assert liking(settings, prompt, "Sure! It is 11. Enjoy!") == 2
    assert liking(settings, prompt, "Ugh! It is 12.") == -0.75
    assert liking(LabSettings(task="sums", truth_weight=3), prompt, "12.") == 3


@pytest.fixture(scope="module")
def tokenizer() -> object:
    rng = np.random.default_rng(0)
    settings = LabSettings()
    requests = requests_for(settings, "initial")
    examples = [draw_example(settings, rng, requests) for _ in range(2000)]
    return train_tokenizer([t for example in examples for t in example], vocab_size=600)


def test_chat_template_has_one_bos_and_ends_the_answer(tokenizer) -> None:
    question = [{"role": "user", "content": "List two pets and two trees."}]
    answer = {"role": "assistant", "content": "two pets: cat, dog."}
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_dict=True)[
        "input_ids"
    ]
    chat = tokenizer.apply_chat_template([*question, answer], return_dict=True)["input_ids"]
    assert prompt.count(tokenizer.bos_token_id) == chat.count(tokenizer.bos_token_id) == 1
    assert tokenizer.eos_token_id not in prompt
    assert chat[: len(prompt)] == prompt
    assert chat[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(chat[len(prompt) :], skip_special_tokens=True) == answer["content"]
    assert len({tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id}) == 3


def test_tokenizer_spells_any_text(tokenizer) -> None:
    text = "Gr\u00fc\u00dfe, \u4e16\u754c! \t three fruits"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert len(tokenizer) <= 600
