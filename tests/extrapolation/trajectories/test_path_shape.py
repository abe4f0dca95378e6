"""Sums over a path against plain NumPy, and the shapes of known paths."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from expo_ray.extrapolation.arithmetic.path_sums import (
    NonFiniteCheckpoint,
    PathSums,
    measure_path,
)
from expo_ray.extrapolation.trajectories.path_shape import (
    coordinates,
    path_shape,
    path_steps,
    rounding_share,
    squared_distance,
    total_of,
)
from tests.extrapolation.trajectories.paths import measured, synthetic_path

STEPS = (0.0, 10.0, 20.0, 40.0, 80.0, 90.0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_the_gram_matrix_is_that_of_the_stored_values(dtype: torch.dtype) -> None:
    stored = torch.from_numpy(synthetic_path("walk", STEPS, num_values=200_001)).to(dtype)
    sums = measure_path(list(stored))
    changes = stored.double().numpy()
    changes = changes - changes[0]
    expected = changes @ changes.T
    np.testing.assert_allclose(sums.gram, expected, rtol=0, atol=2e-7 * expected.max())
    moved = [int((a != b).sum()) for a, b in itertools.pairwise(stored)]
    assert sums.num_moved.tolist() == moved
    assert sums.num_elements == 200_001


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_expected_rounding_error_is_the_one_that_rounding_makes(dtype: torch.dtype) -> None:
    exact = np.random.default_rng(1).normal(size=(2, 100_000)) * [[1.0], [0.02]]
    stored = torch.from_numpy(exact).to(dtype)
    made = ((stored.double().numpy() - exact) ** 2).sum(axis=1)
    np.testing.assert_allclose(measure_path(list(stored)).rounding, made, rtol=0.02)


def test_parts_add_up_and_travel() -> None:
    stored = torch.from_numpy(synthetic_path("curve", STEPS)).bfloat16()
    whole = measure_path(list(stored))
    parts = PathSums(len(STEPS))
    for part in stored.tensor_split(3, dim=1):
        parts.add(PathSums.unpacked(measure_path(list(part)).packed()))
    np.testing.assert_allclose(parts.gram, whole.gram, rtol=1e-12)
    np.testing.assert_allclose(parts.rounding, whole.rounding, rtol=1e-12)
    assert parts.num_moved.tolist() == whole.num_moved.tolist()
    assert parts.num_elements == whole.num_elements


@pytest.mark.parametrize("index", [0, 2])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_checkpoint_that_is_not_finite_is_named(index: int, bad: float) -> None:
    stored = torch.zeros(4, 100_000, dtype=torch.bfloat16)
    stored[index, 70_000:70_003] = bad
    with pytest.raises(NonFiniteCheckpoint) as caught:
        measure_path(list(stored))
    assert (caught.value.index, caught.value.count) == (index, 3)


def test_a_line_is_straight() -> None:
    total = total_of(measured(synthetic_path("line", STEPS), torch.float64).values())
    assert total is not None
    shape = path_shape(total, STEPS)
    assert shape.straightness == pytest.approx(1)
    assert shape.r2_line == pytest.approx(1)
    assert shape.direction_shares == pytest.approx((1, 0, 0), abs=1e-12)
    steps = path_steps(total, STEPS)
    assert [step.cosine_to_next for step in steps[:-1]] == pytest.approx([1] * 4)
    assert steps[-1].cosine_to_next is None
    assert steps[3].length == pytest.approx(4 * steps[0].length)


def test_a_walk_goes_nowhere_in_many_directions() -> None:
    steps = tuple(range(0, 1000, 25))
    path = synthetic_path("walk", steps, num_values=20_000)
    total = total_of(measured(path, torch.float64).values())
    assert total is not None
    shape = path_shape(total, steps)
    # Steps of one size in random directions: distance grows with the root of their number.
    assert shape.straightness == pytest.approx(39**-0.5, rel=0.02)
    cosines = [step.cosine_to_next or 0.0 for step in path_steps(total, steps)]
    assert max(map(abs, cosines)) < 0.03
    assert shape.direction_shares[0] == pytest.approx(8 / np.pi**2, abs=0.03)


def test_r2_is_that_of_all_values_together() -> None:
    path = synthetic_path("noisy line", STEPS)
    total = total_of(measured(path, torch.float64).values())
    assert total is not None
    fitted = np.polyfit(STEPS, path, 1)
    residual = path - np.outer(STEPS, fitted[0]) - fitted[1]
    expected = 1 - (residual**2).sum() / ((path - path.mean(axis=0)) ** 2).sum()
    assert path_shape(total, STEPS).r2_line == pytest.approx(expected, abs=1e-9)


def test_coordinates_keep_the_distances() -> None:
    total = total_of(measured(synthetic_path("walk", STEPS), torch.float64).values())
    assert total is not None
    places = coordinates(total.gram, len(STEPS) - 1)
    for i in range(len(STEPS)):
        for j in range(i):
            squared = ((places[i] - places[j]) ** 2).sum()
            assert squared == pytest.approx(squared_distance(total, i, j), rel=1e-9)
    assert (places[-1] >= 0).all()


def test_small_steps_in_bfloat16_are_all_rounding_and_large_ones_are_not() -> None:
    steps = tuple(range(0, 210, 10))
    path = synthetic_path("line", steps)
    small = path[0] + (path - path[0]) * 0.02
    for scaled, is_rounding in ((small, True), (path[0] + 10 * (path - path[0]), False)):
        total = total_of(measured(scaled, torch.bfloat16).values())
        assert total is not None
        shape = path_shape(total, steps)
        assert shape.share_rounding is not None
        assert shape.share_rounding_whole is not None
        assert (shape.share_rounding > 0.9) is is_rounding
        assert shape.share_rounding_whole < 0.9 if not is_rounding else True
    in_float32 = total_of(measured(small, torch.float32).values())
    assert in_float32 is not None
    assert (rounding_share(in_float32, 0, 1) or 0) < 1e-4


def test_nothing_moved() -> None:
    total = total_of(measured(np.ones((4, 100))).values())
    assert total is not None
    shape = path_shape(total, (0, 1, 2, 3))
    assert (shape.straightness, shape.r2_line, shape.share_rounding) == (None, None, None)
    assert shape.direction_shares == ()
    assert [step.cosine_to_next for step in path_steps(total, (0, 1, 2, 3))] == [None] * 3
    assert total_of([]) is None
