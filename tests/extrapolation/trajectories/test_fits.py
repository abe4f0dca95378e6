"""The fits against independent references: an SVD of stacked changes, TRL's callback, polyfit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from expo_ray.errors import ConfigError
from expo_ray.extrapolation.trajectories.fits import (
    DEFAULT_OPTIONS,
    Fit,
    FitOptions,
    direction_weights,
    min_checkpoints,
    needs_gram,
    rank1_weights,
    step_weights,
)

EVEN = (0.0, 10.0, 20.0, 30.0, 40.0, 50.0)
UNEVEN = (3.0, 10.0, 14.0, 50.0, 51.0, 90.0)
SAME_FOR_ALL = (Fit.LINE, Fit.WSM, Fit.EMA, Fit.BEMA)


def walk(steps: Sequence[float], *, noise: float = 0.3, seed: int = 0) -> NDArray[np.float64]:
    """Checkpoints [N, 40]: a curve in two directions, and noise."""
    random = np.random.default_rng(seed)
    axis = np.asarray(steps)
    first, second = random.normal(size=(2, 40))
    path = random.normal(size=40) + np.outer(axis / 10, first) + np.outer(np.sqrt(axis), second)
    return path + noise * random.normal(size=path.shape)


def relex(path: NDArray[np.float64], steps: Sequence[float], target: float) -> NDArray[np.float64]:
    """The method from its description: all changes in memory, their SVD, polyfit."""
    changes = path[1:] - path[0]
    _, _, rows = np.linalg.svd(changes, full_matrices=False)
    coefficients = changes @ rows[0]
    slope, intercept = np.polyfit(np.asarray(steps[1:]), coefficients, 1)
    predicted: NDArray[np.float64] = path[0] + (slope * target + intercept) * rows[0]
    return predicted


@pytest.mark.parametrize("steps", [EVEN, UNEVEN])
@pytest.mark.parametrize("target", [20.0, 90.0, 400.0])
def test_rank1_is_relex(steps: tuple[float, ...], target: float) -> None:
    path = walk(steps)
    changes = path - path[0]
    weights = rank1_weights(changes @ changes.T, steps, target)
    assert weights.sum() == pytest.approx(1, abs=1e-12)
    expected = relex(path, steps, target)
    scale = np.abs(expected - path[0]).max()
    np.testing.assert_allclose(weights @ path, expected, rtol=0, atol=1e-6 * scale)


def test_rank1_of_what_never_moved_is_the_first_checkpoint() -> None:
    assert rank1_weights(np.zeros((3, 3)), (0, 1, 2), 9).tolist() == [1, 0, 0]


def test_the_window_of_rank1_limits_the_line_and_not_the_direction() -> None:
    path = walk(UNEVEN)
    changes = path - path[0]
    options = FitOptions(window=3)
    weights = rank1_weights(changes @ changes.T, UNEVEN, 200, options=options)
    _, _, rows = np.linalg.svd(changes[1:], full_matrices=False)
    slope, intercept = np.polyfit(UNEVEN[-3:], (changes @ rows[0])[-3:], 1)
    expected = path[0] + (slope * 200 + intercept) * rows[0]
    np.testing.assert_allclose(weights @ path, expected, atol=1e-6)


@pytest.mark.parametrize("steps", [EVEN, UNEVEN])
@pytest.mark.parametrize("target", [3.0, 25.0, 500.0])
def test_the_line_is_the_least_squares_line(steps: tuple[float, ...], target: float) -> None:
    path = walk(steps)
    slope, intercept = np.polyfit(np.asarray(steps), path, 1)
    weights = step_weights("line", steps, target)
    np.testing.assert_allclose(weights @ path, slope * target + intercept, atol=1e-9)


@pytest.mark.parametrize("steps", [(0, 1), (100, 700), (1 / 3, 1e7 / 7), (1e9, 1e9 + 1)])
def test_a_line_through_two_is_the_pair_itself(steps: tuple[float, float]) -> None:
    assert direction_weights("line", steps).tolist() == [-1.0, 1.0]
    assert step_weights("line", steps, steps[1]).tolist() == [0.0, 1.0]
    assert step_weights("line", steps, steps[0]).tolist() == [1.0, 0.0]


def test_two_checkpoints_and_a_target_are_the_formula_with_steps_on_its_axis() -> None:
    # RLVR-Linearity: alpha' = (target - base) / (second - base).
    assert step_weights("line", (0, 400), 1000).tolist() == [-1.5, 2.5]


@pytest.mark.parametrize("decay", ["minus-sqrt", "linear"])
def test_wsm_reproduces_the_updates_under_a_decayed_rate(decay: str) -> None:
    options = FitOptions.model_validate({"decay": decay})
    weights = step_weights("wsm", EVEN, EVEN[-1], options=options)
    places = np.arange(1, 6) / 6
    rates = 1 - (np.sqrt(places) if decay == "minus-sqrt" else places)
    path = walk(EVEN)
    np.testing.assert_allclose(weights @ path, path[0] + rates @ np.diff(path, axis=0), atol=1e-12)
    assert (weights > 0).all()
    if decay == "linear":
        np.testing.assert_allclose(weights, 1 / 6)


def test_the_moving_average_keeps_less_over_a_longer_gap() -> None:
    options = FitOptions(ema_decay=0.5)
    assert step_weights("ema", (0, 1, 2), 2, options=options).tolist() == [0.25, 0.25, 0.5]
    kept = 0.5 ** (np.array([1, 3]) / 2)
    expected = [kept[0] * kept[1], (1 - kept[0]) * kept[1], 1 - kept[1]]
    weights = step_weights("ema", (0, 1, 4), 4, options=options)
    np.testing.assert_allclose(weights, expected)


def test_bema_is_what_the_callback_of_trl_makes() -> None:
    callbacks = pytest.importorskip("trl.trainer.callbacks")
    transformers = pytest.importorskip("transformers")

    class Model(torch.nn.Module):
        def __init__(self, config: object) -> None:
            super().__init__()
            self.config = config
            self.weight = torch.nn.Parameter(torch.zeros(40, dtype=torch.float64))

    steps = range(20, 141, 20)
    path = torch.from_numpy(walk(steps))
    model = Model(None)
    callback = callbacks.BEMACallback(update_freq=20, update_after=20)
    state = transformers.TrainerState()
    callback.on_train_begin(None, state, None, model=model)
    for values, step in zip(path, steps, strict=True):
        model.weight.data.copy_(values)
        state.global_step = step
        callback.on_step_end(None, state, None, model=model)
    expected = callback.running_model.weight.detach().double().numpy()
    weights = step_weights("bema", list(steps), 140)
    np.testing.assert_allclose(weights @ path.numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("fit", SAME_FOR_ALL)
@pytest.mark.parametrize("window", [None, 2, 4])
def test_weights_add_up_and_so_do_directions(fit: Fit, window: int | None) -> None:
    options = FitOptions(window=window)
    for target in (3.0, 20.0, 90.0, 300.0):
        weights = step_weights(fit, UNEVEN, target, options=options)
        assert weights.dtype == np.float64
        assert weights.sum() == pytest.approx(1, abs=1e-12)
    assert direction_weights(fit, UNEVEN, options=options).sum() == pytest.approx(0, abs=1e-12)
    if window:
        at_end = step_weights(fit, UNEVEN, 90.0, options=options)
        assert not at_end[: len(UNEVEN) - window].any()


@pytest.mark.parametrize("fit", [Fit.WSM, Fit.EMA, Fit.BEMA])
def test_an_average_inside_the_span_knows_nothing_of_later_checkpoints(fit: Fit) -> None:
    weights = step_weights(fit, UNEVEN, 49.9)
    assert not weights[3:].any()
    np.testing.assert_array_equal(weights[:3], step_weights(fit, UNEVEN[:3], 14.0))
    np.testing.assert_array_equal(
        step_weights(fit, UNEVEN, 1e6), step_weights(fit, UNEVEN, UNEVEN[-1])
    )


def test_direction_of_rank1_is_the_change_of_its_line() -> None:
    path = walk(EVEN)
    changes = path - path[0]
    gram = changes @ changes.T
    direction = direction_weights("rank1", EVEN, gram)
    expected = relex(path, EVEN, 50) - relex(path, EVEN, 0)
    np.testing.assert_allclose(direction @ path, expected, atol=1e-6)
    with pytest.raises(TypeError, match="Gram matrix"):
        direction_weights("rank1", EVEN)


def test_given_weights_are_taken_as_they_are() -> None:
    options = FitOptions(weights=(0.1, 0.2, 0.7))
    weights = step_weights("weights", (0, 1, 2), 2, options=options)
    np.testing.assert_allclose(weights, [0.1, 0.2, 0.7], rtol=1e-15)
    assert weights.sum() == 1
    np.testing.assert_allclose(
        direction_weights("weights", (0, 1, 2), options=options), [-0.9, 0.2, 0.7]
    )


@pytest.mark.parametrize(
    ("fit", "steps", "target", "options", "message"),
    [
        ("line", (0, 0), 1, DEFAULT_OPTIONS, "do not increase"),
        ("line", (0, 2, 1), 1, DEFAULT_OPTIONS, "do not increase"),
        ("line", (0, float("nan")), 1, DEFAULT_OPTIONS, "do not increase"),
        ("line", (0,), 1, DEFAULT_OPTIONS, "more checkpoints"),
        ("line", (5, 6), 4, DEFAULT_OPTIONS, "before the first"),
        ("rank1", (0, 1, 2), 3, DEFAULT_OPTIONS, "differ by tensor"),
        ("weights", (0, 1), 1, DEFAULT_OPTIONS, "differ in length"),
        ("weights", (0, 1), 1, FitOptions(weights=(0.5, 0.4)), "add up to one"),
        ("line", (0, 1), 1, FitOptions(weights=(0.5, 0.5)), "makes its own"),
        ("bema", (-1, 1), 1, DEFAULT_OPTIONS, "not negative"),
    ],
)
def test_what_does_not_fit_is_refused(
    fit: str, steps: tuple[float, ...], target: float, options: FitOptions, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        step_weights(fit, steps, target, options=options)


def test_rank1_refuses_a_matrix_that_is_none() -> None:
    with pytest.raises(ConfigError, match="more checkpoints"):
        rank1_weights(np.zeros((2, 2)), (0, 1), 2)
    with pytest.raises(ValueError, match="shape"):
        rank1_weights(np.zeros((4, 4)), (0, 1, 2), 3)
    with pytest.raises(ValueError, match="not finite"):
        rank1_weights(np.full((3, 3), np.nan), (0, 1, 2), 3)


def test_what_fits_need() -> None:
    assert [fit for fit in Fit if needs_gram(fit)] == [Fit.RANK1]
    assert {fit.value: min_checkpoints(fit) for fit in Fit if min_checkpoints(fit) > 2} == {
        "rank1": 3
    }
