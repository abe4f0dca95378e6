from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from blake3 import blake3
from safetensors.torch import load_file, save_file

from expo_ray.checkpoints import iter_tensors, open_checkpoint, weights_digest
from expo_ray.checkpoints.digests import WeightsDigest
from expo_ray.checkpoints.opening import open_storage
from expo_ray.checkpoints.quantization import quantization_of, refuse_quantized
from expo_ray.checkpoints.sidecars import is_sidecar
from expo_ray.errors import CheckpointError

INDEX = "model.safetensors.index.json"
INT32 = torch.ones(2, 2, dtype=torch.int32)
BYTES = torch.ones(2, 2, dtype=torch.uint8)
PLAIN = torch.ones(2, 2)


@pytest.fixture
def copy(pico_pair: tuple[Path, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(pico_pair[1], tmp_path / "copy"))


def edit_index(folder: Path, name: str, file: str | None) -> None:
    index = json.loads((folder / INDEX).read_text())
    if file is None:
        del index["weight_map"][name]
    else:
        index["weight_map"][name] = file
    (folder / INDEX).write_text(json.dumps(index))


def make(folder: Path, tensors: dict[str, torch.Tensor], **config: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"model_type": "x", **config}))
    return folder


def test_sharded_checkpoint_is_read_from_headers(pico_pair: tuple[Path, Path]) -> None:
    checkpoint = open_checkpoint(pico_pair[1])
    stored = {}
    for file in checkpoint.files:
        stored.update(load_file(pico_pair[1] / file))
    assert len(checkpoint.files) > 1
    assert {n: r.shape for n, r in checkpoint.tensors.items()} == {
        n: tuple(t.shape) for n, t in stored.items()
    }
    assert checkpoint.num_parameters == sum(t.numel() for t in stored.values())
    assert checkpoint.config["model_type"] == "llama"
    assert "tokenizer.json" in checkpoint.sidecars
    read = dict(iter_tensors(checkpoint))
    assert list(read) == sorted(stored)
    assert all(torch.equal(read[name], stored[name]) for name in stored)


def test_identity_names_size_header_and_time_of_every_file(copy: Path) -> None:
    before = open_checkpoint(copy).identity()
    assert [set(e) for e in before] == [{"uri", "bytes", "header_sha256", "mtime"}] * len(before)
    file = Path(str(before[0]["uri"]))
    file.write_bytes(file.read_bytes())
    after = open_checkpoint(copy).identity()
    assert after[0] != before[0]
    assert after[1:] == before[1:]


def test_weights_digest_is_the_documented_one_and_ignores_the_layout(
    pico_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(pico_pair[1])
    tensors = dict(iter_tensors(checkpoint))
    lines = ""
    digest = WeightsDigest()
    for name in sorted(tensors):
        raw = tensors[name].contiguous().view(torch.uint8).numpy().tobytes()
        shape = ",".join(map(str, tensors[name].shape))
        lines += f"{name} BF16 [{shape}] {blake3(raw).hexdigest()}\n"
    for name in reversed(tensors):
        digest.add(name, tensors[name], "BF16", tensors[name].shape)
    expected = f"blake3:{blake3(lines.encode()).hexdigest()}"
    single = make(tmp_path / "single", tensors)
    assert weights_digest(checkpoint) == expected
    assert weights_digest(open_checkpoint(single)) == expected
    assert digest.written() == expected
    with pytest.raises(ValueError, match="twice"):
        digest.add(name, tensors[name], "BF16", tensors[name].shape)


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("../model-00001-of-00003.safetensors", "outside the checkpoint folder"),
        ("sub/../../x.safetensors", "outside the checkpoint folder"),
        ("/etc/passwd", "outside the checkpoint folder"),
        ("..\\x.safetensors", "outside the checkpoint folder"),
        (".x.safetensors", "hidden"),
        ("./x.safetensors", "hidden file, or one by a path that is not plain"),
        ("a/b/c/x.safetensors", "folders deep"),
        ("notes.txt", "no .safetensors file"),
        ("sub/x.safetensors", "names a file that is missing"),
        ("x\x1b[2J.safetensors", "control characters"),
        ("", "no name"),
    ],
)
def test_paths_of_an_index_stay_in_the_folder(copy: Path, file: str, words: str) -> None:
    edit_index(copy, "model.norm.weight", file)
    with pytest.raises(CheckpointError, match=re.escape(words)) as caught:
        open_checkpoint(copy)
    assert caught.value.got in (file, ascii(file))
    assert "\x1b" not in str(caught.value)


