"""Tensors that one side lacks: buffers are known, others pass by leave."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from expo_ray.errors import ConfigError, PairError
from expo_ray.extrapolation import diagnose, extrapolate, stream_weights, verify
from expo_ray.extrapolation.outputs.record import read_record
from tests.extrapolation.synthetic import closed_form, load, noise, same_bits, write

NAME = "model.layers.0.mlp.up_proj.weight"
BUFFERS = {
    "model.layers.0.self_attn.rotary_emb.inv_freq": torch.tensor([1.0, 0.1]),
    "transformer.h.0.attn.bias": torch.ones(1, 1, 4, 4, dtype=torch.bool),
    "transformer.h.0.attn.masked_bias": torch.tensor(-1e4),
    "gpt_neox.layers.0.attention.bias": torch.ones(1, 1, 4, 4),
    "bert.embeddings.position_ids": torch.arange(4)[None],
    "model.rotary_emb.cos_cached": noise((4, 2), torch.float32, 9),
}


def weights(seed: int, **extra: torch.Tensor) -> dict[str, torch.Tensor]:
    return {NAME: noise((4, 4), torch.bfloat16, seed), **extra}


def pair(folder: Path, first: dict, second: dict) -> tuple[Path, Path]:
    initial, aligned = weights(1, **first), weights(2, **second)
    return write(folder / "initial", initial), write(folder / "aligned", aligned)


def is_formula(out: Path, sides: tuple[Path, Path]) -> bool:
    initial, aligned = map(load, sides)
    return same_bits(load(out)[NAME], closed_form(initial[NAME], aligned[NAME], 0.3))


@pytest.mark.parametrize("name", BUFFERS)
def test_known_buffers_on_one_side_are_as_aligned_has_them(tmp_path: Path, name: str) -> None:
    for side in (0, 1):
        folder = tmp_path / str(side)
        extra = [{}, {}]
        extra[side] = {name: BUFFERS[name]}
        sides = pair(folder, *extra)
        result = extrapolate(*sides, folder / "out", alpha=0.3, address="inline")
        written = load(folder / "out")
        assert set(written) == {NAME, *extra[1]}
        assert all(same_bits(written[n], t) for n, t in extra[1].items())
        assert is_formula(folder / "out", sides)
        assert any(name in note and "buffers" in note for note in result.notes)
        assert read_record(folder / "out")["tensors_left_out"] == list(extra[0])
        verify(folder / "out", address="inline")
        streamed = dict(stream_weights(*sides, 0.3))
        assert all(same_bits(streamed[n], t) for n, t in written.items())


def test_buffers_of_both_sides_follow_the_formula_or_are_copied_where_none_holds(
    tmp_path: Path,
) -> None:
    mask, frequencies = "gpt_neox.layers.0.attention.bias", "model.rotary_emb.inv_freq"
    first = {mask: torch.ones(1, 1, 4, 4), frequencies: torch.full((4,), 0.5)}
    # Another context length, another kind of mask.
    second = {mask: torch.ones(1, 1, 8, 8, dtype=torch.uint8), frequencies: torch.ones(4)}
    sides = pair(tmp_path, first, second)
    result = extrapolate(*sides, tmp_path / "out", alpha=0.5, address="inline")
    written = load(tmp_path / "out")
    assert same_bits(written[mask], second[mask])
    assert same_bits(written[frequencies], torch.full((4,), 1.25))
    assert any("copied from aligned, as initial has them in" in note for note in result.notes)


@pytest.mark.parametrize("name", ["model.layers.0.attn.bias", "model.layers.0.my_inv_freq"])
def test_weights_are_not_taken_for_buffers(tmp_path: Path, name: str) -> None:
    sides = pair(tmp_path, {}, {name: noise((4,), torch.float32, 3)})
    with pytest.raises(PairError, match="missing from initial") as caught:
        extrapolate(*sides, tmp_path / "out", alpha=0.3, address="inline")
    assert "extra_tensors=copy:PATTERN" in str(caught.value.hint)
    assert not (tmp_path / "out").exists()


def test_unknown_tensors_pass_by_pattern(tmp_path: Path) -> None:
    extra = {"mtp.0.weight": noise((2, 2), torch.bfloat16, 3), "v_head.bias": torch.ones(1)}
    sides = pair(tmp_path, {"old.weight": torch.ones(2)}, extra)
    options = {"extra_tensors": ["copy:mtp.*", "copy:v_head.*", "copy:old.*"]}
    with pytest.raises(PairError, match="missing from initial"):
        extrapolate(*sides, tmp_path / "o", alpha=1, extra_tensors=options["extra_tensors"][1:])
    for dtype in ("auto", "float32"):
        out = tmp_path / dtype
        result = extrapolate(
            *sides, out, alpha=0.3, output_dtype=dtype, address="inline", **options
        )
        written = load(out)
        assert set(written) == {NAME, *extra}
        assert all(torch.equal(written[n].float(), t.float()) for n, t in extra.items())
        assert any("old.weight" in note and "left out" in note for note in result.notes)
        record = read_record(out)
        assert record["options"]["extra_tensors"] == options["extra_tensors"]
        assert record["tensors_left_out"] == ["old.weight"]
        assert verify(out, address="inline").num_tensors == 3
    assert is_formula(tmp_path / "auto", sides)
    assert diagnose(*sides, address="inline", **options).fit is not None
    again = extrapolate(*sides, tmp_path / "auto", alpha=0.3, address="inline", **options)
    assert again.outputs[0].status == "skipped"


@pytest.mark.parametrize("spec", ["mtp.*", "copy:", "drop:mtp.*", "copy:nothing.*", f"copy:{NAME}"])
def test_patterns_without_effect_are_refused(tmp_path: Path, spec: str) -> None:
    sides = pair(tmp_path, {}, {"mtp.w": torch.ones(2)})
    specs = ["copy:mtp.*", spec]
    with pytest.raises(ConfigError) as caught:
        extrapolate(*sides, tmp_path / "out", alpha=1, extra_tensors=specs, address="inline")
    assert caught.value.where == "extra_tensors="
    assert caught.value.got == spec


def test_a_tied_head_is_not_torn_off(tmp_path: Path) -> None:
    table = noise((8, 4), torch.bfloat16, 5)
    first = {"model.embed_tokens.weight": noise((8, 4), torch.bfloat16, 6)}
    second = {"model.embed_tokens.weight": table, "lm_head.weight": table.clone()}
    initial = write(tmp_path / "i", weights(1, **first), tie_word_embeddings=True)
    aligned = write(tmp_path / "a", weights(2, **second), tie_word_embeddings=True)
    with pytest.raises(PairError, match="one matrix with one that is extrapolated"):
        extrapolate(initial, aligned, tmp_path / "o", alpha=1, extra_tensors=["copy:lm_head.*"])
    extrapolate(initial, aligned, tmp_path / "o", alpha=1, address="inline")
    written = load(tmp_path / "o")
    assert same_bits(written["lm_head.weight"], written["model.embed_tokens.weight"])


def test_onto_a_base_with_other_buffers(tmp_path: Path) -> None:
    names = sorted(BUFFERS)
    extra = [{n: BUFFERS[n] for n in names[2 * i : 2 * i + 2]} for i in range(3)]
    initial, aligned = pair(tmp_path, extra[0], {**extra[1], "mtp.w": torch.ones(2)})
    base = write(tmp_path / "base", weights(3, **extra[2], **{"v_head.w": torch.ones(3)}))
    patterns = ["copy:mtp.*", "copy:v_head.*"]
    extrapolate(
        initial,
        aligned,
        tmp_path / "out",
        onto=base,
        alpha=1,
        extra_tensors=patterns,
        address="inline",
    )
    written = load(tmp_path / "out")
    assert set(written) == {NAME, *extra[2], "v_head.w"}
    assert all(same_bits(written[n], t) for n, t in extra[2].items())
    record = json.loads((tmp_path / "out" / "expo_ray.json").read_text())
    assert record["tensors_left_out"] == sorted({*extra[0], *extra[1], "mtp.w"})
    verify(tmp_path / "out", address="inline")
