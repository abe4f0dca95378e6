"""The compiled kernel: the bits and the statistics of the plain path, or no answer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from expo_ray.extrapolation import diagnose, extrapolate
from expo_ray.extrapolation.arithmetic.formula import Workspace
from expo_ray.extrapolation.arithmetic.fused_kernel import Dtypes, FusedKernel, fused_kernel
from expo_ray.extrapolation.arithmetic.statistics import measure_inputs, measure_output
from expo_ray.extrapolation.outputs.record import read_record
from expo_ray.extrapolation.planning.plan import build_plan
from expo_ray.extrapolation.shards import tasks
from expo_ray.extrapolation.shards.chunk_compute import worth_compiling
from expo_ray.extrapolation.shards.tasks import WRITE, shard_task
from tests.extrapolation.synthetic import closed_form, load, noise, same_bits, write

pytest.importorskip("numba")


BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
MIXTURES = [
    Dtypes(BF16, BF16, BF16),
    Dtypes(F16, F16, F16),
    Dtypes(F32, F32, F32),
    Dtypes(F16, BF16, F16),
    Dtypes(BF16, F32, BF16),
    Dtypes(F32, F16, BF16),
]


def found_kernel(dtypes: Dtypes) -> FusedKernel:
    found = fused_kernel(dtypes, 2)
    assert found is not None
    return found


def pair(dtypes: Dtypes, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    before = noise((size,), torch.float32, 1, 0.02)
    after = before + noise((size,), torch.float32, 2, 1e-3)
    before, after = before.to(dtypes.initial), after.to(dtypes.aligned)
    after[: size // 7] = before[: size // 7].to(dtypes.aligned)
    return before, after


@pytest.mark.parametrize("dtypes", MIXTURES, ids=str)
def test_bits_and_statistics_are_those_of_the_plain_path(dtypes: Dtypes) -> None:
    kernel = found_kernel(dtypes)
    before, after = pair(dtypes, 5003)
    alphas = [0.3, float(np.float32(1e-4))]
    targets = [torch.empty(5003, dtype=dtypes.target) for _ in alphas]
    found = kernel.run(before, after, targets, alphas)
    assert found is not None
    block = Workspace(torch.float32).load(before, after)
    expected = measure_inputs(block, before, after)
    for index, (target, alpha) in enumerate(zip(targets, alphas, strict=True)):
        plain = torch.empty_like(target)
        block.write(alpha, plain)
        assert same_bits(target, plain)
        assert found.outputs[index] == measure_output(plain, after)
    for name in ("initial_squares", "aligned_squares", "delta_squares"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-5)
    assert (found.max_delta, found.num_moved) == (expected.max_delta, expected.num_moved)
    measured = kernel.run(before, after, [], [])
    assert measured is not None
    assert (measured.max_delta, measured.num_moved) == (expected.max_delta, expected.num_moved)


@pytest.mark.parametrize("dtypes", MIXTURES, ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 3e38])
def test_what_is_out_of_the_ordinary_is_left_to_the_plain_path(
    dtypes: Dtypes, value: float
) -> None:
    kernel = found_kernel(dtypes)
    for side in range(2):
        sides = [torch.ones(100, dtype=dtype) for dtype in dtypes[:2]]
        sides[side][50] = value
        target = torch.empty(100, dtype=dtypes.target)
        assert kernel.run(*sides, [target], [0.5]) is None
        unmeasured = kernel.run(*sides, [target], [0.5], measures=False)
        # Large squares are no matter where nobody asks for them.
        plain = torch.empty_like(target)
        Workspace(torch.float32).load(*sides).write(0.5, plain)
        assert (unmeasured is not None) == bool(torch.isfinite(plain).all())
        assert unmeasured is None or same_bits(target, plain)


@pytest.mark.parametrize("dtypes", MIXTURES[-2:], ids=str)
def test_a_nan_of_all_ones_does_not_round_to_a_number(dtypes: Dtypes) -> None:
    for side in range(2):
        sides = [torch.ones(100, dtype=dtype) for dtype in dtypes[:2]]
        sides[side].view(torch.int32 if dtypes[side] == F32 else torch.int16)[7] = -1
        target = torch.empty(100, dtype=dtypes.target)
        assert found_kernel(dtypes).run(*sides, [target], [0.5], measures=False) is None


def test_overflow_of_the_second_alpha_is_left_to_the_plain_path() -> None:
    before, after = torch.zeros(4, dtype=BF16), torch.full((4,), 1e15).bfloat16()
    targets = [torch.empty_like(after) for _ in range(2)]
    assert found_kernel(MIXTURES[0]).run(before, after, targets, [0.5, 1e30]) is None


def test_what_is_too_large_for_half_precision_is_left_to_the_plain_path() -> None:
    before, after = torch.zeros(4, dtype=F16), torch.full((4,), 6e4, dtype=F16)
    assert found_kernel(MIXTURES[1]).run(before, after, [torch.empty_like(after)], [0.5]) is None


def test_a_dtype_that_few_weights_have_is_not_compiled_for(tmp_path: Path) -> None:
    sides = []
    for seed, side in enumerate(("initial", "aligned")):
        weights = {"w": noise((100, 100), F16, seed), "norm": noise((100,), F32, seed)}
        sides.append(write(tmp_path / side, {**weights, "d": weights["norm"].double()}))
    plan = build_plan(*sides)
    task = shard_task(plan, plan.shards[0], WRITE, ())
    assert worth_compiling(replace(task, may_compile=True)) == {MIXTURES[1]}
    assert not worth_compiling(task)


@pytest.mark.parametrize("dtype", [BF16, F16, F32])
def test_a_whole_checkpoint_through_the_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    before = {"w": noise((300, 517), dtype, 1), "v": noise((9,), torch.float64, 3)}
    after = {"w": noise((300, 517), dtype, 2), "v": noise((9,), torch.float64, 4)}
    if dtype != F16:
        after["w"][7, 7] = 1e25  # its square overflows: one block takes the plain path
    sides = write(tmp_path / "initial", before), write(tmp_path / "aligned", after)
    options = {"alpha": [0.3, -1.0], "address": "inline"}
    extrapolate(*sides, tmp_path / "plain", **options)
    plain = diagnose(*sides, address="inline").as_dict()
    monkeypatch.setattr(tasks, "MIN_COMPILED_BYTES", 0)
    extrapolate(*sides, tmp_path / "fused", **options)
    fused = diagnose(*sides, address="inline").as_dict()
    assert fused["delta_norm"] == pytest.approx(plain["delta_norm"])
    for name, alpha in (("alpha-0.3", 0.3), ("alpha--1", -1.0)):
        written = load(tmp_path / "fused" / name)
        for tensor, value in written.items():
            assert same_bits(value, closed_form(before[tensor], after[tensor], alpha))
        records = [read_record(tmp_path / how / name) for how in ("plain", "fused")]
        assert records[0]["weights_digest"] == records[1]["weights_digest"]
        first, second = (record["tensors"]["w"]["statistics"] for record in records)
        assert first == pytest.approx(second, rel=1e-5, abs=1e-6)
