from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from expo_ray.errors import ConfigError
from expo_ray.extrapolation import checkpoint_name, format_alpha, parse_alpha, round_alpha
from expo_ray.extrapolation.planning.alpha import parse_alphas


@pytest.mark.parametrize(
    ("alpha", "text"),
    [
        (0.3, "0.3"),
        (1, "1"),
        (12.0, "12"),
        (-0.5, "-0.5"),
        (0.1 + 0.2, "0.3"),
        (-0.0, "0"),
        (0.123456789, "0.123456789"),
        (round_alpha(0.3), "0.3"),
    ],
)
def test_alpha_is_written_as_the_shortest_decimal(alpha: float, text: str) -> None:
    assert format_alpha(alpha) == text
    assert checkpoint_name(alpha) == f"alpha-{text}"


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_text_gives_back_the_same_float32(alpha: float) -> None:
    assert round_alpha(parse_alpha(format_alpha(alpha))) == alpha
    assert round_alpha(alpha) == float(np.float32(alpha))


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e39", "", "x", float("nan"), None])
def test_what_is_no_finite_number_is_refused(value: object) -> None:
    with pytest.raises(ConfigError, match="alpha"):
        parse_alpha(value)  # type: ignore[arg-type]


def test_alphas_that_are_equal_in_float32_are_refused() -> None:
    assert parse_alphas(["0.3", 1]) == (0.3, 1.0)
    assert parse_alphas(0.5) == (0.5,)
    with pytest.raises(ConfigError, match="twice"):
        parse_alphas([0.3, 0.30000000001])
    with pytest.raises(ConfigError, match="no alpha"):
        parse_alphas([])