def test_an_index_may_point_into_a_folder_of_the_checkpoint(copy: Path) -> None:
    before = weights_digest(open_checkpoint(copy))
    (copy / "weights").mkdir()
    name = "model-00001-of-00003.safetensors"
    (copy / name).rename(copy / "weights" / name)
    index = (copy / INDEX).read_text().replace(f'"{name}"', f'"weights/{name}"')
    (copy / INDEX).write_text(index)
    checkpoint = open_checkpoint(copy)
    assert weights_digest(checkpoint) == before
    assert f"weights/{name}" in checkpoint.files


def test_index_must_agree_with_the_files(copy: Path) -> None:
    edit_index(copy, "model.norm.weight", "model-00001-of-00003.safetensors")
    with pytest.raises(CheckpointError, match="file that does not hold it") as caught:
        open_checkpoint(copy)
    assert "model.norm.weight" in str(caught.value.where)


def test_unlisted_tensor_is_refused(copy: Path) -> None:
    edit_index(copy, "model.norm.weight", None)
    with pytest.raises(CheckpointError, match="does not list"):
        open_checkpoint(copy)


def test_tensor_listed_nowhere_is_refused(copy: Path) -> None:
    edit_index(copy, "model.extra.weight", "model-00001-of-00003.safetensors")
    with pytest.raises(CheckpointError, match="file that does not hold it"):
        open_checkpoint(copy)


def test_missing_shard_is_named(copy: Path) -> None:
    (copy / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match="missing") as caught:
        open_checkpoint(copy)
    assert caught.value.got == "model-00002-of-00003.safetensors"


def test_truncated_shard_is_refused(copy: Path) -> None:
    path = copy / "model-00002-of-00003.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="past the end of the file"):
        open_checkpoint(copy)


def test_index_beside_a_single_file_is_ambiguous(copy: Path) -> None:
    shutil.copy(copy / "model-00002-of-00003.safetensors", copy / "model.safetensors")
    with pytest.raises(CheckpointError, match="which one counts"):
        open_checkpoint(copy)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("weights.bin", "pytorch_model.bin"),
        ("adapter_model.safetensors", "LoRA"),
        ("model.gguf", "GGUF"),
        ("notes.txt", "path"),
        ("unknown.safetensors", "rename it to model.safetensors"),
        ("consolidated.00.pth", "Meta"),
        ("zero_to_fp32.py", "zero_to_fp32.py . OUTPUT"),
        ("global_step10/mp_rank_00_model_states.pt", "ZeRO"),
        ("pytorch_model_fsdp_0/__0_0.distcp", "accelerate merge-weights"),
        ("model.ckpt", "training checkpoint"),
        ("tf_model.h5", "TensorFlow"),
        ("flax_model.msgpack", "Flax"),
        ("model.onnx", "ONNX"),
        ("config.json", "the weights are not"),
        ("tokenizer.json", "only a tokenizer"),
        ("training_args.bin", "path"),
        ("checkpoint-100/model.safetensors", "give one of them: checkpoint-100"),
        ("helpful/adapter_config.json", "give one of them: helpful"),
    ],
)
def test_folder_without_weights_says_what_it_has(tmp_path: Path, name: str, hint: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(CheckpointError, match="no weights that can be read") as caught:
        open_checkpoint(tmp_path)
    assert hint in str(caught.value.hint)


def test_several_folders_of_models_are_listed_in_order(tmp_path: Path) -> None:
    for name in ("checkpoint-1000", "checkpoint-200", "last"):
        make(tmp_path / name, {"w": PLAIN})
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path)
    assert str(caught.value.hint).endswith("checkpoint-200, checkpoint-1000, last")


SPLIT = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


@pytest.mark.parametrize(
    "files",
    [
        ("consolidated.safetensors",),
        ("model.fp16.safetensors",),
        ("model-00001-of-00001.safetensors",),
        ("consolidated-00001-of-00002.safetensors", "consolidated-00002-of-00002.safetensors"),
        ("model.fp16-00001-of-00002.safetensors", "model.fp16-00002-of-00002.safetensors"),
        SPLIT,
        (*SPLIT, "model.fp16.safetensors.index.json"),
        (*SPLIT, "model.safetensors.index.fp16.json"),
        ("pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"),
        ("pytorch_model.fp16.bin",),
    ],
)
def test_weights_by_other_names_are_read(tmp_path: Path, files: tuple[str, ...]) -> None:
    tensors = {"a": PLAIN, "b": PLAIN * 2}
    expected = weights_digest(open_checkpoint(make(tmp_path / "plain", tensors)))
    folder = make(tmp_path / "other", tensors)
    (folder / "model.safetensors").unlink()
    *_, last = files
    if last.endswith(".json"):
        claims = dict(zip(tensors, files, strict=False))
        (folder / last).write_text(json.dumps({"weight_map": claims}))
        files = files[:-1]
    names = [["a"], ["b"]] if len(files) > 1 else [["a", "b"]]
    for file, part in zip(files, names, strict=True):
        save = torch.save if file.endswith(".bin") else save_file
        save({name: tensors[name].clone() for name in part}, folder / file)
    checkpoint = open_checkpoint(folder)
    assert checkpoint.files == tuple(files)
    assert weights_digest(checkpoint) == expected


