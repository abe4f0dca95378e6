"""Multi-objective and pairwise reward models, against unbatched references computed here."""

from pathlib import Path

import pytest
import torch
from torch.nn.functional import linear
from transformers import AutoConfig, AutoTokenizer, DebertaV2Model, LlamaModel

from expo_ray.errors import CheckpointError
from expo_ray.rewards import batch_spread, load_reward_model, pin_reward_model
from expo_ray.rewards.spec import RewardModelSpec
from expo_ray.tables import Message
from tests.rewards.own_heads import (
    MARKERS,
    NUM_HIDDEN,
    TEMPERATURE,
    save_gated,
    save_pairwise,
)

ANSWERS = ["word " * repeats for repeats in (1, 20, 4, 9)]
CHATS = [
    [
        Message(role="user", content=f"Question {i}"),
        Message(role="assistant", content="first"),
        Message(role="user", content="and more"),
        Message(role="assistant", content=answer),
    ]
    for i, answer in enumerate(ANSWERS)
]


def gated_reference(folder: Path, tensors: dict[str, torch.Tensor], chat: list[Message]) -> float:
    """The published computation, one chat at a time."""
    backbone = LlamaModel(AutoConfig.from_pretrained(folder)).eval()
    backbone.load_state_dict(
        {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
    )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer.apply_chat_template(chat, return_tensors="pt", return_dict=True)["input_ids"]
    # The gates look at the end of the last turn before the answer: "<eot>assistant" in ArmoRM.
    opening = tokenizer.convert_tokens_to_ids(["</s>", "<|assistant|>"])
    row = ids[0].tolist()
    gate = max(i for i in range(len(row)) if row[i : i + 2] == opening)
    with torch.no_grad():
        hidden = backbone(input_ids=ids).last_hidden_state[0]
        gates = hidden[gate]
        for i in range(NUM_HIDDEN + 1):
            gates = (
                linear(gates, tensors[f"gating.layers.{i}.weight"])
                + tensors[f"gating.layers.{i}.bias"]
            )
            gates = gates.relu() if i < NUM_HIDDEN else gates
        gates = (gates / TEMPERATURE).softmax(dim=0) * tensors["gating.logit_scale"][0]
        objectives = linear(hidden[-1], tensors["regression_layer.weight"])
        return float((gates * (objectives @ tensors["reward_transform_matrix"])).sum())


def compare(folder: Path, tensors: dict[str, torch.Tensor], texts: list[str]) -> float:
    """The published comparison of two candidates, in one order."""
    backbone = DebertaV2Model(AutoConfig.from_pretrained(folder)).eval()
    prefix = "pretrained_model."
    backbone.load_state_dict(
        {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor(
        [[i for m, t in zip(MARKERS, texts, strict=True) for i in tokenizer(m + t).input_ids]]
    )

    def head(candidate: torch.Tensor) -> torch.Tensor:
        joined = torch.cat([hidden[ids[0] == marker_ids[0]][0], candidate])
        inner = linear(joined, tensors["head_layer.1.weight"], tensors["head_layer.1.bias"]).tanh()
        return linear(inner, tensors["head_layer.4.weight"], tensors["head_layer.4.bias"])

    marker_ids = tokenizer.convert_tokens_to_ids(MARKERS)
    with torch.no_grad():
        hidden = backbone(input_ids=ids).last_hidden_state[0]
        left, right = (head(hidden[ids[0] == marker][0]) for marker in marker_ids[1:])
        return float((left - right).mean())


def test_gated_rewards_equal_the_published_computation(tmp_path: Path) -> None:
    folder, tensors = save_gated(tmp_path / "rm")
    model = load_reward_model(str(folder))
    expected = [gated_reference(folder, tensors, chat) for chat in CHATS]
    assert len({round(reward, 3) for reward in expected}) == len(CHATS), "the chats must differ"
    assert [score.reward for score in model.score(CHATS)] == pytest.approx(expected, abs=1e-4)
    assert batch_spread(model, CHATS) < 1e-4
    pinned, *_ = pin_reward_model(RewardModelSpec.parse(str(folder)), initial=None, aligned=None)
    assert pinned.model == str(folder)


@pytest.mark.parametrize("missing", ["regression_layer.weight", "gating.layers.1.bias"])
def test_a_gated_head_that_is_not_whole_is_refused(tmp_path: Path, missing: str) -> None:
    folder, _ = save_gated(tmp_path / "rm", leave_out=missing)
    with pytest.raises(CheckpointError, match=missing):
        load_reward_model(str(folder))


def test_pairwise_rewards_read_both_orders(tmp_path: Path) -> None:
    folder, tensors = save_pairwise(tmp_path / "rm")
    model = load_reward_model(str(folder))
    assert model.needs_reference
    references = ["another answer", "short", ANSWERS[2], "yet another " * 5]
    source = "USER: Question {}\nASSISTANT: first\nUSER: and more"
    expected = [
        (
            compare(folder, tensors, [source.format(i), answer, reference])
            - compare(folder, tensors, [source.format(i), reference, answer])
        )
        / 2
        for i, (answer, reference) in enumerate(zip(ANSWERS, references, strict=True))
    ]
    rewards = [score.reward for score in model.score(CHATS, references)]
    assert rewards == pytest.approx(expected, abs=1e-4)
    assert all(abs(reward) > 1e-3 for i, reward in enumerate(expected) if i != 2)
    assert rewards[2] == 0.0
    swapped = [[*CHATS[0][:-1], Message(role="assistant", content=references[0])]]
    assert model.score(swapped, [ANSWERS[0]])[0].reward == pytest.approx(-expected[0], abs=1e-5)
    single = [Message(role="user", content="Why?"), Message(role="assistant", content="So.")]
    [score] = model.score([single], ["No."])
    one, other = (
        compare(folder, tensors, ["Why?", *texts]) for texts in (["So.", "No."], ["No.", "So."])
    )
    assert score.reward == pytest.approx((one - other) / 2, abs=1e-4)


def test_what_a_pairwise_model_cannot_compare_has_no_reward(tmp_path: Path) -> None:
    model = load_reward_model(str(save_pairwise(tmp_path / "rm")[0]))
    trick = [Message(role="user", content="a"), Message(role="assistant", content=MARKERS[1])]
    long = [Message(role="user", content="a"), Message(role="assistant", content="x" * 2100)]
    fine, without, tricked, too_long = model.score(
        [CHATS[0], CHATS[0], trick, long], ["b", None, "b", "b"]
    )
    assert fine.reward is not None
    assert [s.reward for s in (without, tricked, too_long)] == [None, None, None]
    assert [bool(s.error) for s in (without, tricked, too_long)] == [True, True, True]
    assert (too_long.truncated, tricked.truncated) == (True, False)
    assert model.score([CHATS[0]])[0].reward is None


def test_what_is_too_long_to_compare_is_cut_where_that_is_asked_for(tmp_path: Path) -> None:
    folder, tensors = save_pairwise(tmp_path / "rm")
    model = load_reward_model(str(folder), truncate=True)
    answer = "".join(chr(97 + i % 26) for i in range(1000))
    prompt = "p" * 2000
    chat = [Message(role="user", content=prompt), Message(role="assistant", content=answer)]
    [score] = model.score([chat], ["short"])
    # Two tokens stand before each text and one behind it.
    kept = [prompt[-1221:], answer[-409:], "short"]
    one, other = compare(folder, tensors, kept), compare(folder, tensors, [kept[0], *kept[:0:-1]])
    assert score.reward == pytest.approx((one - other) / 2, abs=1e-4)
    assert score.truncated

    gated = load_reward_model(str(save_gated(tmp_path / "gated")[0]), truncate=True)
    long = [*CHATS[0][:-1], Message(role="assistant", content="x" * 400)]
    for chats in ([long], [[Message(role="user", content="y" * 400), *CHATS[0][1:]]]):
        [score] = gated.score(chats)
        assert score.reward is not None
        assert score.truncated


def test_a_tokenizer_without_the_markers_is_refused(tmp_path: Path) -> None:
    from tests.pico import pico_tokenizer

    folder, _ = save_pairwise(tmp_path / "rm")
    pico_tokenizer().save_pretrained(folder)
    with pytest.raises(CheckpointError, match="markers"):
        load_reward_model(str(folder))
