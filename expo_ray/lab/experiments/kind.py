"""What an experiment is to the command line.

Light, and so is every record: whoever asks for help trains nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from expo_ray.progress import Progress

LAB_PANEL = "Experiment"
"""Heading of the flags of an experiment."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Where:
    """Where an experiment works, and who is told how far it is."""

    output: Path
    """Folder of its models and results; what is finished there is not done again."""
    address: str | None
    """Ray cluster; None means `RAY_ADDRESS`, else a local Ray."""
    progress: Progress


@dataclass(frozen=True, kw_only=True, slots=True)
class Experiment:
    """One experiment. `registry.EXPERIMENTS` holds one record of each."""

    name: str
    """The word after `expo-ray lab`."""
    help: str
    """Its help: what it does, how long it takes, an example."""
    settings: type[BaseModel]
    """Frozen model of its settings; each field that carries a `Flag` is a flag of the command."""
    run: Callable[[Any, Where], Mapping[str, Any]]
    """Takes settings and place; returns plain data, of which a list of objects is shown as a table
    and the rest as facts. Imports what is heavy itself."""
    has_page: bool = False
    """Whether its folder holds what `expo-ray report` makes a page of: the command makes it."""
