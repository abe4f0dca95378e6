"""FP8 with block scales written again: bit for bit, loadable, and what the rounding costs."""

from __future__ import annotations

import json
import types
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from transformers.integrations.finegrained_fp8 import Fp8Quantize

from expo_ray.checkpoints.formats.fp8_format import BlockFormat
from expo_ray.errors import CheckpointError, PairError, ShardError, VerifyError
from expo_ray.extrapolation import diagnose, extrapolate, stream_weights, verify
from expo_ray.extrapolation.arithmetic.requantization import requantize
from expo_ray.extrapolation.outputs.record import read_record
from expo_ray.extrapolation.outputs.work_folder import begin_output
from expo_ray.extrapolation.planning.plan import build_plan
from expo_ray.extrapolation.shards.engine import run_shard
from expo_ray.extrapolation.shards.tasks import (
    BUFFER_BUDGET_BYTES,
    WRITE,
    ShardOutput,
    extra_memory_bytes,
    shard_task,
)
from tests.checkpoints.computed.test_block_fp8 import (
    SETTINGS,
    Tensors,
    llama,
    quantize,
    stored_and_meant,
)
from tests.extrapolation.synthetic import closed_form, file_digests, load, noise, same_bits, write

FORMAT = {"scale_dtype": "F32", "has_power_scales": False}


def reference(
    values: torch.Tensor, block: tuple[int, int], scale_dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor]:
    """The definition, block by block."""
    codes = torch.empty(values.shape, dtype=torch.float8_e4m3fn)
    shape = [-(-size // step) for size, step in zip(values.shape, block, strict=True)]
    stored = torch.empty(shape, dtype=scale_dtype)
    for i in range(shape[0]):
        for j in range(shape[1]):
            rows = slice(i * block[0], (i + 1) * block[0])
            columns = slice(j * block[1], (j + 1) * block[1])
            part = values[rows, columns]
            largest = part.abs().max()
            one = torch.tensor(1.0)
            scale = 448 * (one / largest) if largest >= 2**-100 else one
            stored[i, j] = 1.0 / scale
            if scale_dtype != torch.float32:
                scale = 1.0 / stored[i, j].float()
            codes[rows, columns] = (part * scale).clamp(-448, 448).to(torch.float8_e4m3fn)
    return codes, stored


def spread(stored: torch.Tensor, block: tuple[int, int], shape: torch.Size) -> torch.Tensor:
    wide = stored.float().repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
    return wide[: shape[0], : shape[1]]


def run(values: torch.Tensor, block: tuple[int, int], **options: object):
    settings = {**FORMAT, "block_rows": block[0], "block_columns": block[1], **options}
    block_format = BlockFormat(**settings)
    dtype = torch.bfloat16 if block_format.scale_dtype == "BF16" else torch.float32
    scales = torch.empty(block_format.scales_of(tuple(values.shape)), dtype=dtype)
    codes, sums = requantize(values.clone(), values, scales, block_format)
    return codes.reshape(values.shape), scales, sums


@pytest.mark.parametrize("shape", [(64, 96), (37, 50), (1, 7), (130, 3), (16, 70_000)])
@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.bfloat16])
def test_codes_and_scales_are_those_of_the_definition(
    shape: tuple[int, int], scale_dtype: torch.dtype
) -> None:
    values = noise(shape, torch.float32, 3, scale=0.02)
    values[:5] *= 1e-3
    values[0, 0] = 0
    name = {torch.float32: "F32", torch.bfloat16: "BF16"}[scale_dtype]
    codes, scales, _ = run(values, (16, 24), scale_dtype=name)
    expected = reference(values, (16, 24), scale_dtype)
    assert same_bits(scales, expected[1])
    assert same_bits(codes, expected[0])
    # The largest step of e4m3 is 32 of 448, so that no value is off by more than half of that.
    error = (codes.float() * spread(scales, (16, 24), codes.shape) - values).abs()
    largest = spread(reference(values, (16, 24))[1], (16, 24), codes.shape) * 448
    assert bool((error <= largest * (16.5 / 448)).all())


@pytest.mark.parametrize("fmt", [None, "ue8m0"])
def test_transformers_gives_the_same_bits(fmt: str | None) -> None:
    config = types.SimpleNamespace(weight_block_size=[16, 32], scale_fmt=fmt)
    quantizer = Fp8Quantize(types.SimpleNamespace(quantization_config=config))
    values = noise((64, 96), torch.float32, 5, scale=0.05)
    values[:16, :32] = 0
    found = quantizer.convert({"w.weight": values})
    codes, scales, _ = run(values, (16, 32), has_power_scales=fmt is not None)
    assert same_bits(codes, found["w.weight"])
    assert torch.equal(scales, found["w.weight_scale_inv"].float())


