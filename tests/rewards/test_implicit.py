import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from expo_ray.errors import ConfigError
from expo_ray.rewards import batch_spread, load_reward_model
from expo_ray.tables import Message
from tests.thinking_model import PREFILLED

CHATS = [
    [
        Message(role="user", content="Hi"),
        Message(role="assistant", content="first"),
        Message(role="user", content="more"),
        Message(role="assistant", content="words " * repeats),
    ]
    for repeats in (1, 8, 3)
]


def log_prob_of_last_turn(folder: Path, chat: list[Message]) -> float:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = tokenizer.apply_chat_template(chat, tokenize=False)
    opening = tokenizer.apply_chat_template(chat[:-1], tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, return_tensors="pt").input_ids
    with torch.no_grad():
        log_probs = model(ids).logits[0].log_softmax(dim=-1)
    start = len(tokenizer(opening).input_ids)
    return sum(float(log_probs[t - 1, ids[0, t]]) for t in range(start, ids.shape[1]))


def answer_ratio(pair: tuple[Path, Path], chat: list[Message]) -> float:
    """The log-ratio of the answer behind the first and the last 255 tokens of the chat."""
    tokenizer = AutoTokenizer.from_pretrained(pair[1])
    ids = tokenizer(tokenizer.apply_chat_template(chat, tokenize=False)).input_ids
    read = torch.tensor([[ids[0], *ids[-255:]]])
    num_answered = len(tokenizer(chat[-1]["content"]).input_ids) + 1
    sums = []
    for folder in pair:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        with torch.no_grad():
            log_probs = model(read).logits[0, :-1].log_softmax(dim=-1)
        chosen = log_probs.gather(1, read[0, 1:, None])[:, 0]
        sums.append(float(chosen[-num_answered:].sum()))
    return sums[1] - sums[0]


def test_implicit_reward_is_the_log_ratio_of_the_last_turn(pico_pair: tuple[Path, Path]) -> None:
    initial, aligned = pico_pair
    model = load_reward_model("implicit:beta=0.5", initial=str(initial), aligned=str(aligned))
    expected = [
        0.5 * (log_prob_of_last_turn(aligned, chat) - log_prob_of_last_turn(initial, chat))
        for chat in CHATS
    ]
    rewards = [score.reward for score in model.score(CHATS)]
    assert rewards == pytest.approx(expected, abs=1e-4)
    assert all(abs(reward) > 1e-3 for reward in expected), "the pair must differ"
    assert batch_spread(model, CHATS) < 1e-4
    assert model.name == "implicit:beta=0.5"

    twins = load_reward_model("implicit:beta=1", initial=str(aligned), aligned=str(aligned))
    assert [score.reward for score in twins.score(CHATS)] == [0.0, 0.0, 0.0]


def test_the_pair_is_needed_and_long_chats_have_no_reward(pico_pair: tuple[Path, Path]) -> None:
    initial, aligned = map(str, pico_pair)
    with pytest.raises(ConfigError, match="pair"):
        load_reward_model("implicit:beta=0.5", aligned=aligned)
    model = load_reward_model("implicit:beta=0.5", initial=initial, aligned=aligned)
    chat = [Message(role="user", content="x"), Message(role="assistant", content="y" * 300)]
    [score] = model.score([chat])
    assert (score.reward, score.truncated) == (None, True)

    cutting = load_reward_model(
        "implicit:beta=0.5", initial=initial, aligned=aligned, truncate=True
    )
    longest = "z" * 100
    chats = [
        [Message(role="user", content="x" * count), Message(role="assistant", content=longest)]
        for count in (300, 250)
    ]
    one, other = cutting.score(chats)
    assert one.truncated and other.truncated
    # What is read of both is the same: the answer and the end of the prompt.
    assert one.reward == pytest.approx(other.reward, abs=1e-5)
    assert one.reward == pytest.approx(0.5 * answer_ratio(pico_pair, chats[0]), abs=1e-4)


def test_a_thought_that_the_template_opens_is_no_part_of_the_answer(
    pico_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    plain = load_reward_model(
        "implicit:beta=0.5", initial=str(pico_pair[0]), aligned=str(pico_pair[1])
    )
    pair = [Path(shutil.copytree(side, tmp_path / side.name)) for side in pico_pair]
    for side in pair:
        (side / "chat_template.jinja").write_text(PREFILLED)
    model = load_reward_model("implicit:beta=0.5", initial=str(pair[0]), aligned=str(pair[1]))
    rewards = [score.reward for score in model.score(CHATS)]
    assert rewards == [score.reward for score in plain.score(CHATS)]
    assert None not in rewards
