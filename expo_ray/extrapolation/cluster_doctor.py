"""What every node of a cluster looks like to a run: inputs, output, versions, room, clock."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from expo_ray.checkpoints.opening import open_checkpoint
from expo_ray.checkpoints.storages.remote_path import AnyPath, RemotePath, any_path
from expo_ray.checkpoints.storages.storage import WORK_FOLDER
from expo_ray.extrapolation.nodes.fanout import call_on_nodes
from expo_ray.extrapolation.nodes.node_check import NodeCheck
from expo_ray.extrapolation.outputs.results import SCHEMA_VERSION
from expo_ray.progress import NullProgress, Progress
from expo_ray.versions import versions

MAX_CLOCK_OFFSET_SECONDS = 2.0
LOW_DISK_BYTES = 10**9
_SAME = ("python", "expo-ray", "ray", "torch")


@dataclass(frozen=True, kw_only=True, slots=True)
class DoctorReport:
    """What was found."""

    nodes: Mapping[str, Mapping[str, Any]]
    """Facts by node; an unreachable node has none."""
    problems: Mapping[str, list[str]]
    """In words, by node."""

    @property
    def is_fit(self) -> bool:
        """Whether every node can take part in a run."""
        return not any(self.problems.values())

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON of the command."""
        return {
            "schema_version": SCHEMA_VERSION,
            "ok": self.is_fit,
            "nodes": [
                {"node": node, **facts, "problems": self.problems.get(node, [])}
                for node, facts in self.nodes.items()
            ],
            "problems": [
                f"{node}: {text}" for node, texts in self.problems.items() for text in texts
            ],
        }


def doctor(
    initial: str | Path | None = None,
    aligned: str | Path | None = None,
    output: str | Path | None = None,
    *,
    address: str | None = None,
    progress: Progress | None = None,
) -> DoctorReport:
    """Examine every node of a cluster; nothing is left behind.

    Args:
        initial: A checkpoint that every node must be able to read.
        aligned: Another one.
        output: A folder or prefix that every node must write to and see the same.
        address: Ray cluster, or `local`; `inline` examines this process alone.
        progress: Where to report.

    Returns:
        Facts and problems of every node.

    Raises:
        CheckpointError: This process itself cannot read an input.
        ConfigError: Ray cannot be reached.

    Example:
        >>> report = expo_ray.doctor("sft", "dpo", "expo", address="inline")
        >>> report.is_fit
        True
    """
    inputs = []
    for uri in (initial, aligned):
        if uri is not None:
            checkpoint = open_checkpoint(uri)
            files = tuple(file.facts for file in checkpoint.weight_files.values())
            inputs.append((checkpoint.uri, files[:1] if "://" in checkpoint.uri else files))
    folder = None if output is None else any_path(str(output))
    outputs = () if folder is None else (str(folder),)
    check = NodeCheck(inputs=tuple(inputs), outputs=outputs)
    (progress or NullProgress()).message("Asking every node")
    missing = [] if folder is None else _missing_folders(folder)
    try:
        started = time.time()
        nodes, problems = call_on_nodes(node_facts, outputs, check, address=address)
        ended = time.time()
    finally:
        _remove(folder, missing)
    facts = {node: found for node, found in nodes.items() if isinstance(found, dict)}
    for node, found in facts.items():
        offset = max(started - found["time"], found["time"] - ended, 0.0)
        found["clock_offset_seconds"] = round(offset, 3)
        problems.setdefault(node, []).extend(_judge(found, next(iter(facts.values()))))
    return DoctorReport(nodes=facts, problems=problems)


def node_facts(outputs: tuple[str, ...], name: str) -> dict[str, Any]:
    """Return the facts of the node that this runs on."""
    places = {"temporary files": Path(tempfile.gettempdir())}
    for folder in outputs:
        path = any_path(folder)
        if isinstance(path, Path):
            places["output"] = next(p for p in (path, *path.parents) if p.exists())
    return {
        "time": time.time(),
        "versions": versions(),
        "memory_bytes": _memory("MemTotal"),
        "memory_free_bytes": _memory("MemAvailable"),
        "disk_free_bytes": {key: shutil.disk_usage(path).free for key, path in places.items()},
    }


def _memory(key: str) -> int | None:
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) * 1024
    return None


def _judge(found: Mapping[str, Any], first: Mapping[str, Any]) -> list[str]:
    problems = []
    offset = found["clock_offset_seconds"]
    if offset > MAX_CLOCK_OFFSET_SECONDS:
        problems.append(f"its clock is {offset:.1f} s off")
    for name in _SAME:
        here, there = found["versions"].get(name), first["versions"].get(name)
        if here != there:
            problems.append(f"{name} is {here or 'missing'}, {there or 'missing'} elsewhere")
    for place, free_bytes in found["disk_free_bytes"].items():
        if free_bytes < LOW_DISK_BYTES:
            problems.append(f"the disk of {place} has {free_bytes} bytes free")
    return problems


def _missing_folders(folder: AnyPath) -> list[Path]:
    if isinstance(folder, RemotePath):
        return []
    wanted = [folder / WORK_FOLDER, folder, *folder.parents]
    return [path for path in wanted if not path.exists()]


def _remove(folder: AnyPath | None, missing: list[Path]) -> None:
    if isinstance(folder, RemotePath):
        with contextlib.suppress(OSError):
            if not list((folder / WORK_FOLDER).iterdir()):
                (folder / WORK_FOLDER).remove_tree()
    for path in missing:
        with contextlib.suppress(OSError):
            path.rmdir()