def test_what_was_quantized_so_comes_back_with_the_same_codes() -> None:
    codes, stored = reference(noise((48, 48), torch.float32, 7), (16, 24))
    values = codes.float() * spread(stored, (16, 24), codes.shape)
    again, scales, sums = run(values, (16, 24))
    assert same_bits(again, codes)
    assert torch.allclose(scales, stored, rtol=2e-7)
    assert sums.num_changed == 0


def test_zero_and_tiny_blocks_stay_finite() -> None:
    values = torch.zeros(32, 48)
    values[:16, :24] = 1e-38
    codes, scales, _ = run(values, (16, 24))
    assert torch.equal(codes.float(), torch.zeros(32, 48))
    assert torch.equal(scales, torch.ones(2, 2))


def fp8_pair(folder: Path, *, initial_fp8: bool = True) -> tuple[Path, Path, Tensors, Tensors]:
    (tensors, config), others = llama(0), llama(1)[0]
    others = {name: tensors[name] + 0.05 * others[name] for name in tensors}
    first, before = stored_and_meant(tensors)
    second, after = stored_and_meant(others)
    if initial_fp8:
        initial = write(folder / "i", first, **config, quantization_config=SETTINGS)
    else:
        initial, before = write(folder / "i", tensors, **config), tensors
    aligned = write(folder / "a", second, **config, quantization_config=SETTINGS)
    return initial, aligned, before, after


def expected_tensors(before: Tensors, after: Tensors, alpha: float) -> Tensors:
    found: Tensors = {}
    block = tuple(SETTINGS["weight_block_size"])
    for name, tensor in after.items():
        if tensor.dtype == torch.float32:
            exact = closed_form(before[name], tensor, alpha, torch.float32)
            found[name], found[f"{name}_scale_inv"] = reference(exact, block)
        else:
            found[name] = closed_form(before[name], tensor, alpha)
    return found


@pytest.mark.parametrize("initial_fp8", [True, False], ids=["fp8", "bf16 initial"])
def test_fp8_aligned_gives_fp8_in_the_same_format(tmp_path: Path, initial_fp8: bool) -> None:
    initial, aligned, before, after = fp8_pair(tmp_path, initial_fp8=initial_fp8)
    out = tmp_path / "out"
    options = {"alpha": [0.3, -0.5], "max_shard_size": "20KB", "address": "inline"}
    result = extrapolate(initial, aligned, out, **options)
    # Codes are a byte each, whatever they are computed as.
    stored = [t.nbytes for f in (initial, aligned) for n, t in load(f).items() if "scale" not in n]
    assert result.bytes_read == build_plan(initial, aligned).input_bytes == sum(stored)
    for alpha in (0.3, -0.5):
        folder = out / f"alpha-{alpha:g}"
        written = load(folder)
        expected = expected_tensors(before, after, alpha)
        assert written.keys() == expected.keys() == load(aligned).keys()
        for name, tensor in expected.items():
            assert same_bits(written[name], tensor), name
        # Codes and their scales lie in one file.
        for file in folder.glob("*.safetensors"):
            names = set(load_file(file))
            assert all(n in names for n in {m.removesuffix("_scale_inv") for m in names})
        configs = [json.loads((f / "config.json").read_text()) for f in (folder, aligned)]
        assert configs[0] == configs[1] | {"dtype": "bfloat16"}
        assert configs[0]["quantization_config"] == SETTINGS
        assert verify(folder, address="inline").recomputed
        assert verify(folder, initial=initial, aligned=aligned, address="inline").recomputed
    assert sum("rounding error" in note for note in result.notes) == 2


def test_transformers_loads_every_name(tmp_path: Path) -> None:
    """Without a GPU it reads the blocks as plain values, where they divide the matrices."""
    block = (8, 16)
    settings = {**SETTINGS, "weight_block_size": list(block)}
    sides = []
    for name, seed in (("i", 0), ("a", 1)):
        tensors, config = llama(seed)
        for key in [key for key in tensors if "_proj" in key]:
            tensors[key], tensors[f"{key}_scale_inv"] = reference(tensors[key].float(), block)
        sides.append(write(tmp_path / name, tensors, **config, quantization_config=settings))
    result = extrapolate(*sides, tmp_path / "out", alpha=0.3, address="inline")
    assert result.loading is not None
    assert result.loading.status == "loads"
    model, info = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True, dtype=torch.float32
    )
    assert not any(info.values())
    written = load(tmp_path / "out")
    for key in [key for key in written if key.endswith("_proj.weight")]:
        codes, stored = written[key], written[f"{key}_scale_inv"]
        meant = codes.float() * spread(stored, block, codes.shape)
        assert torch.allclose(model.state_dict()[key].float(), meant, rtol=2**-7), key


