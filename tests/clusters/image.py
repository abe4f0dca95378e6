"""What the image rayproject/ray brings, so that no launcher installs it a second time."""

from __future__ import annotations

import tomllib
from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement

PYPROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"
IN_THE_IMAGE = {
    "ray": "the image is made for it; another version would not find the cluster",
    "aiohttp": "Ray needs it; its dashboard, outside our environment, must use the same",
    "fastapi": "Ray needs it; Serve's proxy and its replicas must use the same",
    "filelock": "Ray needs it",
    "pydantic": "Ray needs it; Serve's controller and its replicas exchange its objects",
    "pyyaml": "Ray needs it",
}


def missing_packages(listed: list[str], *extras: str) -> set[str]:
    """Return the dependencies of expo_ray that are neither listed nor in the image."""
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    needed = [*project["dependencies"]]
    for extra in extras:
        needed += project["optional-dependencies"][extra]
    names = {_name(text) for text in listed}
    assert not names & IN_THE_IMAGE.keys()
    return {_name(text) for text in needed} - names - IN_THE_IMAGE.keys()


def needed_by_ray() -> set[str]:
    """Return what `ray[default,serve]` of this environment requires."""
    found = {"ray"}
    for requirement in map(Requirement, requires("ray") or ()):
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": e}) for e in ("default", "serve")):
            found.add(_name(str(requirement)))
    return found


def _name(text: str) -> str:
    return Requirement(text).name.lower().replace("_", "-")
