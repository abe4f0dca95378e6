"""Training data: seeded, disjoint, labelled with noise. The tokenizer that is made from it."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from expo_ray.lab.data import Purpose, draw_example, draw_pair, eval_prompts, requests_for
from expo_ray.lab.models import train_tokenizer
from expo_ray.lab.settings import LabSettings
from expo_ray.lab.task import all_requests, truth_reward

PURPOSES: tuple[Purpose, ...] = (
    "evaluation",
    "initial",
    "aligned",
    "reward_model",
    "guard_reward_model",
)


@pytest.mark.parametrize("num_eval_prompts", [1, 300, 720])
def test_no_request_serves_two_purposes(num_eval_prompts: int) -> None:
    settings = LabSettings(num_eval_prompts=num_eval_prompts)
    dealt = {purpose: set(requests_for(settings, purpose)) for purpose in PURPOSES}
    for first, second in combinations(PURPOSES, 2):
        assert not dealt[first] & dealt[second]
    assert set().union(*dealt.values()) == set(all_requests())
    assert all(dealt.values())


def test_evaluation_prompts_are_distinct_and_follow_the_seed() -> None:
    prompts = eval_prompts(LabSettings(seed=0))
    assert len(set(prompts)) == len(prompts) == 300
    assert prompts == eval_prompts(LabSettings(seed=0))
    assert set(prompts) != set(eval_prompts(LabSettings(seed=1)))


def test_pairs_follow_the_generator() -> None:
    requests = requests_for(LabSettings(), "aligned")

    def draw(seed: int) -> list[object]:
        rng = np.random.default_rng(seed)
        return [draw_pair(rng, requests, damaged_share=0.3, near_share=0.3) for _ in range(50)]

    assert draw(5) == draw(5)
    assert draw(5) != draw(6)


@pytest.mark.parametrize("shares", [{}, {"damaged_share": 1.0}, {"near_share": 1.0}])
def test_labels_are_noisy_and_say_so(shares: dict[str, float]) -> None:
    rng = np.random.default_rng(0)
    pairs = [draw_pair(rng, requests_for(LabSettings(), "aligned"), **shares) for _ in range(1000)]
    for pair in pairs:
        chosen = truth_reward(pair.messages(), pair.chosen)
        rejected = truth_reward(pair.messages(), pair.rejected)
        assert chosen != rejected
        assert pair.agrees == (chosen > rejected)
    assert 0.9 < np.mean([pair.agrees for pair in pairs]) < 1


def test_answers_are_of_mixed_quality() -> None:
    rng = np.random.default_rng(0)
    examples = [draw_example(rng, requests_for(LabSettings(), "initial")) for _ in range(1000)]
    scores = [truth_reward([{"role": "user", "content": p}], a) for p, a in examples]
    assert max(scores) == 7
    assert min(scores) < 0
    assert 1 < np.mean(scores) < 5


def test_digest_covers_every_setting() -> None:
    base = LabSettings()
    assert base.digest() == LabSettings().digest()
    changed = {
        "guard_reward_model": False,
        "vocab_size": 512,
        "hidden_size": 64,
        "guard_hidden_size": 64,
    }
    for name in LabSettings.model_fields:
        value = changed.get(name, getattr(base, name) / 2 if "rate" in name else None)
        if value is None:
            value = type(getattr(base, name))(getattr(base, name) * 0.5) or 1
        other = LabSettings.model_validate({**base.model_dump(), name: value})
        assert other.digest() != base.digest(), name


@pytest.fixture(scope="module")
def tokenizer() -> object:
    rng = np.random.default_rng(0)
    requests = requests_for(LabSettings(), "initial")
    examples = [draw_example(rng, requests) for _ in range(2000)]
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
