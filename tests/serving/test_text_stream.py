import pytest
from hypothesis import given
from hypothesis import strategies as st

from expo_ray.serving.text_stream import TextStream
from tests.pico import pico_tokenizer

TOKENIZER = pico_tokenizer()


def pieces(text: str, stop: tuple[str, ...] = ()) -> tuple[list[str], bool]:
    stream = TextStream(TOKENIZER, stop)
    out = []
    for token in TOKENIZER(text).input_ids:
        out.append(stream.push(token))
        if stream.stopped:
            return out, True
    return [*out, stream.finish()], False


@given(text=st.text(max_size=30))
def test_the_pieces_join_to_the_text(text: str) -> None:
    for special in ("<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>"):
        text = text.replace(special, "")
    joined = "".join(pieces(text)[0])
    assert joined == TOKENIZER.decode(TOKENIZER(text).input_ids, skip_special_tokens=True)


def test_a_character_of_several_tokens_comes_whole() -> None:
    assert [piece for piece in pieces("a\u20acb")[0] if piece] == ["a", "\u20ac", "b"]


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("one STOP two", ("STOP",), "one "),
        ("one STO two", ("STOP",), "one STO two"),
        ("one ST", ("STOP",), "one ST"),
        ("abcabd", ("abd",), "abc"),
        ("xyz", ("z", "yz"), "x"),
    ],
)
def test_stop_texts_and_what_follows_are_left_out(
    text: str, stop: tuple[str, ...], expected: str
) -> None:
    out, stopped = pieces(text, stop)
    assert "".join(out) == expected
    assert stopped == (expected != text)
