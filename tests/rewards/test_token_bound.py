"""A text that cannot fit is known unread, and none that fits is refused."""

import random
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from expo_ray.errors import TableError
from expo_ray.rewards.pretrained import ChatTokenizer
from expo_ray.rewards.token_bound import TooLongError, max_chars_per_token
from tests.pico import pico_tokenizer

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())


def byte_level(**parts: Any) -> PreTrainedTokenizerFast:
    """Byte-level BPE whose longest token is eight letters long."""
    tokens = [*ALPHABET, "aa", "aaaa", "aaaaaaaa"]
    merges = [("a", "a"), ("aa", "aa"), ("aaaa", "aaaa")]
    tokenizer = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def test_the_bound_holds_and_is_reached() -> None:
    tokenizer = byte_level()
    assert max_chars_per_token(tokenizer) == 8
    assert len(tokenizer("a" * 8000).input_ids) == 1000
    composing = byte_level(normalizer=normalizers.NFC())
    bound = max_chars_per_token(composing)
    assert bound is not None
    draw = random.Random(1)
    for _ in range(200):
        text = "".join(draw.choices("a \u0301\u1100\u1161\u11a8\u03b1\u0313\u0345", k=50))
        assert len(text) <= bound * len(composing(text).input_ids)


@pytest.mark.parametrize(
    "tokenizer",
    [
        byte_level(normalizer=normalizers.Strip()),
        byte_level(normalizer=normalizers.Replace("aaaa", "b")),
        byte_level(pre_tokenizer=pre_tokenizers.WhitespaceSplit()),
        PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
        ),
    ],
)
def test_what_may_skip_text_has_no_bound(tokenizer: PreTrainedTokenizerFast) -> None:
    assert max_chars_per_token(tokenizer) is None


def test_a_chat_is_refused_only_for_what_its_template_leaves() -> None:
    tokenizer = pico_tokenizer()
    chat = [{"role": "user", "content": " " * 10_000 + "a"}]
    with pytest.raises(TooLongError):
        ChatTokenizer(tokenizer, where="m").ids(chat, max_tokens=100)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] | trim }}{% endfor %}"
    chats = ChatTokenizer(tokenizer, where="m")
    assert len(chats.ids(chat, max_tokens=100)) <= 2
    with pytest.raises(TooLongError):
        chats.text_ids("a" * 10_000, max_tokens=100)


def test_variables_of_the_template_are_heeded_and_others_refused() -> None:
    tokenizer = pico_tokenizer()
    tokenizer.chat_template = (
        "{% if thinks %}t{% endif %}{% for m in messages %}{{ m['content'] }}{{ eos_token }}"
        "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    chats = ChatTokenizer(tokenizer, where="m")
    chat = [{"role": "user", "content": "hello"}]
    plain = chats.ids(chat)
    assert len(chats.ids(chat, variables={"thinks": True})) == len(plain) + 1
    assert chats.ids(chat, continue_final_message=True) == plain[:-1]
    for wrong in ("thinking", "tools", "messages", "eos_token", "raise_exception", "tokenize"):
        with pytest.raises(TableError, match="no such variable"):
            chats.ids(chat, variables={wrong: 1})
