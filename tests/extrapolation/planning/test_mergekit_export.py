"""The exported configuration says what the plan says; benchmarks run mergekit on such a file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from expo_ray.errors import ConfigError
from expo_ray.extrapolation import extrapolate
from tests.extrapolation.synthetic import load, noise, write


def export(pair: tuple[Path, Path], folder: Path, **options: object) -> dict:
    path = folder / "merge.yaml"
    options = {"alpha": 0.3, "address": "inline", "dry_run": True, **options}
    extrapolate(*pair, folder / "out", export_mergekit=path, **options)
    return yaml.safe_load(path.read_text())


def test_the_documented_structure(pico_pair: tuple[Path, Path], tmp_path: Path) -> None:
    config = export(pico_pair, tmp_path)
    assert config == {
        "merge_method": "task_arithmetic",
        "base_model": str(pico_pair[0]),
        "models": [{"model": str(pico_pair[1]), "parameters": {"weight": 1.3}}],
        "parameters": {"normalize": False},
        "dtype": "float32",
        "out_dtype": "bfloat16",
    }
    assert not (tmp_path / "out").exists()


def test_its_arithmetic_gives_the_written_weights(
    pico_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    config = export(pico_pair, tmp_path, dry_run=False)
    base, (model,) = load(Path(config["base_model"])), config["models"]
    other, written = load(Path(model["model"])), load(tmp_path / "out")
    for name, tensor in written.items():
        task_vector = other[name].float() - base[name].float()
        merged = base[name].float() + model["parameters"]["weight"] * task_vector
        torch.testing.assert_close(merged.to(torch.bfloat16), tensor, rtol=8e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"alpha": [0.3, 0.5]}, "several alphas"),
        ({"transforms": ["dare:drop=0.5"]}, "transforms"),
        ({"alpha": (), "alpha_rules": "rules.yaml"}, "alpha rules"),
    ],
)
def test_what_it_cannot_express_is_refused(
    pico_pair: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, object],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rules.yaml").write_text('[{match: "*", alpha: 1}]')
    with pytest.raises(ConfigError, match=words):
        export(pico_pair, tmp_path, **options)
    assert [p.name for p in tmp_path.iterdir()] == ["rules.yaml"]


def test_mixed_dtypes_are_refused(tmp_path: Path) -> None:
    sides = []
    for name, seed in (("initial", 0), ("aligned", 10)):
        tensors = {"a": noise((4,), torch.bfloat16, seed), "b": noise((4,), torch.float32, seed)}
        sides.append(write(tmp_path / name, tensors))
    with pytest.raises(ConfigError, match="dtypes"):
        export((sides[0], sides[1]), tmp_path)
    assert export((sides[0], sides[1]), tmp_path, output_dtype="float16")["out_dtype"] == "float16"


def test_a_file_that_cannot_be_written_is_a_wrong_request(
    pico_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="cannot be written"):
        extrapolate(*pico_pair, tmp_path / "out", alpha=0.3, export_mergekit=tmp_path / "no" / "m")
    assert not list(tmp_path.iterdir())


def test_a_refused_request_exports_nothing(
    pico_pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"alpha": 0.3, "export_mergekit": tmp_path / "m.yaml", "address": "inline"}
    with pytest.raises(ConfigError, match="not a name"):
        extrapolate(*pico_pair, tmp_path / "out", push_to="no name", **options)
    monkeypatch.setattr("expo_ray.extrapolation.outputs.targets.SPARE_BYTES", 2**62)
    with pytest.raises(ConfigError, match="not enough room"):
        extrapolate(*pico_pair, tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())
