"""FP8 with block scales, read as float32 where plain weights are asked for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from expo_ray.checkpoints import open_checkpoint
from expo_ray.checkpoints.opening import without_block_scales
from expo_ray.errors import CheckpointError
from expo_ray.extrapolation import extrapolate, inspect_checkpoint, verify
from tests.extrapolation.synthetic import closed_form, load, noise, same_bits, write
from tests.pico import pico_config

ROWS, COLUMNS = 16, 24
SETTINGS = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [ROWS, COLUMNS]}
Tensors = dict[str, torch.Tensor]


def spread(scales: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    return scales.repeat_interleave(ROWS, 0).repeat_interleave(COLUMNS, 1)[: shape[0], : shape[1]]


def quantize(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """One scale per block, from its largest element, as DeepSeek publishes its weights."""
    blocks = [
        [float(block.abs().max()) / 448 for block in rows.split(COLUMNS, dim=1)]
        for rows in weight.float().split(ROWS)
    ]
    scales = torch.tensor(blocks)
    codes = (weight.float() / spread(scales, weight.shape)).to(torch.float8_e4m3fn)
    return codes, scales


def stored_and_meant(tensors: Tensors) -> tuple[Tensors, Tensors]:
    stored, meant = {}, {}
    for name, tensor in tensors.items():
        if tensor.dim() == 2 and "embed" not in name and "head" not in name:
            codes, scales = quantize(tensor)
            stored[name], stored[f"{name}_scale_inv"] = codes, scales
            meant[name] = codes.float() * spread(scales, codes.shape)
        else:
            stored[name] = meant[name] = tensor
    return stored, meant


def llama(seed: int) -> tuple[Tensors, dict[str, object]]:
    torch.manual_seed(seed)
    model = LlamaForCausalLM(pico_config(tie_word_embeddings=False)).to(torch.bfloat16)
    config = model.config.to_dict() | {"architectures": ["LlamaForCausalLM"]}
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}, config


@pytest.mark.parametrize("both", [True, False])
def test_dequantized_extrapolated_and_written_plain(tmp_path: Path, both: bool) -> None:
    tensors, config = llama(0)
    stored, before = stored_and_meant(tensors)
    initial = write(tmp_path / "initial", stored, **config, quantization_config=SETTINGS)
    after = llama(1)[0]
    if both:
        stored, after = stored_and_meant(after)
        config |= {"quantization_config": SETTINGS}
    else:
        stored = after
    aligned = write(tmp_path / "aligned", stored, **config)
    out = tmp_path / "out"
    extrapolate(initial, aligned, out, alpha=0.3, output_dtype="bfloat16", address="inline")
    written = load(out)
    assert written.keys() == after.keys()
    for name, tensor in written.items():
        assert same_bits(tensor, closed_form(before[name], after[name], 0.3, torch.bfloat16)), name
    model, info = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(info.values())
    assert getattr(model.config, "quantization_config", None) is None
    assert verify(out, address="inline").recomputed
    assert verify(out, initial=initial, aligned=aligned, address="inline").recomputed
    # What is stored is still shown as it is.
    assert "fp8" in str(inspect_checkpoint(initial).quantization)


def test_any_reading_gives_the_same_bits(tmp_path: Path) -> None:
    codes, scales = quantize(noise((37, 50), torch.float32, 3))
    stored = {"w": codes, "w_scale_inv": scales, "b": torch.ones(3)}
    folder = write(tmp_path / "x", stored, quantization_config=SETTINGS)
    view = without_block_scales(open_checkpoint(folder))
    assert list(view.tensors) == ["b", "w"]
    expected = codes.float() * spread(scales, codes.shape)
    raw = expected.reshape(-1).view(torch.uint8).numpy().tobytes()
    ref = view.tensors["w"]
    with open_checkpoint(view.uri).storage.open(ref.file) as reader:
        for step in (1, 50 * 4, 333, len(raw)):
            for start in range(0, len(raw), max(step, 97)):
                buffer = bytearray(min(step, len(raw) - start))
                reader.read_into(ref.offset_bytes + start, memoryview(buffer))
                assert bytes(buffer) == raw[start : start + len(buffer)]


def test_scales_may_lie_in_another_file(tmp_path: Path) -> None:
    """As at the borders of DeepSeek's files."""
    tensors, config = llama(0)
    stored = stored_and_meant(tensors)[0]
    settings = {**config, "quantization_config": SETTINGS}
    folders = [write(tmp_path / f"{n}", stored, num_shards=n, **settings) for n in (1, 3)]
    checkpoint = open_checkpoint(folders[1])
    assert any(
        checkpoint.tensors[f"{name}_scale_inv"].file != ref.file
        for name, ref in checkpoint.tensors.items()
        if ref.dtype == "F8_E4M3"
    )
    initial = write(tmp_path / "initial", llama(1)[0], **config)
    options = {"alpha": 0.3, "address": "inline"}
    for folder in folders:
        extrapolate(initial, folder, tmp_path / f"out{folder.name}", **options)
    one, other = (load(tmp_path / f"out{n}") for n in (1, 3))
    assert all(same_bits(tensor, other[name]) for name, tensor in one.items())
    assert verify(tmp_path / "out3", address="inline").recomputed
    # A file that only scales are taken from belongs to what is checked for changes.
    ref = next(r for r in without_block_scales(checkpoint).tensors.values() if r.dtype == "F32")
    with open_checkpoint(f"{folders[1]}#dequantized").storage.open(ref.file) as reader:
        before = reader.facts
        for file in folders[1].glob("*.safetensors"):
            os.utime(file, (1, 1))
        assert reader.refresh() != before


@pytest.mark.parametrize(
    "change",
    [
        lambda t: {n: v for n, v in t.items() if n != "w_scale_inv"},
        lambda t: t | {"w_scale_inv": t["w_scale_inv"][:-1].contiguous()},
        lambda t: t | {"w_scale_inv": t["w_scale_inv"].to(torch.int32)},
        lambda t: t | {"w": t["w"].reshape(1, *t["w"].shape).contiguous()},
    ],
)
def test_scales_that_do_not_fit_are_refused_by_name(tmp_path: Path, change) -> None:
    codes, scales = quantize(noise((37, 50), torch.float32, 3))
    stored = change({"w": codes, "w_scale_inv": scales})
    folder = write(tmp_path / "x", stored, quantization_config=SETTINGS)
    with pytest.raises(CheckpointError, match="do not fit") as caught:
        extrapolate(
            folder, folder, tmp_path / "o", alpha=1, output_dtype="bfloat16", address="inline"
        )
    assert "'w'" in str(caught.value.where)


@pytest.mark.parametrize(
    ("extra", "kind"),
    [
        ({"w.input_scale": torch.ones(1)}, "fp8"),
        ({"v": torch.ones(2, 2).to(torch.float8_e5m2)}, "F8_E5M2"),
    ],
)
def test_other_kinds_beside_the_blocks_are_refused(
    tmp_path: Path, extra: Tensors, kind: str
) -> None:
    codes, scales = quantize(noise((37, 50), torch.float32, 3))
    stored = {"w": codes, "w_scale_inv": scales, **extra}
    folder = write(tmp_path / "x", stored, quantization_config=SETTINGS)
    with pytest.raises(CheckpointError, match="quantized") as caught:
        extrapolate(
            folder, folder, tmp_path / "o", alpha=1, output_dtype="float32", address="inline"
        )
    assert kind in str(caught.value.got)
