from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest
import torch

from expo_ray.checkpoints import open_checkpoint
from expo_ray.errors import CheckpointError, ConfigError, PairError
from expo_ray.extrapolation import extrapolate
from expo_ray.extrapolation.pairing.pair import match_pair
from expo_ray.extrapolation.pairing.tensor_pair import Pair
from expo_ray.extrapolation.planning.plan import build_plan
from tests.extrapolation.synthetic import closed_form, load, noise, same_bits, write


def matrices(seed: int, **extra: torch.Tensor) -> dict[str, torch.Tensor]:
    return {
        "model.embed_tokens.weight": noise((12, 4), torch.bfloat16, seed),
        "model.layers.0.mlp.up_proj.weight": noise((4, 4), torch.bfloat16, seed + 1),
        **extra,
    }


def match(initial: Path, aligned: Path, **options: str) -> Pair:
    return match_pair(open_checkpoint(initial), open_checkpoint(aligned), **options)


def refused(
    folder: Path, sides: list[dict], words: str, configs: tuple[dict, dict] = ({}, {})
) -> str:
    initial = write(folder / "initial", sides[0], **configs[0])
    aligned = write(folder / "aligned", sides[1], **configs[1])
    with pytest.raises(PairError, match=words) as caught:
        extrapolate(initial, aligned, folder / "out", alpha=0.3, address="inline")
    assert caught.value.exit_code == 2
    assert not (folder / "out").exists()
    return str(caught.value)


@pytest.mark.parametrize("side", [0, 1])
def test_tensor_missing_on_one_side(tmp_path: Path, side: int) -> None:
    sides = [matrices(1), matrices(2)]
    sides[1 - side]["model.layers.1.extra"] = noise((4, 4), torch.bfloat16, 33)
    text = refused(tmp_path, sides, f"missing from {('initial', 'aligned')[side]}")
    assert "model.layers.1.extra" in text


def test_shape_mismatch_names_both(tmp_path: Path) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    sides = [matrices(1), matrices(2)]
    sides[1][name] = noise((4, 5), torch.bfloat16, 3)
    text = refused(tmp_path, sides, "two shapes")
    assert name in text
    assert "initial [4, 4], aligned [4, 5]" in text


def test_vocabulary_mismatch_is_told_from_a_shape_mismatch(tmp_path: Path) -> None:
    sides = [matrices(1), matrices(2)]
    sides[1]["model.embed_tokens.weight"] = noise((14, 4), torch.bfloat16, 3)
    text = refused(tmp_path, sides, "vocabularies", ({"vocab_size": 12}, {"vocab_size": 14}))
    assert "vocab_policy=" in text


def test_float_against_integer(tmp_path: Path) -> None:
    sides = [matrices(1, x=torch.ones(3)), matrices(2, x=torch.ones(3, dtype=torch.int64))]
    refused(tmp_path, sides, "floating-point on one side and integer")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"model_type": "llama"}, {"model_type": "mistral"}),
        ({"architectures": ["A"]}, {"architectures": ["B"]}),
        ({"num_attention_heads": 4}, {"num_attention_heads": 8}),
        ({"text_config": {"num_key_value_heads": 4}}, {"num_key_value_heads": 2}),
    ],
)
def test_different_architectures(tmp_path: Path, first: dict, second: dict) -> None:
    refused(tmp_path, [matrices(1), matrices(2)], "different architectures", (first, second))


def test_equal_weights_give_nothing_to_extrapolate(tmp_path: Path) -> None:
    initial = write(tmp_path / "initial", matrices(1))
    aligned = write(tmp_path / "aligned", matrices(1), num_shards=2)
    for pair in ((initial, aligned), (initial, initial)):
        with pytest.raises(PairError, match="nothing to extrapolate"):
            extrapolate(*pair, tmp_path / "out", alpha=0.3, address="inline")
    assert not (tmp_path / "out").exists()


def test_equal_values_of_two_dtypes_are_told_afterwards(tmp_path: Path) -> None:
    initial = write(tmp_path / "initial", matrices(1))
    same = {name: tensor.float() for name, tensor in matrices(1).items()}
    other = {name: tensor.float() for name, tensor in matrices(2).items()}
    for name, tensors, expected in (("same", same, 1), ("other", other, 0)):
        aligned = write(tmp_path / name, tensors)
        result = extrapolate(initial, aligned, tmp_path / f"o-{name}", alpha=1, address="inline")
        assert sum("hold the same values" in note for note in result.notes) == expected


