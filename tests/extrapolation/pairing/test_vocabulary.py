"""Rows of tokens: matched by the strings of two tokenizers, or by ids without them."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch

from expo_ray.checkpoints import open_checkpoint
from expo_ray.errors import CheckpointError, ConfigError, PairError
from expo_ray.extrapolation import extrapolate, verify
from expo_ray.extrapolation.outputs.record import read_record
from expo_ray.extrapolation.pairing.vocabulary import RowRun, match_vocabularies
from expo_ray.extrapolation.planning.plan import build_plan
from tests.extrapolation.synthetic import closed_form, file_digests, load, noise, same_bits, write

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
OTHER = "model.layers.0.mlp.up_proj.weight"


def side(folder: Path, tokens: str, seed: int, *, rows: int = 0, head: bool = True) -> Path:
    """A checkpoint whose token i is the i-th letter; more rows than letters are padding."""
    rows = rows or len(tokens)
    tensors = {
        EMBEDDING: noise((rows, 8), torch.bfloat16, seed),
        # As many rows as the vocabulary, and no table of tokens.
        OTHER: noise((rows, 8) if rows == 14 else (14, 8), torch.bfloat16, seed + 1),
    }
    if head:
        tensors[HEAD] = noise((rows, 8), torch.float32, seed + 2)
        tensors["lm_head.bias"] = noise((rows,), torch.float32, seed + 3)
    write(folder, tensors, vocab_size=rows, tie_word_embeddings=not head)
    vocabulary = {token: i for i, token in enumerate(tokens)}
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}}))
    return folder


def expected_table(
    before: torch.Tensor, after: torch.Tensor, rows: list[int | None], alpha: float
) -> torch.Tensor:
    """Row by row, the plainest way."""
    result = after.clone()
    for i, j in enumerate(rows):
        if j is not None:
            result[i] = closed_form(before[j], after[i], alpha)
    return result


CASES = {
    "moved": ("abcdefghijkl", 12, "bacdefghijlk", 12),
    "inserted": ("abcdefghijkl", 12, "abXcdefghijklY", 14),
    "removed": ("abcdefghijklmn", 14, "abdefgjklmn", 11),
    "replaced": ("abcdefghijklmn", 14, "abcdXfghijklmn", 14),
    "padded": ("abcdefghij", 12, "abcdeXfghij", 14),
    "shuffled": ("abcdefghijklmn", 14, "nmXlkjihgfedcb", 14),
}


def rows_of(initial: str, initial_rows: int, aligned: str, aligned_rows: int) -> list[int | None]:
    rows: list[int | None] = []
    for i in range(aligned_rows):
        if i < len(aligned):
            rows.append(initial.index(aligned[i]) if aligned[i] in initial else None)
        else:
            rows.append(i if len(initial) <= i < initial_rows else None)
    return rows


@pytest.mark.parametrize("head", [True, False], ids=["head", "tied"])
@pytest.mark.parametrize("case", CASES)
def test_tokens_are_extrapolated_from_their_own_rows(tmp_path: Path, case: str, head: bool) -> None:
    tokens, rows, other_tokens, other_rows = CASES[case]
    initial = side(tmp_path / "i", tokens, 1, rows=rows, head=head)
    aligned = side(tmp_path / "a", other_tokens, 9, rows=other_rows, head=head)
    out = tmp_path / "out"
    options = {"alpha": [0.5, -1.0], "vocab_policy": "common-rows", "address": "inline"}
    result = extrapolate(initial, aligned, out, **options)
    before, after = load(initial), load(aligned)
    expected_rows = rows_of(*CASES[case])
    tables = [EMBEDDING, HEAD, "lm_head.bias"] if head else [EMBEDDING]
    for alpha in (0.5, -1.0):
        written = load(out / f"alpha-{alpha:g}")
        for name in tables:
            expected = expected_table(before[name], after[name], expected_rows, alpha)
            assert same_bits(written[name], expected), name
        assert same_bits(written[OTHER], closed_form(before[OTHER], after[OTHER], alpha))
    record = read_record(out / "alpha-0.5")
    found = [(i, j) for i, j in enumerate(expected_rows) if j is not None]
    assert record["vocabulary"] == {
        "policy": "common-rows",
        "matched_by": "tokens",
        "rows_initial": rows,
        "rows_aligned": other_rows,
        "rows_extrapolated": len(found),
        "rows_moved": sum(i != j for i, j in found),
        "rows_copied": other_rows - len(found),
        "tensors": sorted(tables),
    }
    assert sum(EMBEDDING in note for note in result.notes) == 1
    assert verify(out / "alpha-0.5", address="inline").recomputed


def test_many_moved_tokens_take_few_reads_and_any_chunk_gives_the_same_bytes(
    tmp_path: Path,
) -> None:
    """Tokens inserted at random: runs between them stay whole."""
    generator = random.Random(0)
    letters = [chr(0x4E00 + i) for i in range(3000)]
    others = [*letters]
    for k in range(20):
        others.insert(generator.randrange(len(others)), f"new{k}")
    sides = []
    for name, tokens, seed in (("i", letters, 1), ("a", others, 2)):
        folder = write(
            tmp_path / name,
            {EMBEDDING: noise((len(tokens), 16), torch.bfloat16, seed)},
            vocab_size=len(tokens),
        )
        table = {"model": {"vocab": {token: i for i, token in enumerate(tokens)}}}
        (folder / "tokenizer.json").write_text(json.dumps(table))
        sides.append(folder)
    plan = build_plan(*sides, vocab_policy="common-rows")
    assert plan.pair.vocabulary is not None
    assert plan.pair.vocabulary.num_extrapolated == 3000
    assert len(plan.pair.vocabulary.runs) <= 41
    rows = [letters.index(t) if t in letters else None for t in others]
    before, after = (load(folder)[EMBEDDING] for folder in sides)
    results = []
    for transforms in ((), ("dare:drop=0.5",)):
        out = tmp_path / f"out{len(transforms)}"
        options = {"vocab_policy": "common-rows", "address": "inline", "transforms": transforms}
        extrapolate(*sides, out, alpha=0.5, **options)
        results.append(load(out)[EMBEDDING])
        assert verify(out, address="inline").recomputed
    assert same_bits(results[0], expected_table(before, after, rows, 0.5))
    copied = [i for i, row in enumerate(rows) if row is None]
    assert same_bits(results[1][copied], after[copied])


def test_without_tokenizers_rows_of_one_id_belong_together(tmp_path: Path) -> None:
    initial, aligned = side(tmp_path / "i", "abcdefghijkl", 1), side(tmp_path / "a", "x" * 14, 9)
    (aligned / "tokenizer.json").unlink()
    vocabulary = match_vocabularies(
        open_checkpoint(initial), open_checkpoint(aligned), "common-rows"
    )
    assert vocabulary is not None
    assert (vocabulary.by, vocabulary.num_moved) == ("ids", 0)
    assert vocabulary.runs == (
        RowRun(start=0, num_rows=12, initial_start=0),
        RowRun(start=12, num_rows=2, initial_start=None),
    )


@pytest.mark.parametrize("case", ["moved", "replaced", "inserted", "shuffled"])
def test_refuse_names_the_first_differing_tokens(tmp_path: Path, case: str) -> None:
    tokens, rows, other_tokens, other_rows = CASES[case]
    initial = side(tmp_path / "i", tokens, 1, rows=rows)
    aligned = side(tmp_path / "a", other_tokens, 9, rows=other_rows)
    with pytest.raises(PairError) as caught:
        extrapolate(initial, aligned, tmp_path / "out", alpha=1, address="inline")
    first = next(i for i, (a, b) in enumerate(zip(tokens, other_tokens, strict=False)) if a != b)
    words = f"id {first}: initial {tokens[first]!r}, aligned {other_tokens[first]!r}"
    assert words in str(caught.value.got)
    assert str(caught.value.got).count("id ") <= 5
    assert "common-rows" in str(caught.value.hint)
    assert not (tmp_path / "out").exists()


def test_tokens_that_moved_are_refused_where_no_config_states_a_size(tmp_path: Path) -> None:
    sides = [side(tmp_path / "i", "abcd", 1), side(tmp_path / "a", "bacd", 9)]
    for folder in sides:
        config = json.loads((folder / "config.json").read_text())
        del config["vocab_size"]
        (folder / "config.json").write_text(json.dumps({**config, "llm_config": {}}))
    with pytest.raises(PairError, match="other tokens"):
        extrapolate(*sides, tmp_path / "out", alpha=1, address="inline")


def sizes_unstated(folder: Path, **settings: object) -> None:
    """Say nothing of the vocabulary's size, as a config that leaves out a default."""
    config = json.loads((folder / "config.json").read_text())
    del config["vocab_size"]
    (folder / "config.json").write_text(json.dumps({**config, **settings}))


