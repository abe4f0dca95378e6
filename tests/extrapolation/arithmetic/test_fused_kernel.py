"""The compiled kernel: the bits and the statistics of the plain path, or no answer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from expo_ray.extrapolation import diagnose, extrapolate
from expo_ray.extrapolation.arithmetic.formula import Workspace
from expo_ray.extrapolation.arithmetic.fused_kernel import FusedKernel, fused_kernel
from expo_ray.extrapolation.arithmetic.statistics import measure_inputs, measure_output
from expo_ray.extrapolation.outputs.record import read_record
from expo_ray.extrapolation.shards import tasks
from tests.extrapolation.synthetic import closed_form, load, noise, same_bits, write

pytest.importorskip("numba")


@pytest.fixture(scope="module")
def kernel() -> FusedKernel:
    found = fused_kernel(2)
    assert found is not None
    return found


def bits(values: torch.Tensor) -> np.ndarray:
    return values.view(torch.int16).numpy().view(np.uint16)


def test_statistics_are_those_of_the_plain_path(kernel: FusedKernel) -> None:
    before = noise((5003,), torch.bfloat16, 1, 0.02)
    after = before + noise((5003,), torch.bfloat16, 2, 1e-3)
    after[:700] = before[:700]
    alphas = [0.3, float(np.float32(1e-4))]
    targets = [torch.empty_like(after) for _ in alphas]
    found = kernel.run(bits(before), bits(after), [bits(t) for t in targets], alphas)
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
    measured = kernel.run(bits(before), bits(after), [], [])
    assert measured is not None
    assert (measured.max_delta, measured.num_moved) == (expected.max_delta, expected.num_moved)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 3e38])
def test_what_is_out_of_the_ordinary_is_left_to_the_plain_path(
    kernel: FusedKernel, value: float
) -> None:
    before, after = torch.ones(100, dtype=torch.bfloat16), torch.ones(100, dtype=torch.bfloat16)
    after[50] = value
    for first, second in ((before, after), (after, before)):
        target = torch.empty_like(after)
        assert kernel.run(bits(first), bits(second), [bits(target)], [0.5]) is None
        unmeasured = kernel.run(bits(first), bits(second), [bits(target)], [0.5], measures=False)
        # Large squares are no matter where nobody asks for them.
        plain = torch.empty_like(target)
        Workspace(torch.float32).load(first, second).write(0.5, plain)
        assert (unmeasured is not None) == bool(torch.isfinite(plain).all())
        assert unmeasured is None or same_bits(target, plain)


def test_overflow_of_the_second_alpha_is_left_to_the_plain_path(kernel: FusedKernel) -> None:
    before, after = torch.zeros(4, dtype=torch.bfloat16), torch.full((4,), 1e15).bfloat16()
    targets = [bits(torch.empty_like(after)) for _ in range(2)]
    assert kernel.run(bits(before), bits(after), targets, [0.5, 1e30]) is None


def test_a_whole_checkpoint_through_the_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {"w": noise((300, 517), torch.bfloat16, 1), "v": noise((9,), torch.float32, 3)}
    after = {"w": noise((300, 517), torch.bfloat16, 2), "v": noise((9,), torch.float32, 4)}
    after["w"][7, 7] = 1e25  # its square overflows: one block takes the plain path
    pair = write(tmp_path / "initial", before), write(tmp_path / "aligned", after)
    options = {"alpha": [0.3, -1.0], "address": "inline"}
    extrapolate(*pair, tmp_path / "plain", **options)
    plain = diagnose(*pair, address="inline").as_dict()
    monkeypatch.setattr(tasks, "MIN_COMPILED_BYTES", 0)
    extrapolate(*pair, tmp_path / "fused", **options)
    fused = diagnose(*pair, address="inline").as_dict()
    assert fused["delta_norm"] == pytest.approx(plain["delta_norm"])
    for name, alpha in (("alpha-0.3", 0.3), ("alpha--1", -1.0)):
        written = load(tmp_path / "fused" / name)
        for tensor, value in written.items():
            assert same_bits(value, closed_form(before[tensor], after[tensor], alpha))
        records = [read_record(tmp_path / how / name) for how in ("plain", "fused")]
        assert records[0]["weights_digest"] == records[1]["weights_digest"]
        first, second = (record["tensors"]["w"]["statistics"] for record in records)
        assert first == pytest.approx(second, rel=1e-5)
