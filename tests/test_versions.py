from __future__ import annotations

from importlib import metadata

import pytest

import expo_ray
from expo_ray.versions import versions


def test_code_that_is_not_installed_knows_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a job on nodes that have the dependencies alone."""

    def version(name: str) -> str:
        if name in ("expo-ray", "transformers"):
            raise metadata.PackageNotFoundError(name)
        return "1.2"

    monkeypatch.setattr(metadata, "version", version)
    found = versions()
    assert found["expo-ray"] == expo_ray.__version__
    assert found["torch"] == "1.2"
    assert "transformers" not in found
