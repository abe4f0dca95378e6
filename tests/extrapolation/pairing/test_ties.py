"""What is one matrix under two names stays one, whatever is done by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from expo_ray.checkpoints import open_checkpoint
from expo_ray.errors import PairError
from expo_ray.extrapolation import extrapolate, verify
from expo_ray.extrapolation.pairing.ties import stored_ties
from tests.extrapolation.synthetic import closed_form, load, noise, same_bits, write

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
OTHER = "model.layers.0.mlp.up_proj.weight"


def tensors(seed: int, *, is_one: bool = True) -> dict[str, torch.Tensor]:
    table = noise((12, 8), torch.bfloat16, seed)
    head = table.clone() if is_one else noise((12, 8), torch.bfloat16, seed + 1)
    other = noise((8, 8), torch.bfloat16, seed + 2)
    return {EMBEDDING: table, HEAD: head, OTHER: other}


def both_stored(folder: Path, seed: int, **settings: object) -> Path:
    return write(folder, tensors(seed), tie_word_embeddings=True, **settings)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return both_stored(tmp_path / "initial", 1), both_stored(tmp_path / "aligned", 5)


def test_noise_is_that_of_one_name(pair: tuple[Path, Path], tmp_path: Path) -> None:
    options = {"alpha": 1, "transforms": ("dare:drop=0.5",), "address": "inline"}
    extrapolate(*pair, tmp_path / "out", **options)
    written, after = load(tmp_path / "out"), load(pair[1])
    assert same_bits(written[HEAD], written[EMBEDDING])
    assert not same_bits(written[HEAD], after[HEAD])
    assert verify(tmp_path / "out", address="inline").recomputed
    # A base of its own ties by its own config.
    base = both_stored(tmp_path / "base", 9)
    extrapolate(*pair, tmp_path / "onto", onto=base, **options)
    onto = load(tmp_path / "onto")
    assert same_bits(onto[HEAD], onto[EMBEDDING])


def test_two_alphas_are_refused_and_one_passes(pair: tuple[Path, Path], tmp_path: Path) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text(json.dumps({"default": 0.5, "rules": [{"match": "*head*", "alpha": 0}]}))
    with pytest.raises(PairError, match="tied have two alphas") as caught:
        extrapolate(*pair, tmp_path / "out", alpha_rules=rules, address="inline")
    assert HEAD in str(caught.value.where)
    assert EMBEDDING in str(caught.value.where)
    assert not (tmp_path / "out").exists()
    both = [{"match": pattern, "alpha": 2} for pattern in ("*head*", "*embed*")]
    rules.write_text(json.dumps({"default": 0.5, "rules": both}))
    extrapolate(*pair, tmp_path / "out", alpha_rules=rules, address="inline")
    before, after, written = load(pair[0]), load(pair[1]), load(tmp_path / "out")
    for name in (HEAD, EMBEDDING):
        assert same_bits(written[name], closed_form(before[name], after[name], 2))


def test_what_is_tied_by_word_alone_is_two_matrices(tmp_path: Path) -> None:
    """transformers leaves a head untied that differs from its embedding, whatever is said."""
    sides = [
        write(tmp_path / str(seed), tensors(seed, is_one=False), tie_word_embeddings=True)
        for seed in (1, 5)
    ]
    assert stored_ties(open_checkpoint(sides[1])) == {}
    rules = tmp_path / "rules.yaml"
    rules.write_text(json.dumps({"default": 0.5, "rules": [{"match": "*head*", "alpha": 0}]}))
    extrapolate(*sides, tmp_path / "out", alpha_rules=rules, address="inline")
    assert same_bits(load(tmp_path / "out")[HEAD], load(sides[1])[HEAD])


def test_a_tie_that_initial_lacks_would_be_lost(pair: tuple[Path, Path], tmp_path: Path) -> None:
    initial = write(tmp_path / "i", tensors(1, is_one=False), tie_word_embeddings=True)
    with pytest.raises(PairError, match="are not in initial") as caught:
        extrapolate(initial, pair[1], tmp_path / "out", alpha=1, address="inline")
    assert HEAD in str(caught.value.where)
    assert not (tmp_path / "out").exists()
    # Without a tie in the output there is none to lose.
    aligned = write(tmp_path / "a", tensors(5), tie_word_embeddings=False)
    extrapolate(initial, aligned, tmp_path / "out", alpha=1, address="inline")


def test_one_storage_of_a_torch_file_is_one_matrix(tmp_path: Path) -> None:
    """As T5 and BERT: what is tied there is said nowhere but in the file."""
    names = ("cls.decoder.weight", "embeddings.weight", HEAD)
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"tie_word_embeddings": True}))
    table = noise((12, 8), torch.bfloat16, 1)
    state = {names[0]: table, names[1]: table, HEAD: table.clone(), OTHER: table[:4], "b": table[0]}
    torch.save(state, folder / "pytorch_model.bin")
    assert stored_ties(open_checkpoint(folder)) == dict.fromkeys(names, names[0])
