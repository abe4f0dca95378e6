"""The three-model form: delta of a pair added to another checkpoint, against plain torch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from expo_ray.errors import ConfigError, PairError, VerifyError
from expo_ray.extrapolation import extrapolate, verify
from expo_ray.extrapolation.outputs.record import read_record
from tests.extrapolation.synthetic import file_digests, load, noise, same_bits, write

SHAPES = {"embed.weight": (40, 16), "layers.0.mlp.weight": (33, 16), "norm.weight": (16,)}


def tensors(seed: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    found = {n: noise(s, dtype, 10 * seed + i) for i, (n, s) in enumerate(SHAPES.items())}
    return {**found, "steps": torch.tensor([seed])}


@pytest.fixture
def models(tmp_path: Path) -> dict[str, Path]:
    """Three layouts and three dtypes; base has a config and tokenizer of its own."""
    dtypes = {"initial": torch.float32, "aligned": torch.bfloat16, "base": torch.float16}
    found = {
        name: write(
            tmp_path / name, tensors(i, dtype), num_shards=i + 1, note=name, torch_dtype=str(dtype)
        )
        for i, (name, dtype) in enumerate(dtypes.items())
    }
    (found["base"] / "tokenizer_config.json").write_text('{"of": "base"}')
    (found["aligned"] / "tokenizer_config.json").write_text('{"of": "aligned"}')
    return found


def expected(models: dict[str, Path], alpha: float) -> dict[str, torch.Tensor]:
    initial, aligned, base = (load(models[name]) for name in ("initial", "aligned", "base"))
    factor = torch.tensor(alpha, dtype=torch.float32)
    return {
        name: (base[name].float() + factor * (aligned[name].float() - initial[name].float())).to(
            base[name].dtype
        )
        if base[name].dtype.is_floating_point
        else base[name]
        for name in base
    }


def pair(models: dict[str, Path]) -> tuple[Path, Path]:
    return models["initial"], models["aligned"]


def test_every_bit_is_that_of_the_formula(models: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = extrapolate(
        *pair(models), out, alpha=[0.3, -1.0], onto=models["base"], address="inline"
    )
    for name, alpha in (("alpha-0.3", 0.3), ("alpha--1", -1.0)):
        written, wanted = load(out / name), expected(models, alpha)
        assert written.keys() == wanted.keys()
        assert all(same_bits(written[n], wanted[n]) for n in wanted)
        record = read_record(out / name)
        assert record["onto"]["uri"] == str(models["base"])
        assert record["formula"].startswith("(base.float() + alpha")
        assert json.loads((out / name / "config.json").read_text())["note"] == "base"
        assert json.loads((out / name / "tokenizer_config.json").read_text()) == {"of": "base"}
        card = (out / name / "README.md").read_text()
        assert "| base | `base` |" in card
        assert "theta2 = base + alpha * (theta1 - theta0)" in card
        verify(out / name, address="inline")
    weights = [f for m in models.values() for f in m.glob("*.safetensors")]
    headers = sum(8 + int.from_bytes(f.read_bytes()[:8], "little") for f in weights)
    # The integers of initial and aligned are not needed.
    assert result.bytes_read == sum(f.stat().st_size for f in weights) - headers - 16


@pytest.mark.parametrize("transform", ["magnitude:keep=0.3", "svd:rank=2", "dare:drop=0.5,seed=1"])
def test_transforms_change_delta_alone(
    transform: str, models: dict[str, Path], tmp_path: Path
) -> None:
    """With initial as base, alpha 1 onto it is what alpha 0 would be on the transformed pair."""
    options = {"alpha": 1.0, "transforms": [transform], "output_dtype": "float32"}
    extrapolate(*pair(models), tmp_path / "a", onto=models["initial"], address="inline", **options)
    extrapolate(*pair(models), tmp_path / "b", address="inline", **options)
    one, two = load(tmp_path / "a"), load(tmp_path / "b")
    initial, aligned = map(load, pair(models))
    for name in SHAPES:
        first = one[name] - initial[name]
        second = two[name] - aligned[name].float()
        assert torch.count_nonzero(first) > 0
        torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-5)


def test_rules_apply(models: dict[str, Path], tmp_path: Path) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text("- {match: 'embed*', alpha: 0}\n- {match: '*', alpha: 2}\n")
    extrapolate(
        *pair(models), tmp_path / "out", onto=models["base"], alpha_rules=rules, address="inline"
    )
    written, twice, none = load(tmp_path / "out"), expected(models, 2.0), expected(models, 0.0)
    assert same_bits(written["embed.weight"], none["embed.weight"])
    assert same_bits(written["norm.weight"], twice["norm.weight"])


def test_the_bytes_depend_on_neither_chunks_nor_a_resume(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"alpha": 0.5, "onto": models["base"], "address": "inline", "max_shard_size": "1KB"}
    extrapolate(*pair(models), tmp_path / "a", **options)
    again = extrapolate(*pair(models), tmp_path / "a", **options)
    assert again.outputs[0].status == "skipped"
    monkeypatch.setattr("expo_ray.extrapolation.shards.engine.MIN_CHUNK_BYTES", 64)
    monkeypatch.setattr("expo_ray.extrapolation.shards.engine.BUFFER_BUDGET_BYTES", 1)
    extrapolate(*pair(models), tmp_path / "b", **options)
    assert file_digests(tmp_path / "a") == file_digests(tmp_path / "b")


def test_verify_notices_another_base(models: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    extrapolate(*pair(models), out, alpha=0.5, onto=models["base"], address="inline")
    moved = models["base"].rename(tmp_path / "moved")
    verify(out, onto=moved, address="inline")
    other = write(tmp_path / "other", tensors(7, torch.float16))
    with pytest.raises(VerifyError):
        verify(out, onto=other, address="inline")
    extrapolate(*pair(models), tmp_path / "plain", alpha=0.5, address="inline")
    with pytest.raises(ConfigError, match="without such an input"):
        verify(tmp_path / "plain", onto=moved, address="inline")


def test_values_of_the_base_are_checked(models: dict[str, Path], tmp_path: Path) -> None:
    values = tensors(2, torch.float16)
    values["norm.weight"][3] = float("nan")
    bad = write(tmp_path / "bad", values)
    with pytest.raises(Exception, match="not finite") as caught:
        extrapolate(*pair(models), tmp_path / "out", alpha=0.5, onto=bad, address="inline")
    assert "norm.weight" in str(caught.value)
    assert str(bad) in str(caught.value)


def test_a_base_that_does_not_belong_is_refused(models: dict[str, Path], tmp_path: Path) -> None:
    values = tensors(2, torch.float16)
    lacking = {name: value for name, value in values.items() if name != "norm.weight"}
    other = {**values, "norm.weight": torch.ones(8, dtype=torch.float16)}
    for name, content, words in (
        ("lacking", lacking, "a tensor is missing from base"),
        ("more", {**values, "extra": torch.ones(2)}, "a tensor is missing from aligned"),
        ("other", other, "two shapes"),
        ("kind", {**values, "steps": torch.ones(1)}, "floating-point"),
    ):
        base = write(tmp_path / name, content)
        with pytest.raises(PairError, match=words):
            extrapolate(*pair(models), tmp_path / "out", alpha=0.5, onto=base, address="inline")
    heads = write(tmp_path / "heads", values, num_attention_heads=3)
    first = write(tmp_path / "first", tensors(0, torch.float32), num_attention_heads=4)
    second = write(tmp_path / "second", tensors(1, torch.float32), num_attention_heads=4)
    with pytest.raises(PairError, match="different architectures"):
        extrapolate(first, second, tmp_path / "out", alpha=0.5, onto=heads, address="inline")
    assert not (tmp_path / "out").exists()


def test_a_base_with_other_tokens_is_refused_by_its_own_name(
    models: dict[str, Path], tmp_path: Path
) -> None:
    for name, tokens in (("aligned", "ab"), ("base", "ba")):
        vocabulary = {token: i for i, token in enumerate(tokens)}
        text = json.dumps({"model": {"vocab": vocabulary}})
        (models[name] / "tokenizer.json").write_text(text)
    with pytest.raises(PairError, match="other tokens") as caught:
        extrapolate(*pair(models), tmp_path / "out", alpha=1, onto=models["base"], address="inline")
    assert "id 0: base 'b', aligned 'a'" in str(caught.value.got)
    assert "vocab-policy" not in str(caught.value.hint)


def test_mergekit_gets_task_arithmetic_on_the_base(models: dict[str, Path], tmp_path: Path) -> None:
    file = tmp_path / "merge.yaml"
    extrapolate(
        *pair(models),
        tmp_path / "out",
        alpha=0.5,
        onto=models["base"],
        output_dtype="bfloat16",
        export_mergekit=file,
        dry_run=True,
    )
    found = yaml.safe_load(file.read_text())
    assert found["base_model"] == str(models["base"])
    assert [(m["model"], m["parameters"]["weight"]) for m in found["models"]] == [
        (str(models["aligned"]), 0.5),
        (str(models["initial"]), -0.5),
    ]


def test_the_plan_counts_three_reads(models: dict[str, Path], tmp_path: Path) -> None:
    options = {"alpha": 0.5, "dry_run": True, "output_dtype": "float32"}
    two = extrapolate(*pair(models), tmp_path / "out", **options).plan
    three = extrapolate(*pair(models), tmp_path / "out", onto=models["base"], **options).plan
    num_elements = sum(torch.Size(shape).numel() for shape in SHAPES.values())
    assert three["bytes_in"] - two["bytes_in"] == 2 * num_elements


def test_buffers_that_the_base_stores_as_one_are_copied_as_they_are(
    models: dict[str, Path], tmp_path: Path
) -> None:
    """They are in no other file: the pair is not asked whether they are one there, too."""
    base = models["base"]
    state = load(base)
    for file in base.glob("model*"):
        file.unlink()
    inv_freq = torch.arange(8, dtype=torch.float32)
    names = [f"layers.{i}.rotary_emb.inv_freq" for i in range(2)]
    torch.save({**state, **dict.fromkeys(names, inv_freq)}, base / "pytorch_model.bin")
    extrapolate(*pair(models), tmp_path / "out", alpha=0.3, onto=base, address="inline")
    written = load(tmp_path / "out")
    assert all(same_bits(written[name], inv_freq) for name in names)
    verify(tmp_path / "out", address="inline")
