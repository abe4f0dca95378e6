"""Files beside the weights: links that leave a checkpoint, pointers in place of files, sizes."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from expo_ray.checkpoints import open_checkpoint
from expo_ray.errors import CheckpointError, WorkError
from expo_ray.extrapolation import extrapolate, verify
from expo_ray.extrapolation.outputs import assembly
from expo_ray.extrapolation.outputs.publishing import push
from expo_ray.extrapolation.outputs.record import read_record
from tests.extrapolation.synthetic import file_digests, noise, write

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 9085657\n"
SECRET = "-----BEGIN PRIVATE KEY-----"
Pair = tuple[Path, Path]


def tensors(seed: int) -> dict[str, torch.Tensor]:
    return {"w": noise((4, 4), torch.bfloat16, seed)}


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return write(tmp_path / "initial", tensors(1)), write(tmp_path / "aligned", tensors(2))


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    (tmp_path / "secret").write_text(SECRET)
    return tmp_path / "secret"


def run(pair: Pair, out: Path) -> list[str]:
    return list(extrapolate(*pair, out, alpha=0.3, address="inline").notes)


def refused(pair: Pair, tmp_path: Path) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        run(pair, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    return caught.value


def test_a_licence_behind_a_link_stays_behind(pair: Pair, secret: Path, tmp_path: Path) -> None:
    (pair[1] / "LICENSE").symlink_to(secret)
    (pair[1] / "NOTICE").symlink_to("chain")
    (pair[1] / "chain").symlink_to("../secret")
    notes = run(pair, tmp_path / "out")
    assert any("links that leave" in note and "LICENSE, NOTICE" in note for note in notes)
    written = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert not any(SECRET in path.read_text(errors="ignore") for path in written)
    assert {"LICENSE", "NOTICE"} <= set(read_record(tmp_path / "out")["files_not_carried"])
    verify(tmp_path / "out", address="inline")


@pytest.mark.parametrize(
    "name", ["tokenizer_extra.json", "vocab.txt", "modeling_x.py", "code/part.py", "config.json"]
)
def test_what_a_model_needs_is_no_link_out_of_it(
    pair: Pair, secret: Path, tmp_path: Path, name: str
) -> None:
    path = pair[1] / name
    path.parent.mkdir(exist_ok=True)
    if name == "config.json":
        secret.write_text(json.dumps({"token": SECRET}))
        path.unlink()
    path.symlink_to(secret)
    error = refused(pair, tmp_path)
    assert "link that leaves" in error.message
    assert error.got == str(secret)
    assert str(error.where).endswith(name)


def test_hidden_files_are_no_part_of_a_checkpoint(pair: Pair, tmp_path: Path) -> None:
    (pair[1] / ".git").mkdir()
    (pair[1] / ".git" / "config").write_text(SECRET)
    (pair[1] / "tokenizer_x.json").symlink_to(".git/config")
    assert "link that leaves" in refused(pair, tmp_path).message


def test_links_inside_and_linked_weights_and_folders_are_fine(pair: Pair, tmp_path: Path) -> None:
    (pair[1] / "chat_template.jinja").write_text("x")
    (pair[1] / "tokenizer_config.json").symlink_to("chat_template.jinja")
    (tmp_path / "elsewhere").mkdir()
    moved = tmp_path / "elsewhere" / "shard"
    (pair[1] / "model.safetensors").rename(moved)
    (pair[1] / "model.safetensors").symlink_to(moved)
    (tmp_path / "linked").symlink_to(pair[1])
    run((pair[0], tmp_path / "linked"), tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer_config.json").read_text() == "x"
    assert not (tmp_path / "out" / "tokenizer_config.json").is_symlink()


def test_the_cache_of_the_hub_links_to_its_own_blobs(
    pair: Pair, secret: Path, tmp_path: Path
) -> None:
    (pair[1] / "tokenizer.json").write_text('{"model": {"vocab": {}}}')
    plain = tmp_path / "plain"
    run(pair, plain)
    repo = tmp_path / "models--owner--name"
    snapshot = repo / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (repo / "blobs").mkdir()
    for i, file in enumerate(sorted(pair[1].iterdir())):
        shutil.copy2(file, repo / "blobs" / f"{i:040}")
        (snapshot / file.name).symlink_to(Path("../../blobs") / f"{i:040}")
    run((pair[0], snapshot), tmp_path / "out")
    assert file_digests(tmp_path / "out") == file_digests(plain)
    (repo / "blobs" / "planted").symlink_to(secret)
    (snapshot / "tokenizer_x.json").symlink_to("../../blobs/planted")
    shutil.rmtree(tmp_path / "out")
    assert refused((pair[0], snapshot), tmp_path).got == str(secret)


def test_a_finished_output_is_not_pushed_with_links_that_leave_it(
    pair: Pair, secret: Path, tmp_path: Path
) -> None:
    run(pair, tmp_path / "out")
    (tmp_path / "out" / "README.md").unlink()
    (tmp_path / "out" / "README.md").symlink_to(secret)
    with pytest.raises(WorkError, match="lies elsewhere") as caught:
        push(tmp_path / "out", "owner/name", private=True)
    assert caught.value.got == str(secret)


def test_a_pipe_or_a_linked_folder_holds_nobody_up(pair: Pair, tmp_path: Path) -> None:
    os.mkfifo(pair[1] / "LICENSE")
    os.mkfifo(pair[1] / "tokenizer.model")
    (pair[1] / "vocab.txt").symlink_to("/dev/zero")
    (pair[1] / "loop.py").symlink_to("loop.py")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "code.py").write_text(SECRET)
    (pair[1] / "code").symlink_to(tmp_path / "foreign")
    run(pair, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("README.md", "config.json", "expo_ray.json", "model.safetensors")
    }


def test_files_beside_the_weights_have_a_limit_in_all(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assembly, "MAX_SMALL_FILE_BYTES", 100)
    for i in range(3):
        (pair[1] / f"part_{i}.py").write_text("#" * 50)
    assert "too big" in refused(pair, tmp_path).message


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize(
    "name",
    [
        *("tokenizer.json", "tokenizer.model", "model.safetensors", "config.json", "code/x.py"),
        "model.safetensors.index.json",
    ],
)
def test_pointers_of_git_lfs_are_told(pair: Pair, tmp_path: Path, side: int, name: str) -> None:
    (pair[side] / name).parent.mkdir(exist_ok=True)
    (pair[side] / name).write_text(POINTER)
    error = refused(pair, tmp_path)
    assert "Git LFS pointer" in error.message
    assert error.where == f"{pair[side]}/{name}"
    assert "git lfs pull" in str(error.hint)
    with pytest.raises(CheckpointError, match="Git LFS pointer"):
        open_checkpoint(pair[side])


def test_pointers_in_torch_files_and_adapters_are_told(pair: Pair, tmp_path: Path) -> None:
    (pair[1] / "model.safetensors").unlink()
    (pair[1] / "pytorch_model.bin").write_text(POINTER)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    settings = {"peft_type": "LORA", "r": 1, "lora_alpha": 1}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    (adapter / "adapter_model.safetensors").write_text(POINTER)
    for folder in (pair[1], adapter):
        assert "Git LFS pointer" in refused((pair[0], folder), tmp_path).message


def test_a_text_that_only_speaks_of_pointers_is_none(pair: Pair, tmp_path: Path) -> None:
    (pair[1] / "LICENSE").write_text("as in\n" + POINTER)
    (pair[1] / "code.py").write_text(POINTER + "#" * 1024)
    run(pair, tmp_path / "out")
    assert (tmp_path / "out" / "LICENSE").exists()
