"""pytorch_model.bin: read by ranges as torch reads it, and nothing inside is ever run."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from expo_ray.checkpoints import iter_tensors, open_checkpoint, weights_digest
from expo_ray.checkpoints.formats.index import read_file_header
from expo_ray.checkpoints.formats.layouts import PICKLE_INDEX_NAME
from expo_ray.checkpoints.formats.state_pickle import read_state
from expo_ray.checkpoints.opening import open_storage
from expo_ray.errors import CheckpointError
from expo_ray.extrapolation import extrapolate, verify
from tests.extrapolation.synthetic import closed_form, load, noise, same_bits, write


def save(folder: Path, state: object, name: str = "pytorch_model.bin", **options: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state, folder / name, **options)
    (folder / "config.json").write_text(json.dumps({"model_type": "x"}))
    return folder


def some_tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    floats = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
    state = {f"w.{i}": noise((3, 5), dtype, seed + i) for i, dtype in enumerate(floats)}
    for dtype in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8):
        state[str(dtype)] = torch.arange(-3, 3).to(dtype)
    state |= {"flags": torch.tensor([True, False]), "scalar": torch.tensor(2.5)}
    return state | {"empty": torch.zeros(0, 4), "row": torch.ones(1, 7)}


def refused(folder: Path, words: str) -> CheckpointError:
    with pytest.raises(CheckpointError, match=words) as caught:
        open_checkpoint(folder)
    assert "pytorch_model.bin" in str(caught.value.where)
    return caught.value


def test_every_dtype_reads_as_torch_reads_it(tmp_path: Path) -> None:
    state = some_tensors()
    state["parameter"] = torch.nn.Parameter(noise((4, 4), torch.float32, 9))
    checkpoint = open_checkpoint(save(tmp_path, OrderedDict(state)))
    found = dict(iter_tensors(checkpoint))
    assert list(found) == sorted(state)
    for name, tensor in torch.load(tmp_path / "pytorch_model.bin", weights_only=True).items():
        assert same_bits(found[name], tensor.detach()), name


def test_a_state_dict_of_a_module_with_metadata(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    found = dict(iter_tensors(open_checkpoint(save(tmp_path, module.state_dict()))))
    assert found.keys() == module.state_dict().keys()
    assert all(torch.equal(found[n], t) for n, t in module.state_dict().items())


def test_shared_storages_and_contiguous_views(tmp_path: Path) -> None:
    whole = noise((6, 4), torch.bfloat16, 1)
    state = {"embed": whole, "head": whole, "tail": whole[2:], "flat": whole.view(-1)[5:9]}
    checkpoint = open_checkpoint(save(tmp_path, state))
    for name, tensor in iter_tensors(checkpoint):
        assert same_bits(tensor, state[name].clone())
    # One storage in the file: the tied names are the same bytes.
    assert checkpoint.tensors["embed"].offset_bytes == checkpoint.tensors["head"].offset_bytes


@pytest.mark.parametrize("view", [lambda t: t.t(), lambda t: t[:, 1:], lambda t: t[::2]])
def test_views_with_gaps_are_refused_by_name(tmp_path: Path, view) -> None:
    error = refused(save(tmp_path, {"fine": torch.ones(2), "odd": view(torch.ones(4, 6))}), "gaps")
    assert "'odd'" in str(error.where)
    assert "safetensors" in str(error.hint)


def test_a_tensor_that_negates_what_is_stored_is_refused(tmp_path: Path) -> None:
    values = torch.ones(3)
    error = refused(save(tmp_path, {"w": torch._neg_view(values)}), "malformed")
    assert "neg" in str(error.got)


def sharded(folder: Path, state: dict[str, torch.Tensor]) -> Path:
    names = [f"pytorch_model-{i:05d}-of-00002.bin" for i in (1, 2)]
    weight_map = {name: names[i % 2] for i, name in enumerate(sorted(state))}
    for file in names:
        save(folder, {n: t for n, t in state.items() if weight_map[n] == file}, file)
    (folder / PICKLE_INDEX_NAME).write_text(json.dumps({"weight_map": weight_map}))
    return folder


def test_extrapolated_as_from_safetensors_and_written_as_such(tmp_path: Path) -> None:
    before, after = some_tensors(1), some_tensors(7)
    initial = save(tmp_path / "initial", before)
    aligned = sharded(tmp_path / "aligned", after)
    out = tmp_path / "out"
    extrapolate(initial, aligned, out, alpha=0.3, address="inline")
    written = load(out)
    assert written.keys() == after.keys()
    for name, tensor in written.items():
        assert same_bits(tensor, closed_form(before[name], after[name], 0.3))
    assert verify(out, address="inline").recomputed
    assert not list(out.glob("*.bin*"))
    same = [write(tmp_path / name, state) for name, state in (("i", before), ("a", after))]
    assert weights_digest(open_checkpoint(same[1])) == weights_digest(open_checkpoint(aligned))
    extrapolate(*same, tmp_path / "again", alpha=0.3, address="inline")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (
        out / "model.safetensors"
    ).read_bytes()


def test_shards_must_agree_with_their_index(tmp_path: Path) -> None:
    folder = sharded(tmp_path, some_tensors())
    (folder / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(CheckpointError, match="missing") as caught:
        open_checkpoint(folder)
    assert caught.value.got == "pytorch_model-00002-of-00002.bin"


def test_safetensors_count_where_both_are_there(tmp_path: Path) -> None:
    write(tmp_path, {"w": torch.ones(2)})
    save(tmp_path, {"w": torch.zeros(2)})
    assert open_checkpoint(tmp_path).files == ("model.safetensors",)


def test_old_format_is_refused_with_the_way_out(tmp_path: Path) -> None:
    folder = save(tmp_path, {"w": torch.ones(2)}, _use_new_zipfile_serialization=False)
    assert "save_pretrained" in str(refused(folder, "old format").hint)


class Evil:
    def __init__(self, call: object, *arguments: object) -> None:
        self.reply = (call, arguments)

    def __reduce__(self) -> tuple[object, ...]:
        return self.reply


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (Evil(os.mkdir, "ran"), "no plain tensor"),
        (Evil(eval, "open('ran', 'w')"), "no plain tensor"),
        ({"w": torch.ones(2), "extra": 3}, "no plain dict"),
        ({"state_dict": {"w": torch.ones(2)}}, "no plain dict"),
        ({1: torch.ones(2)}, "no plain dict"),
        (torch.ones(2), "no plain dict"),
        ({"w": torch.ones(2).to(torch.float8_e4m3fn)}, "no plain tensor"),
        ({"w\nx": torch.ones(2)}, "control characters"),
    ],
)
def test_anything_but_a_dict_of_tensors_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: object, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(save(tmp_path / "x", value), words)
    assert not (tmp_path / "ran").exists()


def rewrite(folder: Path, change) -> Path:
    """Write the archive again entry by entry; `change(info, data)` gives (info, data) or None."""
    path = folder / "pytorch_model.bin"
    with zipfile.ZipFile(path) as archive:
        entries = [(info, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(path, "w") as archive:
        for entry in entries:
            changed = change(*entry)
            if changed is not None:
                archive.writestr(*changed)
    return folder


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda i, d: (i, b"big") if i.filename.endswith("order") else (i, d), "big-endian"),
        (lambda i, d: None if i.filename.endswith("data/0") else (i, d), "storage is missing"),
        (lambda i, d: (i, d[:-4]) if i.filename.endswith("data/0") else (i, d), "size of a stor"),
        (lambda i, d: None if i.filename.endswith("data.pkl") else (i, d), "torch.save"),
    ],
)
def test_archives_that_contradict_themselves(tmp_path: Path, change, words: str) -> None:
    folder = save(tmp_path, {"w": torch.ones(4)})
    refused(rewrite(folder, change), words)


def test_compressed_storages_are_refused(tmp_path: Path) -> None:
    def compress(info: zipfile.ZipInfo, data: bytes) -> tuple[zipfile.ZipInfo, bytes]:
        if info.filename.endswith("data/0"):
            info.compress_type = zipfile.ZIP_DEFLATED
        return info, data

    refused(rewrite(save(tmp_path, {"w": torch.ones(400)}), compress), "compressed")


def test_the_digest_of_the_header_covers_the_values(tmp_path: Path) -> None:
    digests = set()
    for value in (1.0, 2.0):
        folder = save(tmp_path / str(value), {"w": torch.full((4,), value)})
        digests.add(read_file_header(open_storage(folder), "pytorch_model.bin").sha256)
    assert len(digests) == 2


@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_damaged_archives_raise_our_error_or_read(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    path = save(folder, {"w": torch.ones(3, 2), "v": torch.ones(5)}) / "pytorch_model.bin"
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw[: data.draw(st.integers(len(raw) // 2, len(raw)))])
    try:
        checkpoint = open_checkpoint(folder)
    except CheckpointError:
        return
    for ref in checkpoint.tensors.values():
        assert ref.offset_bytes + ref.num_bytes <= path.stat().st_size


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=60))
def test_any_pickle_is_refused_without_being_run(data: bytes) -> None:
    with pytest.raises(CheckpointError):
        read_state(data + b"c__builtin__\neval\n.", where="x")


def test_a_huge_memo_index_allocates_nothing() -> None:
    with pytest.raises(CheckpointError, match="malformed"):
        read_state(b"\x80\x02}r\xff\xff\xff\x7f.", where="x")
    with pytest.raises(CheckpointError, match="instruction"):
        read_state(pickle.dumps({"a": {1}}, protocol=4), where="x")
