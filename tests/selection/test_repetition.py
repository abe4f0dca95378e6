from __future__ import annotations

import pytest

from expo_ray.selection.repetition import repeated_share


def test_share_of_repeated_sequences() -> None:
    assert repeated_share("") == 0
    assert repeated_share("one two three four") == 0
    assert repeated_share("one two three four five six") == 0
    # Five sequences of four words, of which the last repeats the first.
    assert repeated_share("a b c d a b c d") == pytest.approx(1 / 5)
    assert repeated_share("no " * 20) == pytest.approx(16 / 17)