def test_one_different_element_at_the_end_is_enough(tmp_path: Path) -> None:
    before = {"w": torch.zeros(300_000)}
    after = {"w": torch.zeros(300_000)}
    after["w"][-1] = 1
    initial, aligned = write(tmp_path / "i", before), write(tmp_path / "a", after)
    extrapolate(initial, aligned, tmp_path / "out", alpha=1, address="inline")
    assert load(tmp_path / "out")["w"][-1] == 2


def test_quantized_side_is_refused(tmp_path: Path) -> None:
    initial = write(tmp_path / "initial", matrices(1))
    settings = {"quantization_config": {"quant_method": "bitsandbytes"}}
    aligned = write(tmp_path / "aligned", matrices(2), **settings)
    with pytest.raises(CheckpointError, match="quantized") as caught:
        extrapolate(initial, aligned, tmp_path / "out", alpha=0.3, address="inline")
    assert "bitsandbytes" in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("seed", range(20))
def test_shards_are_as_few_as_the_limit_allows(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    sizes = [draw.choice((4, 8, 16, 40)) for _ in range(draw.randrange(1, 60))]
    tensors = {f"layers.{i}.w": noise((n, 8), torch.bfloat16, i) for i, n in enumerate(sizes)}
    pair = write(tmp_path / "initial", tensors), write(tmp_path / "aligned", tensors)
    shards = build_plan(*pair, max_shard_size=1600).shards
    assert [p.name for shard in shards for p in shard.tensors] == list(tensors)
    fewest, filled = 1, 0
    for rows in sizes:
        fewest, filled = (fewest + 1, rows) if filled + rows > 100 else (fewest, filled + rows)
    assert len(shards) == fewest
    assert max(sum(p.output_bytes for p in shard.tensors) for shard in shards) <= 1600


@pytest.mark.parametrize(("num_tensors", "expected"), [(5, [5]), (6, [3, 3]), (13, [4, 5, 4])])
def test_the_last_shard_is_no_remainder(
    tmp_path: Path, num_tensors: int, expected: list[int]
) -> None:
    tensors = {f"layers.{i}.w": noise((4, 8), torch.bfloat16, i) for i in range(num_tensors)}
    pair = write(tmp_path / "initial", tensors), write(tmp_path / "aligned", tensors)
    shards = build_plan(*pair, max_shard_size=5 * 64).shards
    assert [len(shard.tensors) for shard in shards] == expected


def test_unknown_options_are_refused(tmp_path: Path) -> None:
    initial = write(tmp_path / "initial", matrices(1))
    aligned = write(tmp_path / "aligned", matrices(2))
    for options in (
        {"output_dtype": "int8"},
        {"vocab_policy": "guess"},
        {"max_shard_size": "5 apples"},
        {"max_shard_size": "0GB"},
    ):
        with pytest.raises(ConfigError):
            extrapolate(initial, aligned, tmp_path / "o", alpha=1, address="inline", **options)
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("how", ["config", "equal bytes"])
@pytest.mark.parametrize("stored_in", ["initial", "aligned"])
def test_tied_head_stored_on_one_side_only(tmp_path: Path, how: str, stored_in: str) -> None:
    tensors = {"initial": matrices(1), "aligned": matrices(7)}
    tensors[stored_in]["lm_head.weight"] = tensors[stored_in]["model.embed_tokens.weight"].clone()
    settings = {"tie_word_embeddings": True} if how == "config" else {}
    folders = {n: write(tmp_path / n, t, **settings) for n, t in tensors.items()}
    extrapolate(folders["initial"], folders["aligned"], tmp_path / "out", alpha=2, address="inline")
    result = load(tmp_path / "out")
    # Nothing is invented, nothing is dropped: the names are those of aligned.
    assert result.keys() == tensors["aligned"].keys()
    embedding = closed_form(*(tensors[s]["model.embed_tokens.weight"] for s in tensors), 2)
    for name in result.keys() - {"model.layers.0.mlp.up_proj.weight"}:
        assert same_bits(result[name], embedding)


def test_untied_head_on_one_side_only_is_an_error(tmp_path: Path) -> None:
    sides = [matrices(1), matrices(2)]
    sides[1]["lm_head.weight"] = noise((12, 4), torch.bfloat16, 9)
    assert "lm_head.weight" in refused(tmp_path, sides, "missing from initial")


@pytest.mark.parametrize("role", ["initial", "aligned under a base"])
def test_a_head_of_its_own_is_not_dropped_because_the_output_ties_its_head(
    tmp_path: Path, role: str
) -> None:
    head = {"lm_head.weight": noise((12, 4), torch.bfloat16, 9)}
    own = write(tmp_path / "own", matrices(1) | head)
    other = write(tmp_path / "other", matrices(4) | head)
    tied = write(tmp_path / "tied", matrices(7), tie_word_embeddings=True)
    pair, onto = ((own, tied), None) if role == "initial" else ((other, own), tied)
    with pytest.raises(PairError, match="is missing from") as caught:
        extrapolate(*pair, tmp_path / "out", alpha=1, onto=onto, address="inline")
    assert "lm_head.weight" in str(caught.value.where)
    assert not (tmp_path / "out").exists()


def test_three_names_of_one_embedding(tmp_path: Path) -> None:
    """As T5: old files store shared, encoder and head; new ones store shared alone."""
    names = ("shared.weight", "encoder.embed_tokens.weight", "lm_head.weight")
    tables = [noise((12, 4), torch.bfloat16, seed) for seed in (1, 2)]
    other = [{"encoder.block.0.wi.weight": noise((4, 4), torch.bfloat16, s)} for s in (3, 4)]
    old = other[0] | {name: tables[0].clone() for name in names}
    initial = write(tmp_path / "old", old, tie_word_embeddings=True)
    aligned = write(tmp_path / "new", other[1] | {names[0]: tables[1]}, tie_word_embeddings=True)
    for pair, stored in (((initial, aligned), names[:1]), ((aligned, initial), names)):
        out = tmp_path / f"out-{len(stored)}"
        extrapolate(*pair, out, alpha=0.5, address="inline")
        result = load(out)
        assert result.keys() == {*stored, *other[0]}
        before, after = (tables[s] for s in ((0, 1) if pair[0] == initial else (1, 0)))
        for name in stored:
            assert same_bits(result[name], closed_form(before, after, 0.5))


def test_a_tie_that_the_bytes_contradict_is_an_error(tmp_path: Path) -> None:
    sides = [matrices(1), matrices(2)]
    # A second matrix of the same shape which is no copy: nothing can stand for it.
    sides[0]["encoder.embed_tokens.weight"] = noise((12, 4), torch.bfloat16, 9)
    assert "encoder.embed_tokens.weight" in refused(tmp_path, sides, "missing from aligned")


def test_buffers_are_those_of_aligned(tmp_path: Path) -> None:
    before = matrices(1) | {"ids": torch.arange(5), "flags": torch.tensor([True, False])}
    after = matrices(2) | {"ids": torch.arange(7).to(torch.int32)[2:], "flags": torch.ones(2) > 0}
    initial, aligned = write(tmp_path / "i", before), write(tmp_path / "a", after)
    for name in ("auto", "float32"):
        out = tmp_path / name
        extrapolate(initial, aligned, out, alpha=3, output_dtype=name, address="inline")
        result = load(out)
        # Other values and even another integer dtype before: aligned's, whatever the output dtype.
        assert same_bits(result["ids"], after["ids"])
        assert same_bits(result["flags"], after["flags"])


@pytest.mark.parametrize("policy", ["common-rows", "copy-aligned"])
def test_added_tokens_beside_padded_rows(tmp_path: Path, policy: str) -> None:
    """Rows padded to a multiple: tokens that only aligned has sit in padded rows of initial."""
    folders = []
    for side, rows, added, seed in (("initial", 12, 1, 1), ("aligned", 16, 3, 5)):
        tensors = matrices(seed)
        tensors["model.embed_tokens.weight"] = noise((rows, 4), torch.bfloat16, seed)
        tensors["lm_head.bias"] = noise((rows,), torch.float32, seed)
        folder = write(tmp_path / side, tensors, text_config={"vocab_size": rows})
        table = {
            "model": {"vocab": [[token, 0.0] for token in "abcdefghi"]},
            "added_tokens": [{"id": 9 + i, "content": f"<{i}>"} for i in range(added)],
        }
        (folder / "tokenizer.json").write_text(json.dumps(table))
        folders.append(folder)
    out = tmp_path / "out"
    extrapolate(*folders, out, alpha=0.5, vocab_policy=policy, address="inline")
    before, after, result = (load(folder) for folder in (*folders, out))
    for name in ("model.embed_tokens.weight", "lm_head.bias"):
        expected = after[name].clone()
        if policy == "common-rows":
            expected[:10] = closed_form(before[name][:10], after[name][:10], 0.5)
        assert same_bits(result[name], expected)


def vocabulary_pair(folder: Path, tokens: tuple[str, str] = ("abcdefghijkl", "abcdefghijklmn")):
    sides = []
    for name, text, seed in zip(("initial", "aligned"), tokens, (1, 5), strict=True):
        tensors = matrices(seed)
        tensors["model.embed_tokens.weight"] = noise((len(text), 4), torch.bfloat16, seed)
        tensors["lm_head.weight"] = noise((len(text), 4), torch.float32, seed)
        sides.append(write(folder / name, tensors, vocab_size=len(text)))
        vocabulary = {token: i for i, token in enumerate(text)}
        (folder / name / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}}))
    return sides


