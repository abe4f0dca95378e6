"""Compiled FP8 conversions: the bits and the sums of the plain path, or none at all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from expo_ray.checkpoints.computed import fused_fp8 as module
from expo_ray.checkpoints.computed.block_fp8 import dequantized
from expo_ray.checkpoints.computed.computed_file import ComputedReader
from expo_ray.checkpoints.computed.fused_fp8 import FusedFp8, fused_fp8
from expo_ray.checkpoints.formats.fp8_format import BlockFormat
from expo_ray.checkpoints.opening import open_checkpoint
from expo_ray.extrapolation import extrapolate
from expo_ray.extrapolation.arithmetic.requantization import requantize
from expo_ray.extrapolation.shards import tasks
from tests.extrapolation.synthetic import file_digests, noise, same_bits, write

pytest.importorskip("numba")

SETTINGS = {"quant_method": "fp8", "fmt": "e4m3"}
BLOCKS = [(16, 24), (128, 128), (1, 128), (7, 1)]


def kernels() -> FusedFp8:
    found = fused_fp8()
    assert found is not None
    return found


@pytest.mark.parametrize("shape", [(64, 96), (37, 50), (1, 7), (130, 3), (16, 70_000)])
@pytest.mark.parametrize("block", BLOCKS, ids=str)
@pytest.mark.parametrize("scales", [("F32", False), ("F32", True), ("BF16", False)], ids=str)
def test_codes_scales_and_sums_are_those_of_the_plain_path(
    shape: tuple[int, int], block: tuple[int, int], scales: tuple[str, bool]
) -> None:
    block_format = BlockFormat(
        block_rows=block[0],
        block_columns=block[1],
        scale_dtype=scales[0],
        has_power_scales=scales[1],
    )
    before = noise(shape, torch.float32, 3, scale=0.02)
    values = before + noise(shape, torch.float32, 4, scale=2e-3)
    values[:5] *= 1e-3
    values[0, 0] = 0
    before[-1] = values[-1]
    dtype = torch.bfloat16 if scales[0] == "BF16" else torch.float32
    found = []
    for fused in (None, kernels()):
        stored = torch.empty(block_format.scales_of(shape), dtype=dtype)
        codes, sums = requantize(values.clone(), before, stored, block_format, fused)
        found.append((codes.clone(), stored, sums))
    (codes, stored, plain), (fused_codes, fused_stored, sums) = found
    assert same_bits(codes, fused_codes)
    assert same_bits(stored, fused_stored)
    assert (plain.num_changed, plain.max_abs) == (sums.num_changed, sums.max_abs)
    assert sums.rounding == pytest.approx(plain.rounding, rel=1e-4)


def test_values_that_are_not_finite_are_told() -> None:
    block_format = BlockFormat(
        block_rows=16, block_columns=16, scale_dtype="F32", has_power_scales=False
    )
    for bad in (float("nan"), float("inf"), -float("inf")):
        values = torch.ones(16, 32)
        values[3, 20] = bad
        with pytest.raises(OverflowError):
            requantize(values, values.clone(), torch.empty(1, 2), block_format, kernels())


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_reading_gives_the_same_values_at_any_place(tmp_path: Path, block: tuple[int, int]) -> None:
    codes = torch.arange(50 * 73).to(torch.uint8).view(torch.float8_e4m3fn).view(50, 73)
    shape = (-(-50 // block[0]), -(-73 // block[1]))
    scales = noise(shape, torch.float32, 1).abs()
    config = {"quantization_config": SETTINGS | {"weight_block_size": list(block)}}
    folder = write(tmp_path / "x", {"w": codes, "w_scale_inv": scales}, **config)
    checkpoint = dequantized(open_checkpoint(folder))
    ref = checkpoint.tensors["w"]
    for start, stop in ((0, 50 * 73), (74, 74), (75, 1000), (50 * 73 - 1, 50 * 73)):
        found = []
        for may_compile in (False, True):
            values = torch.empty(stop - start)
            with checkpoint.storage.open(ref.file) as reader:
                assert isinstance(reader, ComputedReader)
                reader.may_compile = may_compile
                at = ref.offset_bytes + 4 * start
                reader.read_into(at, values.view(torch.uint8).numpy().data)
            found.append(values)
        assert same_bits(*found)  # those of NaN, too


def test_the_engine_writes_the_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = []
    for name, seed in (("initial", 1), ("aligned", 2)):
        codes = noise((300, 200), torch.float32, seed, scale=50).to(torch.float8_e4m3fn)
        tensors = {"w": codes, "w_scale_inv": torch.rand(3, 2), "x": torch.ones(3)}
        config = {"quantization_config": SETTINGS | {"weight_block_size": [128, 128]}}
        folders.append(write(tmp_path / name, tensors, **config))
    asked: list[bool] = []
    monkeypatch.setattr(FusedFp8, "encode", _noted(FusedFp8.encode, asked))
    options = {"alpha": [0.3, -0.5], "address": "inline"}
    extrapolate(*folders, tmp_path / "plain", **options)
    assert not asked
    monkeypatch.setattr(tasks, "MIN_COMPILED_BYTES", 0)
    extrapolate(*folders, tmp_path / "fused", **options)
    assert asked
    for alpha in ("alpha-0.3", "alpha--0.5"):
        plain, fused = (file_digests(tmp_path / name / alpha) for name in ("plain", "fused"))
        assert plain == fused


def _noted(method, asked: list[bool]):
    def noted(*args):
        asked.append(True)
        return method(*args)

    return noted


@pytest.mark.parametrize("name", ["_decode", "_largest", "_encode"])
def test_kernels_that_give_other_bits_are_not_used(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = kernels()
    parts = {part: getattr(good, part) for part in ("_decode", "_largest", "_encode")}

    def off_by_one_bit(*args) -> None:
        parts[name](*args)
        out = args[-2] if name == "_encode" else args[-1]
        out.reshape(-1).view("uint8")[0] ^= 1

    bad = FusedFp8(*(off_by_one_bit if part == name else kernel for part, kernel in parts.items()))
    monkeypatch.setattr(module, "_compile", lambda: bad)
    assert module._build.__wrapped__() is None
