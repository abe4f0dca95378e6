"""LoRA adapters as aligned, and as both sides, beside what peft itself makes of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, PreTrainedModel

from expo_ray.checkpoints import iter_tensors, open_checkpoint
from expo_ray.errors import CheckpointError, ConfigError, PairError
from expo_ray.extrapolation import diagnose, extrapolate, stream_weights, verify
from expo_ray.extrapolation.planning.mergekit_export import mergekit_config
from expo_ray.extrapolation.planning.plan import build_plan
from tests.extrapolation.synthetic import closed_form, load, same_bits
from tests.pico import pico_tokenizer, save_pair

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj", "gate_proj"]
PLAIN = {"r": 4, "lora_alpha": 7, "target_modules": ALL}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    return save_pair(folder, tie_word_embeddings=False)[0]


def adapter(base: Path, folder: Path, seed: int = 1, **config: Any) -> Path:
    """Save an adapter as peft does after training: both factors away from zero."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base)
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **{**PLAIN, **config}))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape).to(parameter.dtype) * 0.05)
    model.save_pretrained(folder)
    return folder


def merged_by_peft(base: Path, folder: Path) -> dict[str, torch.Tensor]:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    merged = PeftModel.from_pretrained(model, folder).merge_and_unload()
    return {name: tensor.detach() for name, tensor in merged.state_dict().items()}


def close(first: torch.Tensor, second: torch.Tensor) -> bool:
    return torch.allclose(first.float(), second.float(), rtol=1e-5, atol=1e-6)


CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "attention only": {"target_modules": ["q_proj", "v_proj"]},
    "rank-stabilized": {"use_rslora": True},
    "patterns": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {r"layers\.1\.mlp\.\w+": 3}},
    "one layer": {"layers_to_transform": [1]},
    "embedding": {"target_modules": [*ALL, "embed_tokens", "lm_head"]},
    "whole tensors": {"modules_to_save": ["lm_head", "norm"]},
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_sum_is_that_of_peft(base: Path, tmp_path: Path, kind: str) -> None:
    folder = adapter(base, tmp_path / "adapter", **CONFIGS[kind])
    expected = merged_by_peft(base, folder)
    found = dict(iter_tensors(open_checkpoint(folder)))
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert close(tensor, expected[name]), name
    untouched = dict(iter_tensors(open_checkpoint(base)))
    assert any(not close(found[name], untouched[name]) for name in found)


def by_hand(base: Path, folder: Path) -> dict[str, torch.Tensor]:
    """The documented bits: one rank after the other in float32."""
    config = json.loads((folder / "adapter_config.json").read_text())
    stored = load_file(folder / "adapter_model.safetensors")
    tensors = load(base)
    for name in tensors:
        module = f"base_model.model.{name.removesuffix('.weight')}"
        if f"{module}.lora_A.weight" not in stored:
            continue
        a, b = (stored[f"{module}.lora_{side}.weight"].float() for side in "AB")
        delta = b[:, :1] * a[0]
        for k in range(1, len(a)):
            delta = delta + b[:, k : k + 1] * a[k]
        delta = delta * (config["lora_alpha"] / config["r"])
        tensors[name] = tensors[name].float() + delta
    return tensors


@pytest.mark.parametrize("bins", [False, True])
def test_bits_config_and_files_of_the_output(base: Path, tmp_path: Path, bins: bool) -> None:
    folder = adapter(base, tmp_path / "adapter")
    aligned = by_hand(base, folder)
    if bins:
        stored = load_file(folder / "adapter_model.safetensors")
        torch.save(stored, folder / "adapter_model.bin")
        (folder / "adapter_model.safetensors").unlink()
    out = tmp_path / "out"
    result = extrapolate(base, folder, out, alpha=[0.5, 2], address="inline")
    before = load(base)
    for alpha in (0.5, 2):
        written = load(out / f"alpha-{alpha}")
        assert written.keys() == before.keys()
        for name, tensor in written.items():
            # auto: each tensor in the dtype of the base, not in that of the sum.
            expected = closed_form(before[name], aligned[name], alpha, before[name].dtype)
            assert same_bits(tensor, expected), name
        model, info = AutoModelForCausalLM.from_pretrained(
            out / f"alpha-{alpha}", output_loading_info=True
        )
        assert not any(info.values())
        assert model.dtype == torch.bfloat16
    names = {path.name for path in (out / "alpha-2").iterdir()}
    assert {"config.json", "tokenizer.json", "generation_config.json"} <= names
    assert not any(name.startswith("adapter") for name in names)
    assert any("LoRA adapter" in note for note in result.notes)
    card = (out / "alpha-2" / "README.md").read_text()
    assert str(tmp_path) not in card
    assert verify(out / "alpha-2", address="inline").recomputed
    assert verify(out / "alpha-2", initial=base, aligned=folder, address="inline").recomputed