def test_missing_shards_are_named_without_an_index(tmp_path: Path) -> None:
    folder = make(tmp_path, {"w": PLAIN})
    (folder / "model.safetensors").rename(folder / "model-00002-of-00003.safetensors")
    with pytest.raises(CheckpointError, match="some of the shards are missing") as caught:
        open_checkpoint(folder)
    assert "1 of 3" in str(caught.value.got)
    assert "model-00001-of-00003.safetensors, model-00003" in str(caught.value.got)


def test_of_several_variants_none_is_guessed(tmp_path: Path) -> None:
    folder = make(tmp_path, {"w": PLAIN})
    shutil.copy(folder / "model.safetensors", folder / "model.fp16.safetensors")
    assert open_checkpoint(folder).files == ("model.safetensors",)
    (folder / "model.safetensors").rename(folder / "model.fp32.safetensors")
    with pytest.raises(CheckpointError, match="which one counts") as caught:
        open_checkpoint(folder)
    assert caught.value.got == "model.fp16.safetensors, model.fp32.safetensors"


@pytest.mark.parametrize(
    ("name", "hint"), [("m.gguf", "GGUF"), ("m.tar", "unpack"), ("m.safetensors", "the folder: ")]
)
def test_a_file_is_no_checkpoint(tmp_path: Path, name: str, hint: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(CheckpointError, match="this is a file") as caught:
        open_checkpoint(tmp_path / name)
    assert hint in str(caught.value.hint)


def test_a_config_of_another_format_is_told(tmp_path: Path) -> None:
    folder = make(tmp_path, {"w": PLAIN})
    (folder / "config.json").rename(folder / "params.json")
    with pytest.raises(CheckpointError, match=r"config\.json is missing") as caught:
        open_checkpoint(folder)
    assert "Mistral" in str(caught.value.hint)


@pytest.mark.parametrize("uri", ["ftp://host/model", "hf://a/b", "/no/such/folder", "owner/name"])
def test_addresses_that_do_not_work_are_refused(uri: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(uri)
    assert caught.value.exit_code == 2
    assert caught.value.hint


def test_missing_config_is_refused(copy: Path) -> None:
    (copy / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        open_checkpoint(copy)


def test_unfinished_output_is_no_checkpoint(copy: Path) -> None:
    (copy / ".expo_ray").mkdir()
    with pytest.raises(CheckpointError, match="unfinished"):
        open_checkpoint(copy)


@pytest.mark.parametrize("section", ["", "text_config", "vision_config"])
@pytest.mark.parametrize("kind", ["gptq", "awq", "bitsandbytes", "mxfp4", "fp8", "hqq", "torchao"])
def test_quantization_in_the_config_is_refused_by_name(
    tmp_path: Path, kind: str, section: str
) -> None:
    settings: dict[str, object] = {"quantization_config": {"quant_method": kind}}
    config = {section: settings} if section else settings
    with pytest.raises(CheckpointError, match="quantized") as caught:
        refuse_quantized(open_checkpoint(make(tmp_path, {"w": PLAIN}, **config)))
    assert str(caught.value.got).startswith(kind)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("kind", "name", "tensor"),
    [
        ("F8_E4M3", "l.weight", PLAIN.to(torch.float8_e4m3fn)),
        ("F8_E5M2", "l.weight", PLAIN.to(torch.float8_e5m2)),
        ("fp8", "l.weight_scale_inv", PLAIN),
        ("gptq or awq", "l.qweight", INT32),
        ("gptq or awq", "l.qzeros", INT32),
        ("gptq", "l.g_idx", INT32),
        ("bitsandbytes", "l.weight.absmax", PLAIN),
        ("bitsandbytes", "l.weight.quant_state.bitsandbytes__nf4", BYTES),
        ("bitsandbytes", "l.SCB", PLAIN),
        ("mxfp4", "model.layers.0.mlp.experts.gate_up_proj_blocks", BYTES),
        ("mxfp4", "model.layers.0.mlp.experts.down_proj_scales", BYTES),
        ("compressed-tensors", "l.weight_packed", INT32),
        ("hqq", "l.W_q", BYTES),
        ("quanto", "l.weight._data", BYTES),
    ],
)
def test_quantized_tensors_are_refused_by_name_without_a_config(
    tmp_path: Path, kind: str, name: str, tensor: torch.Tensor
) -> None:
    with pytest.raises(CheckpointError, match="quantized") as caught:
        refuse_quantized(open_checkpoint(make(tmp_path, {name: tensor})))
    assert caught.value.got == f"{kind} (tensor {name!r})"


def test_plain_weights_pass(tmp_path: Path) -> None:
    tensors = {"w": PLAIN, "sinks_scales": PLAIN + 1, "ids": INT32, "mask_blocks": INT32 + 1}
    checkpoint = open_checkpoint(make(tmp_path, tensors, quantization_config=None))
    assert quantization_of(checkpoint) is None


@pytest.mark.parametrize(
    ("name", "carried"),
    [
        ("tokenizer.json", True),
        ("tokenizer.model", True),
        ("generation_config.json", True),
        ("chat_template.jinja", True),
        ("additional_chat_templates/tool.jinja", True),
        ("preprocessor_config.json", True),
        ("modeling_custom.py", True),
        ("LICENSE.txt", True),
        ("license", True),
        ("USE_POLICY.md", True),
        ("vocab.json", True),
        ("merges.txt", True),
        ("tekken.json", True),
        ("SYSTEM_PROMPT.txt", True),
        ("normalizer.json", True),
        ("source.spm", True),
        ("bpe.codes", True),
        ("dict.txt", True),
        ("entity_vocab.json", True),
        ("image_processor_config.json", True),
        ("custom_generate/generate.py", True),
        ("custom_generate/requirements.txt", True),
        ("layers/attention.py", True),
        ("additional_chat_templates/a/b.jinja", True),
        ("wandb/run/train.py", False),
        ("checkpoint-100/modeling.py", False),
        ("docs/tokenizer.json", False),
        ("docs/LICENSE", False),
        ("training_args.bin", False),
        ("optimizer.pt", False),
        ("trainer_state.json", False),
        ("pytorch_model.bin", False),
        ("consolidated.safetensors", False),
        ("checkpoint-100/tokenizer.json", False),
        ("events.out.tfevents", False),
    ],
)
def test_sidecars_are_told_from_leftovers(name: str, carried: bool) -> None:
    assert is_sidecar(name) is carried


@contextlib.contextmanager
def unprivileged() -> Iterator[None]:
    """Be nobody for a while, where the tests run as root, who may read everything."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_what_may_not_be_read_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "closed" / "model"
    folder.mkdir(parents=True)
    storage = open_storage(folder)
    tmp_path.joinpath("closed").chmod(0)
    try:
        with unprivileged():
            for read in (lambda: open_storage(folder), storage.list_files):
                with pytest.raises(CheckpointError, match="cannot be read") as caught:
                    read()
                assert "Permission denied" in str(caught.value.got)
    finally:
        tmp_path.joinpath("closed").chmod(0o700)
    with pytest.raises(CheckpointError, match="cannot be read"):
        open_storage(tmp_path / ("long" * 100))


@pytest.mark.parametrize(
    "names",
    [
        ("model-00001-of-00001.safetensors", "consolidated.safetensors"),
        ("model-00001-of-00001.safetensors", "model.fp16.safetensors"),
    ],
)
def test_several_sets_of_weights_are_not_chosen_from(copy: Path, names: tuple[str, str]) -> None:
    (copy / INDEX).unlink()
    first = next(copy.glob("*.safetensors")).read_bytes()
    for file in copy.glob("*.safetensors"):
        file.unlink()
    for name in names:
        (copy / name).write_bytes(first)
    with pytest.raises(CheckpointError, match="several sets of weights"):
        open_checkpoint(copy)


def test_shards_by_the_older_names_are_shards(copy: Path) -> None:
    (copy / INDEX).unlink()
    files = sorted(copy.glob("*.safetensors"))
    for number, file in enumerate(files, 1):
        file.rename(copy / f"model.{number:05d}-of-{len(files):05d}.safetensors")
    assert open_checkpoint(copy).tensors
    (copy / f"model.{len(files):05d}-of-{len(files):05d}.safetensors").unlink()
    with pytest.raises(CheckpointError, match="some of the shards are missing"):
        open_checkpoint(copy)
