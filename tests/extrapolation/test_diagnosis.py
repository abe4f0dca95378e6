from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from expo_ray.errors import PairError, WorkError
from expo_ray.extrapolation import diagnose
from expo_ray.extrapolation.pairing.modules import layer_index, module_group
from tests.extrapolation.synthetic import load, noise, write

NAMES = [
    "model.embed_tokens.weight",
    "model.layers.0.self_attn.q_proj.weight",
    "model.layers.0.mlp.up_proj.weight",
    "model.layers.1.self_attn.q_proj.weight",
    "model.layers.1.mlp.up_proj.weight",
    "lm_head.weight",
]


def make(folder: Path, scale: float, seed: int = 0) -> tuple[Path, Path]:
    before = {n: noise((32, 16), torch.float32, i, 0.02) for i, n in enumerate(NAMES)}
    before["model.norm.weight"] = torch.ones(16)
    after = {
        n: t + noise(t.shape, t.dtype, 50 + i + seed, scale)
        for i, (n, t) in enumerate(before.items())
    }
    return write(folder / "initial", before), write(folder / "aligned", after)


def test_small_delta_is_fit(tmp_path: Path) -> None:
    pair = make(tmp_path, 6e-6)
    result = diagnose(*pair, address="inline", strict=True).as_dict()
    assert result["fit"] is True
    assert result["warnings"] == []
    assert result["notes"] == []
    assert result["mean_delta_rms"] == pytest.approx(6e-6, rel=0.2)
    before, after = load(pair[0]), load(pair[1])
    total = sum(float((after[n].double() - before[n].double()).square().sum()) for n in before)
    assert result["delta_norm"] == pytest.approx(total**0.5, rel=1e-4)
    assert set(result["groups"]) == {"embeddings", "attention", "mlp", "norms", "lm_head"}
    assert [row["layer"] for row in result["layers"]] == [0, 1]
    assert set(result["layers"][0]["relative_delta_by_group"]) == {"attention", "mlp"}
    json.dumps(result, allow_nan=False)


def test_tensors_that_did_not_move_are_noted_and_no_doubt(tmp_path: Path) -> None:
    """A LoRA adapter leaves all but its targets alone, and nobody did anything wrong."""
    before = {n: noise((32, 16), torch.float32, i, 0.02) for i, n in enumerate(NAMES)}
    after = {**before, NAMES[1]: before[NAMES[1]] * 1.0001}
    pair = write(tmp_path / "initial", before), write(tmp_path / "aligned", after)
    result = diagnose(*pair, address="inline")
    assert (result.fit, result.warnings) == (True, ())
    [note] = result.notes
    assert note.startswith("5 of 6 tensors are the same in both models")
    assert NAMES[0] in note


def test_layers_of_two_towers_are_told_apart(tmp_path: Path) -> None:
    names = [f"model.{tower}.layers.0.mlp.w" for tower in ("language_model", "vision_tower")]
    before = {name: noise((8, 8), torch.float32, i) for i, name in enumerate(names)}
    after = {names[0]: before[names[0]] * 1.01, names[1]: before[names[1]] * 1.02}
    pair = write(tmp_path / "initial", before), write(tmp_path / "aligned", after)
    result = diagnose(*pair, address="inline").as_dict()
    found = {(row["stack"], row["layer"]): row["relative_delta"] for row in result["layers"]}
    expected = {("model.language_model.layers", 0): 0.01, ("model.vision_tower.layers", 0): 0.02}
    assert found == pytest.approx(expected, rel=1e-4)


def test_supervised_tuning_scale_is_doubted_of_models_of_the_published_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = make(tmp_path, 3e-4)
    small = diagnose(*pair, address="inline")
    assert (small.fit, small.warnings) == (True, ())
    monkeypatch.setattr("expo_ray.extrapolation.diagnosis.SMALL_MODEL", 1000)
    result = diagnose(*pair, address="inline")
    assert result.fit
    assert any("supervised" in warning for warning in result.warnings)


def test_unrelated_models_are_unfit(tmp_path: Path) -> None:
    first, _ = make(tmp_path / "a", 0.0, seed=1)
    other = {n: noise((32, 16), torch.float32, 900 + i, 0.02) for i, n in enumerate(NAMES)}
    other["model.norm.weight"] = torch.ones(16)
    second = write(tmp_path / "b", other)
    result = diagnose(first, second, address="inline")
    assert not result.fit
    assert "unrelated" in result.warnings[0]
    assert result.identical == ("model.norm.weight",)
    with pytest.raises(WorkError, match="not fit") as caught:
        diagnose(first, second, address="inline", strict=True)
    assert caught.value.exit_code == 1


def test_identical_and_nonfinite_pairs_are_unfit(tmp_path: Path) -> None:
    first, second = make(tmp_path / "a", 1e-5)
    result = diagnose(first, first, address="inline")
    assert not result.fit
    assert len(result.identical) == len(NAMES) + 1
    tensors = load(second)
    tensors["lm_head.weight"][3, 3] = float("nan")
    result = diagnose(first, write(tmp_path / "nan", tensors), address="inline")
    assert not result.fit
    assert "lm_head.weight" in result.warnings[0]
    assert result.total["num_nonfinite"] == 1
    json.dumps(result.as_dict(), allow_nan=False)


def test_pairs_that_cannot_be_compared_are_refused(tmp_path: Path) -> None:
    first, second = make(tmp_path, 1e-5)
    tensors = load(second)
    del tensors["lm_head.weight"]
    with pytest.raises(PairError):
        diagnose(first, write(tmp_path / "less", tensors), address="inline")


@pytest.mark.parametrize(
    ("name", "group", "layer"),
    [
        ("model.layers.11.post_attention_layernorm.weight", "norms", 11),
        ("model.layers.3.self_attn.q_norm.weight", "norms", 3),
        ("transformer.h.5.attn.c_attn.weight", "attention", 5),
        ("transformer.h.5.mlp.c_fc.weight", "mlp", 5),
        ("transformer.wte.weight", "embeddings", None),
        ("transformer.ln_f.bias", "norms", None),
        ("model.layers.0.block_sparse_moe.experts.3.w1.weight", "mlp", 0),
        ("encoder.block.2.layer.0.SelfAttention.k.weight", "attention", 2),
        ("encoder.block.2.layer.1.DenseReluDense.wi_0.weight", "mlp", 2),
        ("model.layers.0.mixer.A_log", "other", 0),
        ("score.weight", "lm_head", None),
        ("shared.weight", "embeddings", None),
    ],
)
def test_names_are_sorted_into_modules(name: str, group: str, layer: int | None) -> None:
    assert module_group(name) == group
    assert layer_index(name) == layer