def test_any_reading_gives_the_same_bits(base: Path, tmp_path: Path) -> None:
    folder = adapter(base, tmp_path / "adapter")
    checkpoint = open_checkpoint(folder)
    whole = dict(iter_tensors(checkpoint))
    ref = checkpoint.tensors["model.layers.0.mlp.up_proj.weight"]
    raw = whole[ref.name].reshape(-1).view(torch.uint8)
    with checkpoint.storage.open(ref.file) as reader:
        for step in (1, 7, 100, 129, 4096):
            for start in range(0, ref.num_bytes, step * 11):
                buffer = bytearray(min(step, ref.num_bytes - start))
                reader.read_into(ref.offset_bytes + start, memoryview(buffer))
                assert bytes(buffer) == raw[start : start + len(buffer)].numpy().tobytes()
    streamed = dict(stream_weights(base, folder, 0.3))
    extrapolate(base, folder, tmp_path / "out", alpha=0.3, address="inline")
    assert all(same_bits(streamed[n], t) for n, t in load(tmp_path / "out").items())
    assert diagnose(base, folder, address="inline").fit


def test_adapters_on_both_sides_and_on_one(base: Path, tmp_path: Path) -> None:
    first = adapter(base, tmp_path / "sft", target_modules=["q_proj", "up_proj"])
    second = adapter(base, tmp_path / "dpo", seed=2, target_modules=["q_proj", "down_proj"])
    extrapolate(first, second, tmp_path / "out", alpha=0.3, address="inline")
    sides = by_hand(base, first), by_hand(base, second)
    stored = load(base)
    for name, tensor in load(tmp_path / "out").items():
        expected = closed_form(sides[0][name], sides[1][name], 0.3, stored[name].dtype)
        assert same_bits(tensor, expected), name
    shutil.move(base, tmp_path / "moved")
    try:
        with pytest.raises(CheckpointError, match="cannot be found") as caught:
            extrapolate(first, second, tmp_path / "out2", alpha=0.3, address="inline")
        assert "#base=" in str(caught.value.hint)
        named = f"{first}#base={tmp_path / 'moved'}"
        extrapolate(named, second, tmp_path / "out2", alpha=0.3, address="inline")
    finally:
        shutil.move(tmp_path / "moved", base)
    written = "model.safetensors"
    assert (tmp_path / "out" / written).read_bytes() == (tmp_path / "out2" / written).read_bytes()
    # An adapter before, a whole model after it.
    model = tmp_path / "whole"
    extrapolate(base, second, model, alpha=1, address="inline")
    extrapolate(first, model, tmp_path / "out3", alpha=0.3, address="inline")


def test_two_bases_are_refused(base: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(base, tmp_path / "other"))
    sides = adapter(base, tmp_path / "a"), adapter(other, tmp_path / "b", seed=2)
    with pytest.raises(PairError, match="two bases"):
        extrapolate(sides[0], f"{sides[1]}#base={other}", tmp_path / "o", alpha=1, address="inline")


def test_the_tokenizer_of_the_adapter_wins_whole(base: Path, tmp_path: Path) -> None:
    folder = adapter(base, tmp_path / "adapter")
    tokenizer = pico_tokenizer()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    extrapolate(base, folder, tmp_path / "out", alpha=0.3, address="inline")
    assert (base / "chat_template.jinja").exists()
    assert not (tmp_path / "out" / "chat_template.jinja").exists()
    assert (tmp_path / "out" / "tokenizer_config.json").read_bytes() == (
        folder / "tokenizer_config.json"
    ).read_bytes()


def test_the_output_never_lies_in_an_adapter_or_its_base(base: Path, tmp_path: Path) -> None:
    folder = adapter(base, tmp_path / "adapter")
    for output in (folder, folder / "out", base / "out"):
        with pytest.raises(ConfigError, match="never written to"):
            extrapolate(base, folder, output, alpha=1, address="inline", overwrite=True)


def test_a_changed_scaling_is_another_plan(base: Path, tmp_path: Path) -> None:
    folder = adapter(base, tmp_path / "adapter")
    before = open_checkpoint(folder).identity()
    edit(folder, lora_alpha=8)
    after = open_checkpoint(folder).identity()
    assert all(one != two for one, two in zip(before, after, strict=True))


def test_mergekit_is_not_asked_for_a_sum_it_would_not_read(base: Path, tmp_path: Path) -> None:
    folder = adapter(base, tmp_path / "adapter")
    with pytest.raises(ConfigError, match="mergekit"):
        mergekit_config(build_plan(base, folder, output_dtype="bfloat16"), 0.3)