def test_plain_aligned_stays_plain_where_initial_is_fp8(tmp_path: Path) -> None:
    tensors, config = llama(0)
    stored, before = stored_and_meant(tensors)
    initial = write(tmp_path / "i", stored, **config, quantization_config=SETTINGS)
    after = llama(1)[0]
    aligned = write(tmp_path / "a", after, **config)
    extrapolate(initial, aligned, tmp_path / "out", alpha=0.3, address="inline")
    for name, tensor in load(tmp_path / "out").items():
        assert same_bits(tensor, closed_form(before[name], after[name], 0.3)), name
    assert verify(tmp_path / "out", address="inline").recomputed


def test_rounding_is_measured_and_warned_about(tmp_path: Path) -> None:
    initial, aligned, before, after = fp8_pair(tmp_path)
    losses = []
    for alpha in (0.001, 8.0):
        out = tmp_path / f"out{alpha}"
        result = extrapolate(initial, aligned, out, alpha=alpha, address="inline")
        note = next(n for n in result.notes if "rounding error" in n)
        assert ("warning: " in note) is (alpha < 1)
        loss = read_record(out)["requantization"]
        squares = dict.fromkeys(("error", "exact", "update"), 0.0)
        num_moved = num_lost = num_elements = 0
        block = tuple(SETTINGS["weight_block_size"])
        for name, tensor in load(out).items():
            if tensor.dtype != torch.float8_e4m3fn:
                continue
            exact = closed_form(before[name], after[name], alpha, torch.float32)
            codes, stored = reference(exact, block)
            factors = 1 / spread(stored, block, exact.shape)
            unmoved = (after[name] * factors).to(torch.float8_e4m3fn)
            moved = before[name] != after[name]
            num_moved += int(moved.sum())
            num_lost += int((moved & (codes.view(torch.int8) == unmoved.view(torch.int8))).sum())
            num_elements += exact.numel()
            written = codes.float() * spread(stored, block, exact.shape)
            squares["error"] += float((written - exact).double().square().sum())
            squares["exact"] += float(exact.double().square().sum())
            squares["update"] += float((exact - after[name]).double().square().sum())
        assert loss["num_elements"] == num_elements
        assert loss["share_of_updates_lost"] == pytest.approx(num_lost / num_moved, abs=2e-3)
        error = (squares["error"] / squares["exact"]) ** 0.5
        assert loss["relative_error"] == pytest.approx(error, rel=1e-4)
        ratio = (squares["error"] / squares["update"]) ** 0.5
        assert loss["error_to_update"] == pytest.approx(ratio, rel=1e-4)
        losses.append(loss)
    assert losses[0]["share_of_updates_lost"] > 0.9 > 0.5 > losses[1]["share_of_updates_lost"]


@pytest.mark.parametrize("block", [(16, 24), (128, 128), (1, 128)])
@pytest.mark.parametrize("options", [{}, {"chunk_bytes": 64 * 1024, "num_threads": 4}])
def test_chunks_and_threads_do_not_matter(
    tmp_path: Path, block: tuple[int, int], options: dict[str, int]
) -> None:
    settings = {**SETTINGS, "weight_block_size": list(block)}
    sides, values = [], []
    for name, seed in (("i", 1), ("a", 2)):
        codes, stored = reference(noise((1000, 700), torch.float32, seed), block)
        values.append(codes.float() * spread(stored, block, codes.shape))
        tensors = {"w": codes, "w_scale_inv": stored, "x": torch.ones(3)}
        sides.append(write(tmp_path / name, tensors, quantization_config=settings))
    plan = build_plan(*sides)
    out = tmp_path / "out"
    (out / ".expo_ray").mkdir(parents=True)
    begin_output(out, "digest", "token", overwrite=False)
    output = ShardOutput(alpha=0.5, folder=str(out), plan_digest="digest", run_token="token")
    run_shard(shard_task(plan, plan.shards[0], WRITE, (output,), **options))
    expected = reference(closed_form(*values, 0.5, torch.float32), block)
    written = load(out)
    assert same_bits(written["w"], expected[0])
    assert same_bits(written["w_scale_inv"], expected[1])


def test_blocks_longer_than_the_buffers_are_declared(tmp_path: Path) -> None:
    settings = {**SETTINGS, "weight_block_size": [128, 128]}
    wide = {"w": torch.zeros(128, 4).to(torch.float8_e4m3fn), "w_scale_inv": torch.ones(1, 1)}
    folder = write(tmp_path / "x", wide, quantization_config=settings)
    pair = build_plan(folder, folder).pair.tensors
    assert extra_memory_bytes(pair, (), ["out"]) < 1000
    assert BUFFER_BUDGET_BYTES > 128 * 20_000 * 4 * 4


