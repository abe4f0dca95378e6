"""The formula in two compiled halves: the bits and counts of the plain ones, or no answer."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from expo_ray.errors import ShardError
from expo_ray.extrapolation import extrapolate, verify
from expo_ray.extrapolation.arithmetic import fused_kernel as module
from expo_ray.extrapolation.arithmetic.fused_kernel import Dtypes, Steps, fused_kernel
from expo_ray.extrapolation.arithmetic.halves import CompiledHalves, PlainHalves
from expo_ray.extrapolation.outputs.record import read_record
from expo_ray.extrapolation.shards import tasks
from tests.extrapolation.synthetic import file_digests, load, noise, same_bits, write

pytest.importorskip("numba")

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
SIZE = 5003


def compiled(initial: torch.dtype, aligned: torch.dtype, base: torch.dtype, target: torch.dtype):
    first = fused_kernel(Dtypes(initial, aligned, torch.float32), 1, steps=Steps.DELTA)
    second = fused_kernel(
        Dtypes(torch.float32, base, target), 1, measures=False, steps=Steps.OUTPUT
    )
    assert first is not None
    assert second is not None
    return CompiledHalves(first, second)


def sides(*dtypes: torch.dtype) -> list[torch.Tensor]:
    before = noise((SIZE,), torch.float32, 1, 0.02)
    after = before + noise((SIZE,), torch.float32, 2, 1e-3)
    after[: SIZE // 7] = before[: SIZE // 7]
    base = noise((SIZE,), torch.float32, 3, 0.02)
    found = [side.to(dtype) for side, dtype in zip((before, after, base), dtypes, strict=True)]
    return found


@pytest.mark.parametrize("dtypes", itertools.product(DTYPES, repeat=2), ids=str)
@pytest.mark.parametrize("base", DTYPES, ids=str)
def test_both_halves_give_the_bits_and_counts_of_the_plain_ones(
    dtypes: tuple[torch.dtype, torch.dtype], base: torch.dtype
) -> None:
    initial, aligned, onto = sides(*dtypes, base)
    found = []
    for halves in (PlainHalves(torch.float32), compiled(*dtypes, base, dtypes[1])):
        sums = halves.load(initial, aligned, onto)
        assert sums is not None
        halves.delta[::3] = 0
        halves.delta.mul_(1.7)
        target = torch.empty(SIZE, dtype=dtypes[1])
        counted = halves.write(float(np.float32(0.3)), target)
        found.append((sums, halves.delta.clone(), counted, target))
    (plain, delta, counted, target), (sums, again, recounted, made) = found
    assert same_bits(delta, again)
    assert same_bits(target, made)
    assert counted == recounted
    assert (plain.num_moved, plain.max_delta) == (sums.num_moved, sums.max_delta)
    for name in ("initial_squares", "aligned_squares", "delta_squares"):
        assert getattr(sums, name) == pytest.approx(getattr(plain, name), rel=1e-5)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("side", range(3))
def test_what_is_not_finite_is_handed_back(value: float, side: int) -> None:
    given = sides(torch.bfloat16, torch.bfloat16, torch.bfloat16)
    given[side][1234] = value
    halves = compiled(*[torch.bfloat16] * 4)
    sums = halves.load(*given)
    assert (sums is None) is (side < 2)
    dtypes = Dtypes(torch.bfloat16, torch.bfloat16, torch.float32)
    kernel = fused_kernel(dtypes, 1, measures=False, steps=Steps.DELTA)
    assert kernel is not None
    found = kernel.run(*given[:2], [torch.empty(SIZE)], [1.0], measures=False)
    assert (found is not None) is (side == 2)
    assert halves.write(1.0, torch.empty(SIZE, dtype=torch.bfloat16)) is None


def test_an_overflow_is_handed_back() -> None:
    given = [torch.full((9,), value, dtype=torch.float16) for value in (0.0, 60000.0, 60000.0)]
    halves = compiled(*[torch.float16] * 4)
    assert halves.load(*given) is not None
    assert halves.write(0.5, torch.empty(9, dtype=torch.float16)) is None


def write_pair(folder: Path, value: float | None = None) -> tuple[Path, Path, Path]:
    found = []
    for name, seed in (("initial", 0), ("aligned", 1), ("onto", 2)):
        tensors = {
            "big": noise((400, 517), torch.bfloat16, seed),
            "half": noise((300, 301), torch.float16, seed + 10),
            "other": noise((3, 7), torch.bfloat16, seed + 20),
        }
        if value is not None and name == "onto":
            tensors["big"][399, 3] = value
        found.append(write(folder / name, tensors))
    return found[0], found[1], found[2]


@pytest.mark.parametrize(
    "options",
    [
        {"transforms": ["magnitude:keep=0.4"]},
        {"transforms": ["dare:drop=0.3", "clip:norm=3"]},
        {"transforms": ["svd:rank=4", "magnitude:keep=0.9"]},
        {"onto": True},
        {"onto": True, "transforms": ["clip:norm=1"]},
        {"transforms": ["dare:drop=0.5"], "output_dtype": "float32"},
        {"onto": "F64", "transforms": ["magnitude:keep=0.1"]},
        {"onto": "F64", "transforms": ["dare:drop=0.5", "clip:norm=1"], "output_dtype": "bfloat16"},
    ],
    ids=str,
)
def test_files_and_counts_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, object]
) -> None:
    initial, aligned, onto = write_pair(tmp_path)
    given = options | ({"onto": onto} if options.get("onto") else {})
    if options.get("onto") == "F64":  # which makes all of the arithmetic so
        write(onto, {name: tensor.double() for name, tensor in load(onto).items()})
    records = []
    for name, least in (("plain", 1 << 40), ("compiled", 0)):
        monkeypatch.setattr(tasks, "MIN_COMPILED_BYTES", least)
        asked: list[None] = []
        kept = CompiledHalves.write
        monkeypatch.setattr(
            CompiledHalves, "write", lambda *args, k=kept, a=asked: a.append(None) or k(*args)
        )
        out = tmp_path / name
        extrapolate(initial, aligned, out, alpha=[0.5, -1.0], address="inline", **given)
        assert bool(asked) is (name == "compiled" and options.get("onto") != "F64")
        for folder in sorted(out.iterdir()):
            assert verify(folder, address="inline").recomputed
            record = read_record(folder)
            files = file_digests(folder)
            records.append((files, record["tensors"]))
    for (files, rows), (again, others) in zip(records[:2], records[2:], strict=True):
        assert files == again
        for name, row in rows.items():
            assert row["statistics"] == pytest.approx(others[name]["statistics"], rel=1e-4)


def test_a_base_that_is_not_finite_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "MIN_COMPILED_BYTES", 0)
    initial, aligned, onto = write_pair(tmp_path, float("nan"))
    with pytest.raises(ShardError, match="not finite"):
        extrapolate(initial, aligned, tmp_path / "out", alpha=0.5, onto=onto, address="inline")


@pytest.mark.parametrize("measures", [True, False])
@pytest.mark.parametrize("steps", Steps)
def test_kernels_that_give_other_bits_are_not_used(
    steps: Steps, measures: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = module._compile

    def off_by_one_bit(*options: object, **more: object):
        kernel = good(*options, **more)

        def run(*args) -> None:
            kernel(*args)
            args[2].view("uint8")[77] ^= 1

        return run

    monkeypatch.setattr(module, "_compile", off_by_one_bit)
    target = torch.float32 if steps is Steps.DELTA else torch.bfloat16
    initial = torch.float32 if steps is Steps.OUTPUT else torch.bfloat16
    build = module._build.__wrapped__
    assert build(Dtypes(initial, torch.bfloat16, target), 1, measures, steps) is None
