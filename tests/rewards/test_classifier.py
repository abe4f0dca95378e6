import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, LlamaForCausalLM
from transformers.models.llama import LlamaForSequenceClassification
from transformers.models.roberta import RobertaConfig, RobertaForSequenceClassification

from expo_ray.checkpoints import open_checkpoint, weights_digest
from expo_ray.errors import CheckpointError
from expo_ray.rewards import batch_spread, load_reward_model
from expo_ray.rewards.pretrained import ChatTokenizer
from expo_ray.tables import Message
from tests.pico import pico_config, pico_tokenizer, save_model

CHATS = [
    [Message(role="user", content="Hi"), Message(role="assistant", content="answer " * repeats)]
    for repeats in (1, 25, 0, 3, 12, 1)
]


def unbatched(folder: Path, chat: list[Message]) -> float:
    """What transformers alone makes of a chat."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer.apply_chat_template(chat, return_tensors="pt", return_dict=True)["input_ids"]
    with torch.no_grad():
        return float(model(input_ids=ids).logits[0, 0])


def save_classifier(folder: Path, **overrides: object) -> Path:
    torch.manual_seed(3)
    settings = {"num_labels": 1, "tie_word_embeddings": False, **overrides}
    return save_model(LlamaForSequenceClassification(pico_config(**settings)), folder)


def test_rewards_equal_an_unbatched_forward(pico_reward_model: Path) -> None:
    model = load_reward_model(str(pico_reward_model))
    scores = model.score(CHATS)
    expected = [unbatched(pico_reward_model, chat) for chat in CHATS]
    assert [score.reward for score in scores] == pytest.approx(expected, abs=1e-4)
    assert len({round(reward, 4) for reward in expected}) == 5, "the chats must differ"
    assert scores[0].reward == pytest.approx(scores[5].reward, abs=1e-5)
    assert all(score.error is None and not score.truncated for score in scores)
    assert batch_spread(model, CHATS) < 1e-4
    assert model.revision == weights_digest(open_checkpoint(pico_reward_model))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_another_dtype_only_weights_are_rounded(
    pico_reward_model: Path, dtype: torch.dtype
) -> None:
    """Rounded frequencies of rotary positions would turn late tokens by a fraction of a circle."""
    plain = AutoModelForSequenceClassification.from_pretrained(pico_reward_model, dtype=dtype)
    ids = AutoTokenizer.from_pretrained(pico_reward_model).apply_chat_template(
        CHATS[1], return_tensors="pt", return_dict=True
    )["input_ids"]
    with torch.inference_mode():
        last_h = plain.model(input_ids=ids).last_hidden_state[0, -1].float()
        expected = float(plain.score.float()(last_h))
    [score] = load_reward_model(
        str(pico_reward_model), dtype=str(dtype).removeprefix("torch.")
    ).score([CHATS[1]])
    assert score.reward == expected


@pytest.mark.parametrize("pad_token_id", [None, 2])
def test_no_pad_token_or_eos_as_pad_token(tmp_path: Path, pad_token_id: int | None) -> None:
    folder = save_classifier(tmp_path / "rm", pad_token_id=pad_token_id)
    model = load_reward_model(str(folder))
    expected = [unbatched(folder, chat) for chat in CHATS]
    assert [s.reward for s in model.score(CHATS)] == pytest.approx(expected, abs=1e-4)


def test_a_chat_that_is_too_long_has_no_reward(pico_reward_model: Path) -> None:
    long_chat = [Message(role="user", content="x"), Message(role="assistant", content="y" * 260)]
    short, too_long = load_reward_model(str(pico_reward_model)).score([CHATS[0], long_chat])
    assert short.reward is not None
    assert (too_long.reward, too_long.truncated) == (None, True)
    assert too_long.error is not None
    assert str(too_long.tokens) in too_long.error
    assert "256" in too_long.error


def test_a_long_chat_is_cut_at_its_beginning_where_that_is_asked_for(
    pico_reward_model: Path,
) -> None:
    model = load_reward_model(str(pico_reward_model), truncate=True)
    usual = load_reward_model(str(pico_reward_model))
    assert model.settings != usual.settings
    chat = [Message(role="user", content="x" * 90), Message(role="assistant", content="y" * 200)]
    short, cut = model.score([CHATS[0], chat])
    assert short == usual.score([CHATS[0]])[0]
    ids = ChatTokenizer(pico_tokenizer(), where="here").ids(chat)
    read = [ids[0], *ids[len(ids) - 255 :]]
    whole = AutoModelForSequenceClassification.from_pretrained(pico_reward_model).eval()
    with torch.no_grad():
        expected = float(whole(input_ids=torch.tensor([read])).logits[0, 0])
    assert cut.reward == pytest.approx(expected, abs=1e-4)
    assert (cut.tokens, cut.truncated, cut.error) == (256, True, None)


def test_a_token_without_an_embedding_costs_its_own_row_alone(
    pico_reward_model: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(pico_reward_model, tmp_path / "rm")
    tokenizer = pico_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})  # as fine-tuning scripts do
    tokenizer.save_pretrained(folder)
    bad = [*CHATS[0][:-1], Message(role="assistant", content="see [PAD] here")]
    one, unknown, other = load_reward_model(str(folder)).score([CHATS[0], bad, CHATS[1]])
    assert None not in (one.reward, other.reward)
    assert unknown.reward is None
    assert "262" in str(unknown.error)


def test_a_template_that_fails_on_a_chat_costs_its_own_row_alone(
    pico_reward_model: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(pico_reward_model, tmp_path / "rm")
    tokenizer = pico_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['content'] == 'odd' %}{{ 'a' + 1 }}{% endif %}"
        "{{ m['content'] }}{% endfor %}"
    )
    tokenizer.save_pretrained(folder)
    odd = [*CHATS[0][:-1], Message(role="assistant", content="odd")]
    fine, failed = load_reward_model(str(folder)).score([CHATS[0], odd])
    assert fine.reward is not None
    assert failed.reward is None
    assert "template" in str(failed.error)


def test_positions_that_begin_behind_the_pad_token_shorten_what_is_read(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=262,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=40,
        num_labels=1,
        pad_token_id=0,
    )
    folder = save_model(RobertaForSequenceClassification(config), tmp_path / "rm")
    model = load_reward_model(str(folder))
    assert model.max_tokens == 39
    chats = [
        [Message(role="user", content="x"), Message(role="assistant", content="y" * count)]
        for count in (33, 34, 2)
    ]
    full, too_long, short = model.score(chats)
    assert (full.tokens, too_long.tokens) == (39, 40)
    assert None not in (full.reward, short.reward)
    assert (too_long.reward, too_long.truncated) == (None, True)


def test_a_head_that_is_not_in_the_checkpoint_is_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    folder = save_model(LlamaForCausalLM(pico_config()), tmp_path / "lm")
    with pytest.raises(CheckpointError, match="one label"):
        load_reward_model(str(folder))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "id2label": {"0": "LABEL_0"}}))
    with pytest.raises(CheckpointError, match=r"score\.weight"):
        load_reward_model(str(folder))


def test_two_labels_and_a_wrong_pad_token_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="label"):
        load_reward_model(str(save_classifier(tmp_path / "two", num_labels=3)))
    folder = save_classifier(tmp_path / "pad", pad_token_id=None)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "pad_token_id": 262}))
    with pytest.raises(CheckpointError, match="pad token"):
        load_reward_model(str(folder))
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load_reward_model(str(tmp_path / "none"))


def test_weights_that_give_no_finite_reward_give_an_error(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(pico_config(num_labels=1, tie_word_embeddings=False))
    with torch.no_grad():
        model.score.weight.fill_(float("inf"))
    [score] = load_reward_model(str(save_model(model, tmp_path / "rm"))).score(CHATS[:1])
    assert score.reward is None
    assert score.error is not None


@pytest.mark.parametrize("num_in_template", [0, 1, 2])
@pytest.mark.parametrize("tokenizer_adds_one", [False, True])
def test_exactly_one_bos(num_in_template: int, tokenizer_adds_one: bool) -> None:
    tokenizer = pico_tokenizer()
    if tokenizer_adds_one:
        from tokenizers.processors import TemplateProcessing

        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 1)]
        )
    template = "{{ messages[0]['content'] }}"
    tokenizer.chat_template = "{{ bos_token }}" * num_in_template + template
    ids = ChatTokenizer(tokenizer, where="here").ids([Message(role="user", content="ab")])
    wanted = 1 if num_in_template or tokenizer_adds_one else 0
    assert ids.count(1) == wanted
    assert tokenizer.decode(ids[wanted:]) == "ab"
    tokenizer.chat_template = None
    with pytest.raises(CheckpointError, match="chat template"):
        ChatTokenizer(tokenizer, where="here").ids([Message(role="user", content="ab")])