@pytest.mark.parametrize(
    "settings",
    [{}, {"llm_config": {"vocab_size": 6}}, {"vocab_size": 4}, {"text_config": {"vocab_size": 99}}],
    ids=["left out", "elsewhere", "wrong", "wrong inside"],
)
@pytest.mark.parametrize("policy", ["common-rows", "copy-aligned"])
def test_rows_are_matched_whatever_the_config_says_of_their_number(
    tmp_path: Path, policy: str, settings: dict
) -> None:
    initial, aligned = side(tmp_path / "i", "abcdef", 1), side(tmp_path / "a", "fedcba", 9)
    for folder in (initial, aligned):
        sizes_unstated(folder, **settings)
    extrapolate(initial, aligned, tmp_path / "out", alpha=1, vocab_policy=policy, address="inline")
    before, after, written = load(initial), load(aligned), load(tmp_path / "out")
    rows: list[int | None] = [5, 4, 3, 2, 1, 0] if policy == "common-rows" else [None] * 6
    for name in (EMBEDDING, HEAD, "lm_head.bias"):
        assert same_bits(written[name], expected_table(before[name], after[name], rows, 1)), name


def test_tables_of_two_sizes_each_have_their_own_rows(tmp_path: Path) -> None:
    """As Mllama: the embedding has rows for images, the head has none."""
    folders = []
    for name, tokens, seed in (("i", "abcdef", 1), ("a", "fedcba", 9)):
        folder = side(tmp_path / name, tokens, seed)
        more = noise((8, 8), torch.bfloat16, seed + 7)
        folders.append(write(folder, load(folder) | {EMBEDDING: more}, vocab_size=6))
    options = {"alpha": 1, "vocab_policy": "common-rows", "address": "inline"}
    extrapolate(*folders, tmp_path / "out", **options)
    before, after, written = (load(folder) for folder in (*folders, tmp_path / "out"))
    rows: list[int | None] = [5, 4, 3, 2, 1, 0]
    assert same_bits(written[HEAD], expected_table(before[HEAD], after[HEAD], rows, 1))
    expected = expected_table(before[EMBEDDING], after[EMBEDDING], [*rows, 6, 7], 1)
    assert same_bits(written[EMBEDDING], expected)


