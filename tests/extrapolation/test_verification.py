from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from blake3 import blake3
from safetensors.torch import load_file

from expo_ray.checkpoints import open_checkpoint
from expo_ray.errors import CheckpointError, PairError, VerifyError
from expo_ray.extrapolation import extrapolate, verify
from expo_ray.extrapolation.outputs.record import sealed
from tests.extrapolation.synthetic import write

Pair = tuple[Path, Path]


@pytest.fixture(scope="module")
def written(pico_pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("verify") / "out"
    extrapolate(*pico_pair, out, alpha=0.3, max_shard_size="20KB", address="inline")
    return out


@pytest.fixture
def copy(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "copy"))


@pytest.fixture
def one_file(pico_pair: Pair, tmp_path: Path) -> Path:
    extrapolate(*pico_pair, tmp_path / "one", alpha=0.3, address="inline")
    return tmp_path / "one"


def flip(path: Path, position: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << bit
    path.write_bytes(data)


@pytest.mark.parametrize("recompute", [True, False])
def test_untouched_output_is_fine(written: Path, recompute: bool) -> None:
    result = verify(written, recompute=recompute, address="inline").as_dict()
    assert result["ok"]
    assert result["recomputed"] is recompute
    assert result["num_tensors"] == len(open_checkpoint(written).tensors)


@pytest.mark.parametrize("recompute", [True, False])
def test_a_flipped_bit_in_any_tensor_is_found_and_named(copy: Path, recompute: bool) -> None:
    chance = random.Random(1)
    for name, ref in open_checkpoint(copy).tensors.items():
        position = ref.offset_bytes + chance.randrange(ref.num_bytes)
        bit = chance.randrange(8)
        flip(copy / ref.file, position, bit)
        with pytest.raises(VerifyError) as caught:
            verify(copy, recompute=recompute, address="inline")
        assert caught.value.exit_code == 1
        assert f"{ref.file}, tensor {name!r}" in str(caught.value.got)
        flip(copy / ref.file, position, bit)
    verify(copy, recompute=recompute, address="inline")


def test_a_flipped_bit_in_any_file_is_found_and_named(copy: Path) -> None:
    chance = random.Random(2)
    for path in sorted(copy.iterdir()):
        if path.name == "expo_ray.json":
            continue
        size = path.stat().st_size
        for position in (0, size - 1, chance.randrange(size)):
            flip(path, position)
            with pytest.raises(VerifyError) as caught:
                verify(copy, address="inline")
            assert path.name in str(caught.value.got)
            flip(path, position)


def test_every_flipped_bit_of_a_whole_checkpoint_is_found(tmp_path: Path) -> None:
    """Every bit of the weights, and one bit of every fifth byte of all other files."""
    before = {"a": torch.ones(3, 2, dtype=torch.bfloat16), "b": torch.zeros(4)}
    after = {name: tensor + 1 for name, tensor in before.items()}
    pair = write(tmp_path / "initial", before), write(tmp_path / "aligned", after)
    out = tmp_path / "out"
    extrapolate(*pair, out, alpha=0.3, address="inline")
    num_flips = 0
    for path in sorted(out.iterdir()):
        data = path.read_bytes()
        is_weights = path.suffix == ".safetensors"
        for position in range(0, len(data), 1 if is_weights else 5):
            for bit in range(8) if is_weights else [position % 8]:
                flipped = bytearray(data)
                flipped[position] ^= 1 << bit
                path.write_bytes(flipped)
                with pytest.raises((VerifyError, CheckpointError)):
                    verify(out, recompute=False, address="inline")
                num_flips += 1
        path.write_bytes(data)
    assert num_flips > 8 * (out / "model.safetensors").stat().st_size
    verify(out, address="inline")


def test_any_bit_of_a_header_counts(copy: Path) -> None:
    path = sorted(copy.glob("*.safetensors"))[0]
    end = min(r.offset_bytes for r in open_checkpoint(copy).tensors.values() if r.file == path.name)
    for position in range(0, end, 7):
        flip(path, position, position % 8)
        with pytest.raises(VerifyError, match="not what its record says"):
            verify(copy, recompute=False, address="inline")
        flip(path, position, position % 8)


def test_missing_truncated_and_foreign_files_are_found(copy: Path) -> None:
    shards = sorted(copy.glob("*.safetensors"))
    content = shards[0].read_bytes()
    shards[0].write_bytes(content[:-10])
    with pytest.raises(VerifyError, match=r"size differs"):
        verify(copy, address="inline")
    shards[0].unlink()
    with pytest.raises(VerifyError, match=f"{shards[0].name}: the file is missing"):
        verify(copy, address="inline")
    shards[0].write_bytes(content)
    (copy / "model.safetensors").write_bytes(content)
    with pytest.raises(VerifyError, match="nobody recorded"):
        verify(copy, address="inline")
    (copy / "model.safetensors").unlink()
    for name in ("adapter_config.json", "chat_template.json", "notes.txt"):
        (copy / name).write_text("{}")
        if name == "notes.txt":
            verify(copy, address="inline")
        else:
            with pytest.raises(VerifyError, match=f"{name}: a file that nobody recorded"):
                verify(copy, address="inline")
        (copy / name).unlink()


def as_schema_1(folder: Path) -> None:
    """Rewrite a record as earlier versions wrote it: SHA-256, without the algorithm's name."""

    def renamed(facts: dict[str, Any], data: bytes) -> dict[str, Any]:
        others = {key: value for key, value in facts.items() if key != "digest"}
        return {**others, "sha256": hashlib.sha256(data).hexdigest()}

    record = json.loads((folder / "expo_ray.json").read_text())
    weights = load_file(folder / "model.safetensors")
    lines, tensors = "", {}
    for name in sorted(record["tensors"]):
        data = weights[name].contiguous().view(torch.uint8).numpy().tobytes()
        tensors[name] = facts = renamed(record["tensors"][name], data)
        shape = ",".join(map(str, facts["shape"]))
        lines += f"{name} {facts['dtype']} [{shape}] {facts['sha256']}\n"
    record.pop("record_digest")
    record["schema_version"] = 1
    record["weights_digest"] = hashlib.sha256(lines.encode()).hexdigest()
    record["files"] = [renamed(e, (folder / e["name"]).read_bytes()) for e in record["files"]]
    record.pop("tensors")
    text = json.dumps(record, indent=2).removesuffix("\n}") + ',\n  "tensors": {'
    text += ",".join(f"\n    {json.dumps(n)}: {json.dumps(f)}" for n, f in tensors.items())
    head, tail = text + '\n  },\n  "record_sha256": "', '"\n}\n'
    seal = hashlib.sha256((head + "0" * 64 + tail).encode()).hexdigest()
    (folder / "expo_ray.json").write_text(head + seal + tail)


@pytest.mark.parametrize("recompute", [True, False])
def test_records_in_sha256_are_still_verified(one_file: Path, recompute: bool) -> None:
    as_schema_1(one_file)
    result = verify(one_file, address="inline", recompute=recompute)
    assert result.weights_digest.startswith("sha256:")
    flip(one_file / "model.safetensors", -1)
    with pytest.raises(VerifyError, match="weights differ"):
        verify(one_file, address="inline", recompute=recompute)


def test_the_digest_of_a_file_is_the_documented_one(one_file: Path) -> None:
    data = (one_file / "model.safetensors").read_bytes()
    record = json.loads((one_file / "expo_ray.json").read_text())
    header = data[: 8 + int.from_bytes(data[:8], "little")]
    lines = "".join(
        f"{name} {facts['dtype']} [{','.join(map(str, facts['shape']))}] "
        f"{facts['digest'].removeprefix('blake3:')}\n"
        for name, facts in sorted(record["tensors"].items())
    )
    found = {entry["name"]: entry["digest"] for entry in record["files"]}
    assert found["model.safetensors"] == f"blake3:{blake3(header + lines.encode()).hexdigest()}"
    config = (one_file / "config.json").read_bytes()
    assert found["config.json"] == f"blake3:{blake3(config).hexdigest()}"


def test_sha256sum_is_given_on_request(one_file: Path) -> None:
    found = verify(one_file, address="inline", recompute=False, sha256=True).sha256
    printed = subprocess.run(
        ["sha256sum", *found], cwd=one_file, capture_output=True, text=True, check=True
    ).stdout
    assert printed == "".join(f"{digest}  {name}\n" for name, digest in found.items())
    assert {"model.safetensors", "config.json"} <= found.keys()


def test_moved_inputs_are_given_by_hand(copy: Path, pico_pair: Pair, tmp_path: Path) -> None:
    moved = [Path(shutil.copytree(p, tmp_path / f"moved-{p.name}")) for p in pico_pair]
    text = (copy / "expo_ray.json").read_text()
    record = json.loads(text.replace(str(pico_pair[0].parent), "/gone"))
    record.pop("record_digest")
    (copy / "expo_ray.json").write_bytes(sealed(record))
    with pytest.raises(CheckpointError, match="no such") as caught:
        verify(copy, address="inline")
    assert "initial=" in str(caught.value.hint)
    assert verify(copy, initial=moved[0], aligned=moved[1], address="inline").recomputed


def test_other_inputs_give_other_weights(copy: Path, pico_pair: Pair, tmp_path: Path) -> None:
    other = tmp_path / "other"
    extrapolate(*pico_pair, other, alpha=1, address="inline")
    with pytest.raises(VerifyError, match="these inputs do not give this checkpoint"):
        verify(copy, aligned=other, address="inline")
    with pytest.raises(PairError):
        verify(copy, initial=_shrink(pico_pair[0], tmp_path / "less"), address="inline")


def _shrink(folder: Path, target: Path) -> Path:
    from safetensors.torch import save_file

    from tests.extrapolation.synthetic import load

    shutil.copytree(folder, target, ignore=shutil.ignore_patterns("*.safetensors*"))
    tensors = load(folder)
    tensors.pop("model.norm.weight")
    save_file(tensors, target / "model.safetensors")
    return target


def test_recorded_input_that_changed_is_told(pico_pair: Pair, tmp_path: Path) -> None:
    pair = [Path(shutil.copytree(p, tmp_path / p.name)) for p in pico_pair]
    extrapolate(*pair, tmp_path / "out", alpha=0.3, address="inline")
    checkpoint = open_checkpoint(pair[0])
    ref = checkpoint.tensors["model.norm.weight"]
    flip(pair[0] / ref.file, ref.offset_bytes, 3)
    with pytest.raises(VerifyError) as caught:
        verify(tmp_path / "out", address="inline")
    assert "model.norm.weight" in str(caught.value.got)
    assert "initial changed after" in str(caught.value.hint)


def test_what_is_no_output_is_refused(pico_pair: Pair, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a complete output"):
        verify(pico_pair[0], address="inline")
    (tmp_path / "expo_ray.json").write_text("{}")
    with pytest.raises(CheckpointError, match="another schema"):
        verify(tmp_path, address="inline")


def test_a_record_that_is_a_pipe_is_not_waited_for(copy: Path) -> None:
    (copy / "expo_ray.json").unlink()
    os.mkfifo(copy / "expo_ray.json")
    with pytest.raises(CheckpointError) as caught:
        verify(copy, address="inline")
    assert caught.value.got == "it is no regular file"
