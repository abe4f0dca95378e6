from __future__ import annotations

import json
from pathlib import Path

import pytest

from expo_ray.selection.repetition import repeated_share
from tests import samples


def test_share_of_repeated_sequences() -> None:
    assert repeated_share("") == 0
    assert repeated_share("one two three four") == 0
    assert repeated_share("one two three four five six") == 0
    # Five sequences of four words, of which the last repeats the first.
    assert repeated_share("a b c d a b c d") == pytest.approx(1 / 5)
    assert repeated_share("no " * 20) == pytest.approx(16 / 17)


# "The weather is very fine today, let us walk in the park."
CHINESE = (
    "\u4eca\u5929\u7684\u5929\u6c14\u975e\u5e38\u597d\uff0c\u6211\u4eec\u4e00\u8d77\u53bb"
    "\u516c\u56ed\u6563\u6b65\u5427\u3002"
)
JAPANESE = (
    "\u4eca\u65e5\u306f\u3068\u3066\u3082\u5929\u6c17\u304c\u826f\u3044\u306e\u3067\u3001"
    "\u307f\u3093\u306a\u3067\u516c\u5712\u3078\u6563\u6b69\u306b\u884c\u304d\u307e\u3057"
    "\u3087\u3046\u3002"
)
THAI = (
    "\u0e27\u0e31\u0e19\u0e19\u0e35\u0e49\u0e2d\u0e32\u0e01\u0e32\u0e28\u0e14\u0e35\u0e21"
    "\u0e32\u0e01 \u0e40\u0e23\u0e32\u0e44\u0e1b\u0e40\u0e14\u0e34\u0e19\u0e40\u0e25\u0e48"
    "\u0e19\u0e17\u0e35\u0e48\u0e2a\u0e27\u0e19\u0e2a\u0e32\u0e18\u0e32\u0e23\u0e13\u0e30"
    "\u0e01\u0e31\u0e19\u0e40\u0e16\u0e2d\u0e30"
)


@pytest.mark.parametrize("sentence", [CHINESE, JAPANESE, THAI])
def test_a_loop_needs_no_spaces(sentence: str) -> None:
    assert repeated_share(sentence) < 0.05
    assert repeated_share(sentence * 10) > 0.8
    # A list has short lines, which are no words either.
    assert repeated_share("\n".join(f"{i}. {sentence[:9]}" for i in range(20))) > 0.2


def test_a_loop_of_one_word_or_sign_is_seen() -> None:
    assert repeated_share("ha" * 300) > 0.9
    assert repeated_share("The answer is simple: " + ")" * 600) > 0.9


def _by_words(text: str) -> float:
    words = text.split()
    found = [tuple(words[i : i + 4]) for i in range(len(words) - 3)]
    return 1 - len(set(found)) / len(found) if len(found) > 1 else 0.0


def test_words_of_spaced_scripts_count_as_ever() -> None:
    for row in samples.outputs(100):
        assert repeated_share(row["output"]) == _by_words(row["output"])


def test_words_of_published_responses_count_as_ever(published_data: Path) -> None:
    """The guard's threshold was set on these values, so no change may move them."""
    texts = [
        row["output"]
        for path in sorted((published_data / "alpaca_eval" / "outputs").glob("*.json"))
        for row in json.loads(path.read_text("utf-8"))
    ]
    assert len(texts) > 4000
    num_moved = sum(repeated_share(text) != _by_words(text) for text in texts)
    assert num_moved <= 2, "one response is Japanese, one half Chinese"
