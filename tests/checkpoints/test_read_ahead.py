from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from expo_ray.checkpoints.read_ahead import read_ahead


def test_one_item_is_made_while_the_caller_holds_another() -> None:
    made, asked = [], threading.Event()

    def items() -> Iterator[int]:
        for i in range(4):
            made.append(i)
            if i == 1:
                asked.set()
            yield i

    ahead = read_ahead(items())
    assert next(ahead) == 0
    assert asked.wait(10)
    assert made == [0, 1]
    assert list(ahead) == [1, 2, 3]


def test_an_error_comes_where_its_item_would() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("broken")

    ahead = read_ahead(items())
    assert next(ahead) == 1
    with pytest.raises(ValueError, match="broken"):
        next(ahead)


def test_leaving_early_ends_the_iterator() -> None:
    closed = []

    def items() -> Iterator[int]:
        try:
            yield from range(100)
        finally:
            closed.append(True)

    ahead = read_ahead(items())
    next(ahead)
    del ahead
    assert closed == [True]
