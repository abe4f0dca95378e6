"""The run directory as one read-only object: what is there is read, what is not stays empty."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from expo_ray.errors import ConfigError
from expo_ray.json_text import parse_json
from expo_ray.tables.schemas import read_table

_RESPONSES = ("prompt_id", "sample", "split", "prompt_tokens", "completion_tokens")
_REWARDS = ("prompt_id", "sample", "split", "reward", "truncated")
"""What is read of the tables: texts are read where they are shown, a few of them."""

TRUTH = "truth"
"""Folder of the laboratory's hidden truth beside the reward models."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFiles:
    """Everything that a report may speak about."""

    path: Path
    selection: Mapping[str, Any]
    resolved: Mapping[str, Any]
    lab: Mapping[str, Any]
    timings: Mapping[str, Any]
    tracking: Mapping[str, Any]
    """What became of the run at each experiment tracker, by its name."""
    recipe: str
    responses: Mapping[float, pa.Table]
    """By alpha, without texts; a table without an alpha in its name is left out."""
    rewards: Mapping[str, Mapping[float, pa.Table]]
    """By folder name (`0-reward-model`, `1-guard`), then alpha; in order of the index."""
    truth: Mapping[float, pa.Table]
    loadtests: Mapping[str, Mapping[str, Any]]
    compared: Mapping[str, Any]
    checkpoints: Mapping[float, Mapping[str, Any]]
    """The `expo_ray.json` of every checkpoint that is still there."""

    @property
    def response_files(self) -> Mapping[float, Path]:
        """The files of the responses, by alpha."""
        return dict(_by_alpha(self.path / "responses", suffix=".parquet"))

    @property
    def scoring_rewards(self) -> Mapping[float, pa.Table]:
        """The tables of the reward model that scores: index 0."""
        return next((t for name, t in self.rewards.items() if name.startswith("0-")), {})

    @property
    def guard_rewards(self) -> Mapping[str, Mapping[float, pa.Table]]:
        """The tables of those that guard, by folder name."""
        return {name: t for name, t in self.rewards.items() if not name.startswith("0-")}

    @classmethod
    def read(cls, run_dir: str | Path, *, tables: bool = True) -> RunFiles:
        """Read a run directory.

        Args:
            run_dir: The directory.
            tables: Whether to read responses and rewards, too.

        Raises:
            ConfigError: It has no selection.json, or a JSON file in it is malformed.
            TableError: A Parquet file in it is malformed.
        """
        path = Path(run_dir)
        read_tables = _tables if tables else _no_tables
        folders = _reward_folders(path / "rewards")
        rewards = {folder.name: read_tables(folder, _REWARDS) for folder in folders}
        recipe = path / "recipe.yaml"
        return cls(
            path=path,
            selection=read_selection(path),
            resolved=read_json(path / "resolved.json"),
            lab=read_json(path / "lab.json"),
            timings=read_json(path / "timings.json"),
            tracking=read_json(path / "tracking.json"),
            recipe=recipe.read_text(encoding="utf-8", errors="replace") if recipe.is_file() else "",
            responses=read_tables(path / "responses", _RESPONSES),
            rewards=rewards,
            truth=read_tables(path / "rewards" / TRUTH, _REWARDS),
            loadtests={
                file.parent.name: read_json(file)
                for file in sorted((path / "loadtest").glob("*/summary.json"))
            },
            compared=read_json(path / "loadtest" / "compared.json"),
            checkpoints={
                alpha: read_json(folder / "expo_ray.json")
                for alpha, folder in _by_alpha(path / "checkpoints", suffix="")
                if (folder / "expo_ray.json").is_file()
            },
        )


@contextmanager
def in_our_form(folder: Path) -> Iterator[None]:
    """Let files be used as this version writes them; one in another form says so.

    Raises:
        ConfigError: Something that they must hold is missing or of another kind.
    """
    try:
        yield
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        raise ConfigError(
            "a file of the folder is not in the form that this version writes",
            where=folder,
            got=f"{type(error).__name__}: {error}"[:200],
            hint="finish the run, or run it again, with this version",
        ) from error


def read_selection(run_dir: str | Path) -> Mapping[str, Any]:
    """Return selection.json of a run directory.

    Raises:
        ConfigError: It is missing or malformed.
    """
    file = Path(run_dir) / "selection.json"
    if not file.is_file():
        raise ConfigError(
            "no selection here to report on",
            where=file,
            hint="finish the run first; `expo-ray run RECIPE` continues where it stopped",
        )
    selection = read_json(file)
    missing = sorted({"best_alpha", "verdict", "candidates"} - selection.keys())
    if missing:
        raise ConfigError("the selection is incomplete", where=file, got=f"without {missing}")
    candidates = selection["candidates"]
    if not isinstance(candidates, list) or not all(isinstance(c, dict) for c in candidates):
        raise ConfigError("the candidates are not a list of objects", where=file)
    return selection


def read_json(file: Path) -> Mapping[str, Any]:
    """Return the object in a JSON file, an empty one where there is no file.

    Raises:
        ConfigError: It is malformed.
    """
    if not file.is_file():
        return {}
    try:
        content = parse_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError("not readable as JSON", where=file, got=error) from error
    if not isinstance(content, dict):
        raise ConfigError("a JSON object is expected", where=file, got=type(content).__name__)
    return content


def _reward_folders(folder: Path) -> list[Path]:
    indexed = [f for f in folder.glob("*") if f.is_dir() and f.name.split("-")[0].isdigit()]
    return sorted(indexed, key=lambda f: (int(f.name.split("-")[0]), f.name))


def _tables(folder: Path, columns: Sequence[str]) -> dict[float, pa.Table]:
    return {
        alpha: read_table(file, columns=columns)
        for alpha, file in _by_alpha(folder, suffix=".parquet")
    }


def _no_tables(folder: Path, columns: Sequence[str]) -> dict[float, pa.Table]:
    return {}


def _by_alpha(folder: Path, *, suffix: str) -> Iterator[tuple[float, Path]]:
    """Yield (alpha, path) of the entries `alpha-<number><suffix>`, by rising alpha."""
    found = []
    for entry in folder.glob(f"alpha-*{suffix}"):
        try:
            alpha = float(entry.name.removeprefix("alpha-").removesuffix(suffix))
        except ValueError:
            continue
        if math.isfinite(alpha):
            found.append((alpha, entry))
    yield from sorted(found)