def test_a_flipped_code_and_a_flipped_scale_are_found(tmp_path: Path) -> None:
    initial, aligned, *_ = fp8_pair(tmp_path)
    extrapolate(initial, aligned, tmp_path / "out", alpha=0.3, address="inline")
    file = tmp_path / "out" / "model.safetensors"
    whole = file.read_bytes()
    header = json.loads(whole[8 : 8 + int.from_bytes(whole[:8], "little")])
    start = 8 + int.from_bytes(whole[:8], "little")
    for suffix in ("", "_scale_inv"):
        name = f"model.layers.1.mlp.down_proj.weight{suffix}"
        damaged = bytearray(whole)
        damaged[start + header[name]["data_offsets"][1] - 1] ^= 1
        file.write_bytes(damaged)
        with pytest.raises(VerifyError) as caught:
            verify(tmp_path / "out", address="inline")
        assert repr(name) in str(caught.value)


def test_an_interrupted_run_continues(tmp_path: Path) -> None:
    initial, aligned, *_ = fp8_pair(tmp_path)
    options = {"alpha": 0.3, "max_shard_size": "20KB", "address": "inline"}
    extrapolate(initial, aligned, tmp_path / "whole", **options)
    extrapolate(initial, aligned, tmp_path / "out", **options)
    record = read_record(tmp_path / "out")
    # What a killed run leaves: shards with their receipts, no config and no record.
    work = tmp_path / "out" / ".expo_ray"
    (work / "receipts").mkdir(parents=True)
    run_file = {"plan_digest": record["plan_digest"], "run_token": "t"}
    (work / "run.json").write_text(json.dumps(run_file))
    entries = [entry for entry in record["files"] if entry["kind"] == "weights"]
    for entry in entries[1:]:
        names = set(load_file(tmp_path / "out" / entry["name"]))
        receipt = {
            "name": entry["name"],
            "plan_digest": record["plan_digest"],
            "bytes": entry["bytes"],
            "digest": entry["digest"],
            "tensors": {n: record["tensors"][n] for n in names},
        }
        (work / "receipts" / f"{entry['name']}.json").write_text(json.dumps(receipt))
    for name in ("expo_ray.json", "config.json", entries[0]["name"]):
        (tmp_path / "out" / name).unlink()
    result = extrapolate(initial, aligned, tmp_path / "out", **options)
    assert result.outputs[0].num_shards_resumed == len(entries) - 1 > 0
    assert file_digests(tmp_path / "out") == file_digests(tmp_path / "whole")
    again = read_record(tmp_path / "out")
    assert again["weights_digest"] == record["weights_digest"]
    assert again["requantization"] == pytest.approx(record["requantization"])


def test_values_that_overflow_are_told(tmp_path: Path) -> None:
    codes = torch.full((4, 4), 448.0).to(torch.float8_e4m3fn)
    sides = []
    for name, scale in (("i", 1e30), ("a", 5e35)):
        tensors = {"w": codes, "w_scale_inv": torch.full((1, 1), scale)}
        sides.append(write(tmp_path / name, tensors, quantization_config=SETTINGS))
    for allow in (False, True):
        with pytest.raises(ShardError, match="does not fit"):
            extrapolate(*sides, tmp_path / "o", alpha=9, allow_overflow=allow, address="inline")


def test_a_pair_of_fp8_is_diagnosed(tmp_path: Path) -> None:
    initial, aligned, *_ = fp8_pair(tmp_path)
    found = diagnose(initial, aligned, address="inline").as_dict()
    assert found["fit"]
    assert not any(name.endswith("_scale_inv") for name in found["tensors"])


def test_what_cannot_be_done_is_refused_with_the_reason(tmp_path: Path) -> None:
    initial, aligned, *_ = fp8_pair(tmp_path)
    with pytest.raises(CheckpointError, match="not streamed") as caught:
        next(stream_weights(initial, aligned, 0.3))
    assert "bfloat16" in str(caught.value.hint)
    assert len(dict(stream_weights(initial, aligned, 0.3, output_dtype="bfloat16"))) > 10
    sides = []
    for name, rows in (("x", 16), ("y", 17)):
        codes, stored = quantize(noise((rows, 24), torch.float32, rows))
        tensors = {"lm_head.weight": codes, "lm_head.weight_scale_inv": stored}
        sides.append(write(tmp_path / name, tensors, vocab_size=rows, quantization_config=SETTINGS))
    options = {"alpha": 1, "vocab_policy": "common-rows", "address": "inline"}
    with pytest.raises(PairError, match="FP8 blocks"):
        extrapolate(*sides, tmp_path / "o", **options)
    extrapolate(*sides, tmp_path / "plain", output_dtype="float32", **options)
