from __future__ import annotations

import json
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save

from expo_ray.checkpoints.formats.header import build_header, parse_header, parse_strict_json
from expo_ray.errors import CheckpointError


def pack(table: object, data_bytes: int) -> tuple[bytes, int]:
    text = table if isinstance(table, bytes) else json.dumps(table).encode()
    return struct.pack("<Q", len(text)) + text, 8 + len(text) + data_bytes


def entry(dtype: str = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def refuse(table: object, data_bytes: int, words: str) -> CheckpointError:
    data, file_bytes = pack(table, data_bytes)
    with pytest.raises(CheckpointError, match=words) as caught:
        parse_header(data, file="x.safetensors", file_bytes=file_bytes)
    assert "x.safetensors" in str(caught.value)
    return caught.value


def test_reads_what_the_library_writes() -> None:
    tensors = {
        "b": torch.zeros(3, 2, dtype=torch.bfloat16),
        "a": torch.tensor(1.5),
        "empty": torch.zeros(0, 4),
        "flags": torch.tensor([True, False]),
    }
    data = save(tensors, metadata={"format": "pt"})
    header = parse_header(data, file="f", file_bytes=len(data))
    assert {r.name: (r.dtype, r.shape) for r in header.tensors} == {
        "b": ("BF16", (3, 2)),
        "a": ("F32", ()),
        "empty": ("F32", (0, 4)),
        "flags": ("BOOL", (2,)),
    }
    by_name = {r.name: r for r in header.tensors}
    raw = data[by_name["a"].offset_bytes :][:4]
    assert struct.unpack("<f", raw) == (1.5,)


def test_the_library_reads_what_we_write(tmp_path) -> None:
    entries = [("z", "BF16", (2, 3)), ("a", "F32", ()), ("none", "F32", (0,)), ("i", "I64", (1,))]
    header = build_header(entries)
    assert len(header) % 8 == 0
    assert header == build_header(entries)
    path = tmp_path / "m.safetensors"
    path.write_bytes(header + bytes(12 + 4 + 0 + 8))
    with safe_open(path, "pt") as file:
        assert set(file.keys()) == {"z", "a", "none", "i"}
        assert file.get_tensor("z").shape == (2, 3)
        assert file.metadata() == {"format": "pt"}


def test_errors_name_the_file_the_tensor_and_both_values() -> None:
    error = refuse({"w": entry(offsets=(0, 12))}, 12, "byte range does not fit")
    assert error.where is not None
    assert "'w'" in error.where
    assert (error.got, error.expected) == ("12 bytes", "8 bytes for F32 [2]")


@pytest.mark.parametrize(
    ("table", "data_bytes", "words"),
    [
        ({"w": entry()}, 7, "past the end"),
        ({"w": entry()}, 9, "belong to none"),
        ({"a": entry(), "b": entry(offsets=(4, 12))}, 12, "overlaps"),
        ({"a": entry(), "b": entry(offsets=(12, 20))}, 20, "leaves a gap"),
        ({"a": entry(offsets=(4, 12))}, 12, "leaves a gap"),
        ({"w": entry(offsets=(8, 0))}, 8, "ordered pair"),
        ({"w": entry(offsets=(-8, 0))}, 8, "ordered pair"),
        ({"w": entry(offsets=(0, 8, 8))}, 8, "ordered pair"),
        ({"w": entry(offsets=(0.0, 8.0))}, 8, "ordered pair"),
        ({"w": entry(shape=(True, 2))}, 8, "list of sizes"),
        ({"w": entry(shape=(-2,))}, 8, "list of sizes"),
        ({"w": entry(shape=(1,) * 40)}, 8, "list of sizes"),
        ({"w": entry(dtype="F33")}, 8, "unknown dtype"),
        ({"w": {**entry(), "extra": 1}}, 8, "malformed"),
        ({"w": [1]}, 8, "malformed"),
        ({"": entry()}, 8, "tensor name"),
        ({"a\nb": entry()}, 8, "tensor name"),
        ({"__metadata__": {"a": 1}, "w": entry()}, 8, "map of strings"),
        ({"__metadata__": [], "w": entry()}, 8, "map of strings"),
        (b'{"w": 1, "w": 1}', 0, "no valid JSON"),
        (b'{"w": NaN}', 0, "no valid JSON"),
        (b"{" * 100_000, 0, "no valid JSON"),
        (b'{"w": ' + b"[" * 100_000, 0, "no valid JSON"),
        (b'{"\xff": 1}', 0, "no valid JSON"),
        (b"[]", 0, "does not start"),
        (b"", 0, "does not start"),
    ],
)
def test_malformed_headers_are_refused(table: object, data_bytes: int, words: str) -> None:
    refuse(table, data_bytes, words)


def test_lengths_that_cannot_be_true_are_refused() -> None:
    for length, words in ((2**63, "too long"), (100_000_001, "too long"), (50, "past the end")):
        data = struct.pack("<Q", length) + b"{}"
        with pytest.raises(CheckpointError, match=words):
            parse_header(data, file="f", file_bytes=len(data))
    with pytest.raises(CheckpointError, match="too short"):
        parse_header(b"\x01\x00", file="f", file_bytes=2)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_random_bytes_never_crash(data: bytes) -> None:
    with pytest.raises(CheckpointError):
        parse_header(data, file="f", file_bytes=len(data))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(json_values, st.integers(0, 64))
def test_any_json_is_parsed_or_refused(table: object, data_bytes: int) -> None:
    data, file_bytes = pack(table, data_bytes)
    try:
        header = parse_header(data, file="f", file_bytes=file_bytes)
    except CheckpointError:
        return
    assert sum(ref.num_bytes for ref in header.tensors) == data_bytes


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_mutated_headers_are_parsed_consistently_or_refused(data: st.DataObject) -> None:
    original = save({"a": torch.ones(2, 3), "b": torch.ones(5, dtype=torch.float16)})
    mutated = bytearray(original)
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(mutated) - 1))
        mutated[position] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(mutated)))
    if data.draw(st.booleans()):
        mutated = mutated[:cut]
    try:
        header = parse_header(bytes(mutated), file="f", file_bytes=len(mutated))
    except CheckpointError:
        return
    end = header.data_offset_bytes
    for ref in header.tensors:
        assert ref.offset_bytes == end
        end += ref.num_bytes
    assert end == len(mutated)


def test_strict_json_refuses_repeated_keys_at_any_depth() -> None:
    with pytest.raises(CheckpointError, match="JSON") as caught:
        parse_strict_json(b'{"a": {"b": 1, "b": 2}}', file="index")
    assert "twice" in str(caught.value.got)
