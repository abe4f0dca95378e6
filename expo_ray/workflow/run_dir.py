"""The run directory: where each file of a run lies, and who may write there."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from expo_ray.checkpoints import atomic_write_json, atomic_write_text
from expo_ray.checkpoints.storages.folder_lock import owned_lock
from expo_ray.checkpoints.storages.local_output import refuse_links
from expo_ray.errors import ConfigError
from expo_ray.extrapolation import checkpoint_name
from expo_ray.extrapolation.planning.alpha_rules import AlphaRules
from expo_ray.json_text import parse_json

SCHEMA_VERSION = 1
TRUTH = "truth"


class RunDir:
    """Names of the files of one run.

    Args:
        path: The run directory; created by `claim`.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.recipe_file = self.path / "recipe.yaml"
        self.resolved_file = self.path / "resolved.json"
        self.diagnosis_file = self.path / "diagnosis.json"
        self.selection_file = self.path / "selection.json"
        self.signs_file = self.path / "text_signs.parquet"
        self.compared_file = self.path / "loadtest" / "compared.json"
        self.loadtest_prompts = self.path / "loadtest" / "prompts.jsonl"
        self.alpha_rules_file = self.path / "alpha_rules.yaml"
        self.serve_config_file = self.path / "serve_config.yaml"
        self.timings_file = self.path / "timings.json"
        self.tracking_file = self.path / "tracking.json"
        self.lab_file = self.path / "lab.json"
        self.report_file = self.path / "report.html"
        self.checkpoints = self.path / "checkpoints"

    def checkpoint(self, alpha: float) -> Path:
        """Return the folder of the candidate written for `alpha`."""
        return self.checkpoints / checkpoint_name(alpha)

    def responses(self, alpha: float | AlphaRules) -> Path:
        """Return the responses table of one candidate, or of rules for parts of the model."""
        return self.path / "responses" / f"{_table_name(alpha)}.parquet"

    def rewards(self, label: str, alpha: float | AlphaRules) -> Path:
        """Return the rewards table of one reward model and one candidate."""
        return self.path / "rewards" / label / f"{_table_name(alpha)}.parquet"

    def prompt_set(self, name: str) -> RunDir:
        """Return where the tables of a further set of prompts lie; all else stays where it is."""
        inner = RunDir(self.path / "prompt_sets" / name)
        inner.checkpoints = self.checkpoints
        inner.resolved_file, inner.timings_file = self.resolved_file, self.timings_file
        return inner

    def loadtest(self, label: str) -> Path:
        """Return the folder of one load test."""
        return self.path / "loadtest" / label

    @contextmanager
    def claim(self, *, recipe_text: str, digest: str) -> Iterator[None]:
        """Take the directory for one run, and hold it against a second one.

        Args:
            recipe_text: Written verbatim to `recipe.yaml`.
            digest: Digest of what the recipe computes; another one is refused.

        Raises:
            ConfigError: The folder holds another recipe's result, something else or links that
                leave it, or is in use.
        """
        found = self.check(digest)
        self.path.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(owned_lock(self.path / ".lock"))
            except BlockingIOError as error:
                raise ConfigError(
                    "another run is writing to this folder",
                    where=self.path,
                    hint="wait for it, or give another output folder",
                ) from error
            atomic_write_text(self.recipe_file, recipe_text)
            if found is None:  # no work was done: what its inputs were binds nobody
                self.resolved_file.unlink(missing_ok=True)
                self.update_resolved({"recipe_digest": digest})
            yield

    def check(self, digest: str) -> str | None:
        """Return the digest of the recipe whose result the folder holds; None where it is new.

        Args:
            digest: Of what the recipe computes.

        Raises:
            ConfigError: The folder holds another recipe's result, something else or links that
                leave it.
        """
        refuse_links(self.path)
        foreign = _foreign(self.path) if self.path.is_dir() else []
        # Of a request that ended before its work began nothing is worth keeping.
        found: str | None = self.read_resolved().get("recipe_digest") if foreign else None
        if found is not None and found != digest:
            raise ConfigError(
                "the output folder holds the result of another request",
                where=self.path,
                got=f"recipe digest {found[:12]}",
                expected=f"recipe digest {digest[:12]}",
                hint="give another output folder, or remove this one",
            )
        if found is None and foreign:
            raise ConfigError(
                "the output folder is not empty and is no run directory",
                where=self.path,
                got=", ".join(sorted(foreign)[:5]),
                expected="a new or empty folder",
                hint="give another output folder",
            )
        return found

    def read_resolved(self) -> dict[str, Any]:
        """Return `resolved.json`, empty before a run has claimed the directory."""
        return read_json(self.resolved_file)

    def update_resolved(self, facts: Mapping[str, Any]) -> None:
        """Add facts to `resolved.json`."""
        merged = {"schema_version": SCHEMA_VERSION, **self.read_resolved(), **facts}
        atomic_write_json(self.resolved_file, merged)

    def add_timing(self, stage: str, seconds: float) -> None:
        """Record how long a stage took; a resumed stage adds to its first part."""
        timings = read_json(self.timings_file)
        timings[stage] = round(timings.get(stage, 0.0) + seconds, 3)
        atomic_write_json(self.timings_file, timings)


def _table_name(alpha: float | AlphaRules) -> str:
    return f"rules-{alpha.digest}" if isinstance(alpha, AlphaRules) else checkpoint_name(alpha)


def _foreign(path: Path) -> list[str]:
    """Return what lies there besides the marks of a run that has done no work yet."""
    marks = {".lock", "recipe.yaml", "resolved.json"}
    return [file.name for file in path.iterdir() if file.name not in marks]


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in `path`, empty where the file is absent.

    Raises:
        ConfigError: The file is not a JSON object.
    """
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ConfigError("not valid JSON", where=path, got=error) from error
    if not isinstance(content, dict):
        raise ConfigError("not a JSON object", where=path, got=type(content).__name__)
    return content


def reward_label(index: int, spec: str) -> str:
    """Return the folder name of a reward model: its position and a short name."""
    tail = spec.rstrip("/").rsplit("/", maxsplit=1)[-1]
    return f"{index}-{re.sub(r'[^A-Za-z0-9._-]+', '-', tail).strip('-') or 'reward'}"
