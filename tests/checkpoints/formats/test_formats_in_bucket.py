"""Pickled weights and adapters in an object store read like those on a disk."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from expo_ray.checkpoints import open_checkpoint, weights_digest
from expo_ray.extrapolation import extrapolate
from tests.checkpoints.s3_server import s3_server, upload, use
from tests.extrapolation.synthetic import load, same_bits
from tests.extrapolation.test_adapters import adapter
from tests.pico import save_pair


def test_pickles_and_adapters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = save_pair(tmp_path, tie_word_embeddings=False)[0]
    lora = adapter(base, tmp_path / "lora")
    pickled = Path(shutil.copytree(base, tmp_path / "pickled"))
    state = {}
    for file in pickled.glob("model*"):
        if file.suffix == ".safetensors":
            state |= load_file(file)
        file.unlink()
    torch.save(state, pickled / "pytorch_model.bin")
    extrapolate(base, lora, tmp_path / "local", alpha=0.3, address="inline")
    with s3_server() as url:
        use(monkeypatch, url)
        remote_base = upload(url, pickled, "base")
        remote_lora = upload(url, lora, "lora")
        assert weights_digest(open_checkpoint(remote_base)) == weights_digest(open_checkpoint(base))
        assert open_checkpoint(f"{remote_lora}#base={remote_base}").uri.startswith("s3://")
        extrapolate(remote_base, remote_lora, tmp_path / "out", alpha=0.3, address="inline")
    expected = load(tmp_path / "local")
    assert all(same_bits(t, expected[name]) for name, t in load(tmp_path / "out").items())
