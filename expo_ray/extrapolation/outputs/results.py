"""What the commands of this room give back. Every `as_dict` is JSON-able."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from expo_ray.extrapolation.nodes.trial_load import LoadingCheck
from expo_ray.extrapolation.shards.tasks import Problem

SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputResult:
    """One checkpoint."""

    alpha: float | None
    """None under alpha rules."""
    path: str
    status: str
    """written, resumed (some shards were there), skipped (it was complete), or planned."""
    weights_digest: str | None
    num_bytes: int
    """Of the weight files."""
    num_shards: int
    num_shards_resumed: int = 0
    at_step: float | None = None
    """The step that was asked for, along a trajectory."""
    pushed_to: str | None = None
    """Where it was pushed, as `hf://owner/name@commit`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExtrapolationResult:
    """What `extrapolate` did, or with dry_run would do."""

    outputs: tuple[OutputResult, ...]
    num_tasks: int
    bytes_read: int
    bytes_written: int
    seconds: float
    notes: tuple[str, ...] = ()
    loading: LoadingCheck | None = None
    dry_run: bool = False
    plan: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON of the command."""
        return {
            "schema_version": SCHEMA_VERSION,
            "dry_run": self.dry_run,
            "outputs": [
                {
                    "alpha": output.alpha,
                    "at_step": output.at_step,
                    "path": output.path,
                    "status": output.status,
                    "weights_digest": output.weights_digest,
                    "num_bytes": output.num_bytes,
                    "num_shards": output.num_shards,
                    "num_shards_resumed": output.num_shards_resumed,
                    "pushed_to": output.pushed_to,
                }
                for output in self.outputs
            ],
            "num_tasks": self.num_tasks,
            "num_resumed": sum(o.num_shards_resumed for o in self.outputs),
            "num_skipped": sum(o.status == "skipped" for o in self.outputs),
            "bytes_read": self.bytes_read,
            "bytes_written": self.bytes_written,
            "seconds": round(self.seconds, 3),
            "notes": list(self.notes),
            "loading": self.loading.as_dict() if self.loading else None,
            "plan": self.plan,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifyResult:
    """What `verify` checked; one with problems is raised as an error instead."""

    path: str
    alpha: float | None
    """None under alpha rules."""
    weights_digest: str
    num_files: int
    num_tensors: int
    num_bytes: int
    recomputed: bool
    seconds: float
    problems: tuple[Problem, ...] = ()
    sha256: Mapping[str, str] = field(default_factory=dict)
    """What `sha256sum` prints, by file; where it was asked for."""
    notes: tuple[str, ...] = ()
    """What could not be checked."""

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON of the command."""
        return {
            "schema_version": SCHEMA_VERSION,
            "ok": not self.problems,
            "path": self.path,
            "alpha": self.alpha,
            "weights_digest": self.weights_digest,
            "num_files": self.num_files,
            "num_tensors": self.num_tensors,
            "num_bytes": self.num_bytes,
            "recomputed": self.recomputed,
            "seconds": round(self.seconds, 3),
            "problems": [problem.as_dict() for problem in self.problems],
            "sha256": dict(self.sha256) or None,
            "notes": list(self.notes),
        }
