from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from expo_ray.extrapolation.arithmetic.formula import Workspace
from expo_ray.extrapolation.arithmetic.statistics import (
    DeltaSums,
    count_different,
    measure_inputs,
    measure_output,
)

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]


@settings(deadline=None)
@given(st.lists(st.floats(width=16), min_size=1, max_size=20), st.sampled_from(DTYPES))
def test_largest_magnitude_by_bits(values: list[float], dtype: torch.dtype) -> None:
    tensor = torch.tensor(values, dtype=torch.float64).to(dtype)
    found = measure_output(tensor, tensor)
    if torch.isfinite(tensor).all():
        assert found.max_abs == float(tensor.abs().max())
    else:
        assert found.max_abs == math.inf
    assert found.num_nonfinite == int((~torch.isfinite(tensor)).sum())
    assert found.num_changed == 0


def test_sums_of_parts_are_the_sum_of_the_whole() -> None:
    before, after = torch.randn(1000), torch.randn(1000)
    after[:100] = before[:100]
    space = Workspace(torch.float32)
    whole = measure_inputs(space.load(before, after), before, after)
    parts = DeltaSums()
    for part in (slice(0, 317), slice(317, 1000)):
        block = space.load(before[part], after[part])
        parts.add(measure_inputs(block, before[part], after[part]))
    assert parts.num_moved == whole.num_moved == 900
    assert parts.max_delta == whole.max_delta
    assert parts.delta_squares == pytest.approx(whole.delta_squares, rel=1e-6)
    assert parts.as_dict()["cosine"] == pytest.approx(
        float(torch.nn.functional.cosine_similarity(before, after, dim=0)), abs=1e-6
    )


def test_nan_is_counted_and_never_reported_as_a_number() -> None:
    before, after = torch.ones(10), torch.ones(10)
    after[3], before[5] = torch.nan, torch.inf
    sums = measure_inputs(Workspace(torch.float32).load(before, after), before, after)
    assert sums.num_nonfinite == 2
    facts = sums.as_dict()
    assert facts["delta_norm"] is None
    assert facts["max_abs_delta"] is None
    assert facts["cosine"] is None
    assert not facts["identical"]


def test_bits_are_compared_and_not_values() -> None:
    assert count_different(torch.tensor([0.0, 1.0]), torch.tensor([-0.0, 1.0])) == 1
    nan = torch.tensor([math.nan, 2.0], dtype=torch.bfloat16)
    assert count_different(nan, nan.clone()) == 0