@pytest.mark.parametrize("grows", [True, False])
@pytest.mark.parametrize("policy", ["common-rows", "copy-aligned"])
def test_vocabularies_of_two_sizes(tmp_path: Path, grows: bool, policy: str) -> None:
    tokens = ("abcdefghijkl", "abcdefghijklmn")
    initial, aligned = vocabulary_pair(tmp_path, tokens if grows else tokens[::-1])
    out = tmp_path / "out"
    result = extrapolate(
        initial,
        aligned,
        out,
        alpha=0.5,
        vocab_policy=policy,
        address="inline",
        output_dtype="float16",
    )
    before, after, written = load(initial), load(aligned), load(out)
    num_common = 12 if policy == "common-rows" else 0
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        expected = after[name].to(torch.float16)
        expected[:num_common] = closed_form(
            before[name][:num_common], after[name][:num_common], 0.5, torch.float16
        )
        assert same_bits(written[name], expected)
        assert any(name in note for note in result.notes)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("language_model.model.w", "model.language_model.w"), "versions of transformers"),
        (("model.text_model.layers.0.w", "model.layers.0.w"), "versions of transformers"),
        (("_orig_mod.model.w", "model.w"), "torch.compile"),
        (("model.w", "module.model.w"), "DDP"),
        (("model.w", "model._fsdp_wrapped_module.w"), "FSDP"),
        (("model.w", "pretrained_model.model.w"), "value head of TRL"),
        (("model.w", "base_model.model.model.w"), "merge it with peft"),
        (("model.q_proj.base_layer.weight", "model.q_proj.weight"), "merge it with peft"),
        (("model.w", "model.other"), "initial must be the model"),
    ],
)
def test_names_that_differ_tell_their_cause(
    tmp_path: Path, names: tuple[str, str], words: str
) -> None:
    sides = [{name: noise((4, 4), torch.bfloat16, i)} for i, name in enumerate(names)]
    for first, second in (sides, sides[::-1]):
        shutil.rmtree(tmp_path, ignore_errors=True)
        assert words in refused(tmp_path, [first, second], "missing from").partition("hint:")[2]


def test_a_transposed_matrix_is_told(tmp_path: Path) -> None:
    sides = [{"w": torch.ones(4, 6)}, {"w": torch.ones(6, 4)}]
    assert "transposed" in refused(tmp_path, sides, "two shapes")


@pytest.mark.parametrize("both", [False, True])
def test_weights_that_zero3_left_empty_are_told(tmp_path: Path, both: bool) -> None:
    empty = {name: torch.empty(0) for name in matrices(1)}
    initial = write(tmp_path / "initial", empty if both else matrices(1))
    aligned = write(tmp_path / "aligned", empty)
    with pytest.raises(CheckpointError, match="ZeRO-3") as caught:
        extrapolate(initial, aligned, tmp_path / "out", alpha=0.3, address="inline")
    assert "zero_to_fp32.py" in str(caught.value.hint)
    assert caught.value.message.startswith("initial" if both else "aligned")