@pytest.mark.parametrize("policy", ["common-rows", "copy-aligned"])
def test_moved_tokens_without_a_table_to_match_are_refused(tmp_path: Path, policy: str) -> None:
    folders = []
    for name, tokens, seed in (("i", "abcdef", 1), ("a", "fedcba", 9)):
        folder = side(tmp_path / name, tokens, seed)
        table = {"model.lookup.weight": noise((6, 8), torch.bfloat16, seed)}
        folders.append(write(folder, table))
    with pytest.raises(PairError, match="no tensor is known to have them") as caught:
        build_plan(*folders, vocab_policy=policy)
    assert "id 0: initial 'a', aligned 'f'" in str(caught.value.got)
    # Equal tokens need no table.
    (folders[1] / "tokenizer.json").write_bytes((folders[0] / "tokenizer.json").read_bytes())
    assert build_plan(*folders, vocab_policy=policy).pair.vocabulary is None


def test_small_tables_of_another_modality_are_no_tables_of_these_tokens(tmp_path: Path) -> None:
    audio = "audio_tower.embed_tokens.weight"
    folders = []
    for name, tokens, seed in (("i", "abcdef", 1), ("a", "fedcba", 9)):
        folder = side(tmp_path / name, tokens, seed)
        folders.append(write(folder, load(folder) | {audio: noise((3, 8), torch.bfloat16, seed)}))
    plan = build_plan(*folders, vocab_policy="common-rows")
    assert [p.name for p in plan.pair.tensors if p.runs] == ["lm_head.bias", HEAD, EMBEDDING]


