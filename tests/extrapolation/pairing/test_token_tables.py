"""Tokenizers of every kind are compared, and never by what their files do not say."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers.utils import sentencepiece_model_pb2_new

from expo_ray.errors import PairError
from expo_ray.extrapolation.pairing.tensor_pair import Pair
from expo_ray.extrapolation.planning.plan import build_plan
from tests.extrapolation.synthetic import noise, write

TABLE = "model.embed_tokens.weight"
TOKENS = ["<unk>", *"abcdefg"]
SWAPPED = ["<unk>", *"bacdefg"]


def vocab_json(tokens: list[str]) -> bytes:
    return json.dumps({token: i for i, token in enumerate(tokens)}).encode()


def vocab_txt(tokens: list[str]) -> bytes:
    return "".join(f"{token}\n" for token in tokens).encode()


def pieces(tokens: list[str], **normalizer: object) -> bytes:
    model = sentencepiece_model_pb2_new.ModelProto()
    for token in tokens:
        model.pieces.add(piece=token, score=0.0)
    for key, value in normalizer.items():
        setattr(model.normalizer_spec, key, value)
    return bytes(model.SerializeToString())


def ranks(tokens: list[str]) -> bytes:
    rows = (f"{base64.b64encode(t.encode()).decode()} {i}\n" for i, t in enumerate(tokens))
    return "".join(rows).encode()


def tekken(tokens: list[str]) -> bytes:
    rows = [
        {"rank": i, "token_bytes": base64.b64encode(t.encode()).decode(), "token_str": t}
        for i, t in enumerate(tokens[1:])
    ]
    special = [{"rank": 0, "token_str": tokens[0], "is_control": True}]
    config = {"default_vocab_size": len(tokens), "default_num_special_tokens": 1}
    return json.dumps({"config": config, "vocab": rows, "special_tokens": special}).encode()


Kind = tuple[str, Callable[[list[str]], bytes]]
WITH_IDS: list[Kind] = [("vocab.json", vocab_json), ("vocab.txt", vocab_txt)]
WITHOUT_IDS: list[Kind] = [
    ("tokenizer.model", pieces),
    ("spiece.model", pieces),
    ("tokenizer.model", ranks),
    ("qwen.tiktoken", ranks),
    ("tekken.json", tekken),
]


def sides(folder: Path, *files: dict[str, bytes], rows: int = 8) -> list[Path]:
    found = []
    for name, seed, contents in zip(("initial", "aligned"), (1, 2), files, strict=True):
        table = {n: noise((rows, 4), torch.bfloat16, seed) for n in (TABLE, "model.layers.0.w")}
        found.append(write(folder / name, table, vocab_size=rows))
        for file, data in contents.items():
            (found[-1] / file).write_bytes(data)
    return found


def rows_of(pair: Pair) -> list[int | None]:
    rows: list[int | None] = []
    for run in next(p for p in pair.tensors if p.name == TABLE).runs:
        first = run.initial_start
        rows += [None if first is None else first + i for i in range(run.num_rows)]
    return rows


@pytest.mark.parametrize(("file", "make"), [*WITH_IDS, *WITHOUT_IDS])
def test_other_tokens_are_refused_and_equal_ones_pass(
    tmp_path: Path, file: str, make: Callable[[list[str]], bytes]
) -> None:
    pair = sides(tmp_path / "other", {file: make(TOKENS)}, {file: make(SWAPPED)})
    with pytest.raises(PairError, match="other tokens") as caught:
        build_plan(*pair)
    assert file in str(caught.value.where)
    assert "id 1: initial" in str(caught.value.got)
    assert "copy-aligned" in str(caught.value.hint)
    assert rows_of(build_plan(*pair, vocab_policy="copy-aligned").pair) == [None] * 8
    # A token more, in a padded row, is no disagreement.
    grown = sides(tmp_path / "grown", {file: make(TOKENS[:-1])}, {file: make(TOKENS)})
    for policy in ("refuse", "copy-aligned"):
        assert rows_of(build_plan(*grown, vocab_policy=policy).pair) == []


@pytest.mark.parametrize(("file", "make"), WITH_IDS)
def test_files_that_state_ids_place_rows(
    tmp_path: Path, file: str, make: Callable[[list[str]], bytes]
) -> None:
    pair = sides(tmp_path, {file: make(TOKENS)}, {file: make(SWAPPED)})
    plan = build_plan(*pair, vocab_policy="common-rows")
    assert rows_of(plan.pair) == [0, 2, 1, 3, 4, 5, 6, 7]


@pytest.mark.parametrize(("file", "make"), WITHOUT_IDS)
def test_files_that_do_not_are_no_ground_to_move_rows(
    tmp_path: Path, file: str, make: Callable[[list[str]], bytes]
) -> None:
    """XLM-RoBERTa shifts the pieces of its model by one, Pegasus by 103."""
    pair = sides(tmp_path, {file: make(TOKENS)}, {file: make(SWAPPED)})
    with pytest.raises(PairError, match="other tokens") as caught:
        build_plan(*pair, vocab_policy="common-rows")
    assert "tokenizer.json" in str(caught.value.hint)


@pytest.mark.parametrize("how", ["added_tokens.json", "tokenizer_config.json"])
def test_added_tokens_count(tmp_path: Path, how: str) -> None:
    files = []
    for token in ("<x>", "<y>"):
        decoder = {"added_tokens_decoder": {"7": {"content": token}}, "model_max_length": 3}
        table = {token: 7} if how == "added_tokens.json" else decoder
        files.append({"vocab.json": vocab_json(TOKENS[:7]), how: json.dumps(table).encode()})
    pair = sides(tmp_path, *files)
    with pytest.raises(PairError, match="other tokens") as caught:
        build_plan(*pair)
    assert caught.value.got == "id 7: initial '<x>', aligned '<y>'"
    plan = build_plan(*pair, vocab_policy="common-rows")
    assert rows_of(plan.pair) == [0, 1, 2, 3, 4, 5, 6, None]


def test_flags_of_a_sentencepiece_model_are_no_tokens(tmp_path: Path) -> None:
    names = ({"name": "nmt_nfkc"}, {"name": "identity", "add_dummy_prefix": False})
    files = [{"tokenizer.model": pieces(TOKENS, **flags)} for flags in names]
    assert files[0] != files[1]
    build_plan(*sides(tmp_path, *files))


def test_low_added_tokens_beside_shifted_pieces_are_no_contradiction(tmp_path: Path) -> None:
    """Only newer saves of XLM-RoBERTa list the tokens that stand before its pieces."""
    decoder = {"added_tokens_decoder": {"1": {"content": "<pad>"}}}
    files = {"tokenizer.model": pieces(TOKENS)}
    build_plan(
        *sides(tmp_path, files, {**files, "tokenizer_config.json": json.dumps(decoder).encode()})
    )


def test_files_that_cannot_be_read_are_compared_by_their_bytes(tmp_path: Path) -> None:
    same = sides(tmp_path / "same", {"x.model": b"\xff?"}, {"x.model": b"\xff?"})
    build_plan(*same)
    pair = sides(tmp_path / "other", {"x.model": b"\xff?"}, {"x.model": b"\xff!"})
    for policy in ("refuse", "common-rows"):
        with pytest.raises(PairError, match="cannot be told") as caught:
            build_plan(*pair, vocab_policy=policy)
        assert "x.model" in str(caught.value.where)
        assert "copy-aligned" in str(caught.value.hint)
    assert rows_of(build_plan(*pair, vocab_policy="copy-aligned").pair) == [None] * 8


def test_two_kinds_are_not_compared_and_that_is_said(tmp_path: Path) -> None:
    fast = json.dumps({"model": {"vocab": {t: i for i, t in enumerate(TOKENS)}}}).encode()
    pair = sides(tmp_path, {"tokenizer.model": pieces(TOKENS)}, {"tokenizer.json": fast})
    assert any("not compared" in note for note in build_plan(*pair).pair.notes)
    (pair[0] / "tokenizer.model").unlink()
    assert not build_plan(*pair).pair.notes
