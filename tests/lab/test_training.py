"""Tiny trainings of the sums: DPO and GRPO from one initial model, with checkpoints on the way."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from expo_ray.errors import EvaluationError
from expo_ray.lab import LabSettings
from expo_ray.lab.reinforcement import GrpoSettings, checked_reward, train_reinforced
from expo_ray.lab.training import measure_truth, train_aligned, train_initial

MICRO = LabSettings(
    seed=3,
    task="sums",
    num_eval_prompts=8,
    num_sft_examples=64,
    preference_fraction=0.01,
    dpo_batch_size=10,
    max_new_tokens=8,
)
GRPO = GrpoSettings(num_steps=4, batch_size=2, num_samples=2)
TRAININGS = {
    "dpo": (train_aligned, {}, {"num_pairs": 40}),
    "grpo": (train_reinforced, {"grpo": GRPO}, {"num_prompts": 8}),
}


def silent(num_done: int, total: int) -> None:
    """Take no notice of a step."""


@pytest.fixture(scope="module")
def initial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sums") / "initial"
    facts = train_initial(MICRO, folder, on_step=silent)
    assert 0 <= facts["mean_truth"] <= 1
    return folder


@pytest.mark.parametrize("name", TRAININGS)
def test_both_trainings_take_options_and_leave_checkpoints(
    initial: Path, tmp_path: Path, name: str
) -> None:
    train, more, told = TRAININGS[name]
    path = tmp_path / "path"
    options = {
        "output_dir": str(path),
        "save_strategy": "steps",
        "save_steps": 2,
        "save_only_model": True,
    }
    steps: list[tuple[int, int]] = []
    output = tmp_path / "aligned"
    facts = train(
        MICRO, initial, output, on_step=lambda *s: steps.append(s), options=options, **more
    )
    assert steps == [(i + 1, 4) for i in range(4)]
    assert sorted(p.name for p in path.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]
    assert facts["num_steps"] == 4
    assert facts.items() >= told.items()
    assert facts["mean_truth"] == measure_truth(MICRO, output)["mean_truth"]
    last = AutoModelForCausalLM.from_pretrained(path / "checkpoint-4").state_dict()
    aligned = AutoModelForCausalLM.from_pretrained(output).state_dict()
    assert all(aligned[name].equal(weight) for name, weight in last.items())


def test_the_reward_of_grpo_is_the_check_of_users() -> None:
    def said(text: str) -> list[dict[str, str]]:
        return [{"role": "assistant", "content": text}]

    chat = [{"role": "user", "content": "What is 7 + 5 kg?"}]
    with checked_reward(MICRO) as reward:
        rewards = reward([chat] * 3, [said("It is 12."), said("It is 11."), said("")], ["12"] * 3)
        assert rewards == [1, 0, 0]
        with pytest.raises(EvaluationError, match="check of a training is broken"):
            reward([chat], [said("It is 12.")], ["a dozen"])


def test_lists_are_rewarded_by_the_rule_of_their_truth() -> None:
    chat = [{"role": "user", "content": "List three fruits and two tools."}]
    said = [{"role": "assistant", "content": "three fruits: fig, pear, plum. two tools: axe, saw."}]
    with checked_reward(LabSettings(num_eval_prompts=8)) as reward:
        assert reward([chat, chat], [said, [{**said[0], "content": ""}]]) == [5, -2]
