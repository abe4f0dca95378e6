"""Blocks of a tensor, done by a pool."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from expo_ray.extrapolation.shards.engine import _spread_over


def test_few_blocks_of_a_tensor_wait_however_many_it_has() -> None:
    taken: list[int] = []

    def blocks() -> Iterator[int]:
        for number in range(100):
            taken.append(number)
            yield number

    with ThreadPoolExecutor(2) as pool:
        for index, found in enumerate(_spread_over(pool, 8)(lambda n: n * n, blocks())):
            assert found == index * index
            assert len(taken) <= index + 9
        assert len(taken) == 100


def test_the_first_error_in_order_is_the_one_that_is_raised() -> None:
    def fail(number: int) -> int:
        raise ValueError(number)

    with ThreadPoolExecutor(2) as pool, pytest.raises(ValueError, match=r"^0$"):
        list(_spread_over(pool, 8)(fail, range(100)))