def test_conv1d_of_gpt2_is_transposed(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=40, n_positions=16, n_embd=16, n_layer=2, n_head=2)
    model = GPT2LMHeadModel(config)
    model.save_pretrained(tmp_path / "base")
    folder = adapter(
        tmp_path / "base", tmp_path / "adapter", target_modules=["c_attn", "c_proj", "c_fc"]
    )
    expected = merged_by_peft(tmp_path / "base", folder)
    found = dict(iter_tensors(open_checkpoint(folder)))
    assert all(close(tensor, expected[name]) for name, tensor in found.items())
    # The square c_proj could be meant either way once the flag contradicts the other shapes.
    edit(folder, fan_in_fan_out=False)
    with pytest.raises(CheckpointError, match="either way") as caught:
        open_checkpoint(folder)
    assert "c_proj" in str(caught.value.where)


def edit(folder: Path, **changes: object) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture(scope="module")
def plain(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield adapter(base, tmp_path_factory.mktemp("plain") / "adapter")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"peft_type": "LOHA"}, "peft_type"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"target_parameters": ["mlp.experts"]}, "target_parameters"),
        ({"something_new": 1}, "something_new"),
        ({"r": 8}, "rank is not the one"),
        ({"lora_alpha": "x"}, "scaling cannot be read"),
        ({"lora_alpha": float("inf")}, "scaling cannot be read"),
        ({"lora_alpha": float("nan")}, "scaling cannot be read"),
        ({"alpha_pattern": {"q_proj": "x"}}, "scaling cannot be read"),
        ({"alpha_pattern": {"(": 1}}, "no regular expression"),
    ],
)
def test_settings_that_are_not_followed_are_refused_by_name(
    base: Path, plain: Path, tmp_path: Path, changes: dict, words: str
) -> None:
    folder = Path(shutil.copytree(plain, tmp_path / "adapter"))
    edit(folder, **changes)
    with pytest.raises(CheckpointError) as caught:
        extrapolate(base, folder, tmp_path / "out", alpha=1, address="inline")
    assert words in str(caught.value)
    assert not (tmp_path / "out").exists()


def rename(tensors: dict[str, torch.Tensor], part: str, other: str) -> dict[str, torch.Tensor]:
    return {name.replace(part, other): tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: rename(t, "layers.0", "layers.7"), "base does not have"),
        (lambda t: rename(t, "0.mlp.up_proj.lora_A", "0.mlp.up_proj.lora_C"), "no plain LoRA"),
        (lambda t: rename(t, "base_model.model.", "model."), "no plain LoRA"),
        (lambda t: {n: v for n, v in t.items() if "1.mlp.up_proj.lora_B" not in n}, "half"),
        (lambda t: {n: v[:, :-1].contiguous() for n, v in t.items()}, "LoRA on matrices"),
        (lambda t: t | {"base_model.model.model.norm.weight": torch.ones(3)}, "another shape"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(
    base: Path, plain: Path, tmp_path: Path, change, words: str
) -> None:
    folder = Path(shutil.copytree(plain, tmp_path / "adapter"))
    file = folder / "adapter_model.safetensors"
    save_file(change(load_file(file)), file)
    with pytest.raises(CheckpointError, match=words) as caught:
        open_checkpoint(folder, base=open_checkpoint(base))
    assert caught.value.where
    assert caught.value.exit_code == 2


def test_an_adapter_beside_a_whole_model_is_ambiguous(base: Path, tmp_path: Path) -> None:
    folder = adapter(base, tmp_path / "adapter")
    shutil.copytree(base, folder, dirs_exist_ok=True)
    with pytest.raises(CheckpointError, match="which one counts"):
        open_checkpoint(folder)


def test_a_tied_embedding_is_not_split(tmp_path: Path) -> None:
    tied = save_pair(tmp_path)[0]
    folder = adapter(tied, tmp_path / "adapter", target_modules=["embed_tokens"])
    with pytest.raises(CheckpointError, match="tied"):
        open_checkpoint(folder)


@pytest.mark.parametrize("has_config", [True, False])
def test_a_quantized_base_is_called_one(
    base: Path, plain: Path, tmp_path: Path, has_config: bool
) -> None:
    quantized = Path(shutil.copytree(base, tmp_path / "base-bnb-4bit"))
    for file in quantized.glob("*.safetensors"):
        tensors = load_file(file)
        for name in [n for n in tensors if n.endswith("_proj.weight")]:
            tensors[name] = torch.zeros(tensors[name].numel() // 2, 1, dtype=torch.uint8)
        save_file(tensors, file, metadata={"format": "pt"})
    if has_config:
        path = quantized / "config.json"
        settings = {"quantization_config": {"quant_method": "bitsandbytes"}}
        path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(f"{plain}#base={quantized}")
    words = "before quantization" if has_config else "trained on"
    assert words in str(caught.value.hint)
    assert "merge" not in str(caught.value.hint)