def test_two_sizes_are_refused_with_the_tokens_that_only_one_side_has(tmp_path: Path) -> None:
    initial, aligned = side(tmp_path / "i", "abcd", 1), side(tmp_path / "a", "abcdXY", 9)
    with pytest.raises(PairError, match="two sizes") as caught:
        extrapolate(initial, aligned, tmp_path / "out", alpha=1, address="inline")
    assert "id 4: initial none, aligned 'X'; id 5: initial none" in str(caught.value.got)


def test_tokens_added_in_padded_rows_of_one_size_are_no_disagreement(tmp_path: Path) -> None:
    initial = side(tmp_path / "i", "abcdefghij", 1, rows=14)
    aligned = side(tmp_path / "a", "abcdefghijkl", 9, rows=14)
    extrapolate(initial, aligned, tmp_path / "out", alpha=1, address="inline")
    before, after = load(initial), load(aligned)
    assert same_bits(
        load(tmp_path / "out")[EMBEDDING], closed_form(*(t[EMBEDDING] for t in (before, after)), 1)
    )


def test_another_matching_is_another_plan(tmp_path: Path) -> None:
    initial, aligned = side(tmp_path / "i", "abcdef", 1), side(tmp_path / "a", "bacdef", 9)
    options = {"alpha": 1, "vocab_policy": "common-rows", "address": "inline"}
    extrapolate(initial, aligned, tmp_path / "out", **options)
    before = file_digests(tmp_path / "out")
    # The weights are the same files; only initial's tokenizer says something else now.
    vocabulary = {token: i for i, token in enumerate("abdcef")}
    (initial / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}}))
    with pytest.raises(ConfigError, match="another plan"):
        extrapolate(initial, aligned, tmp_path / "out", **options)
    assert file_digests(tmp_path / "out") == before
    extrapolate(initial, aligned, tmp_path / "other", **options)
    assert file_digests(tmp_path / "other") != before


def test_a_tensor_that_may_or_may_not_have_a_row_per_token_is_refused(tmp_path: Path) -> None:
    sides = []
    for name, tokens, seed in (("i", "abcdef", 1), ("a", "bacdef", 9)):
        folder = side(tmp_path / name, tokens, seed)
        tensors = load(folder) | {"projector.weight": noise((6, 8), torch.bfloat16, seed)}
        sides.append(write(folder, tensors, vocab_size=6))
    options = {"alpha": 1, "vocab_policy": "common-rows", "address": "inline"}
    with pytest.raises(PairError, match="cannot be told") as caught:
        extrapolate(*sides, tmp_path / "out", **options)
    assert "'projector.weight'" in str(caught.value.where)


def test_copy_aligned_copies_tables_whose_tokens_moved(tmp_path: Path) -> None:
    initial, aligned = side(tmp_path / "i", "abcdef", 1), side(tmp_path / "a", "bacdef", 9)
    options = {"alpha": 1, "vocab_policy": "copy-aligned", "address": "inline"}
    extrapolate(initial, aligned, tmp_path / "out", **options)
    before, after, written = load(initial), load(aligned), load(tmp_path / "out")
    assert same_bits(written[EMBEDDING], after[EMBEDDING])
    assert same_bits(written[OTHER], closed_form(before[OTHER], after[OTHER], 1))


def test_a_malformed_tokenizer_is_named(tmp_path: Path) -> None:
    initial, aligned = side(tmp_path / "i", "abcdef", 1), side(tmp_path / "a", "abcdefg", 9)
    (aligned / "tokenizer.json").write_text('{"model": {}}')
    with pytest.raises(CheckpointError, match="malformed"):
        extrapolate(initial, aligned, tmp_path / "o", alpha=1, address="inline")
