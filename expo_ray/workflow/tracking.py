"""A finished run for the trackers of its recipe: what they are told, and what became of it.

Everything is read from the run directory and passes the redaction. `tracking.json` there keeps the
id of each tracker's run, which a rerun continues. A tracker that fails ends nothing: it is a
warning, here and in the report, and the next rerun tries again.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from expo_ray.checkpoints import atomic_write_json
from expo_ray.child_python import child_command
from expo_ray.extrapolation import checkpoint_name
from expo_ray.progress import Progress
from expo_ray.redaction import redacted, redacted_settings, redacted_value
from expo_ray.reports.run_files import RunFiles
from expo_ray.workflow.run_dir import RunDir, read_json
from expo_ray.workflow.trackers import TRACKERS, Facts, Series, TrackerName, main

LIMIT_SECONDS = 300
"""How long one tracker may take."""
_MAX_ERROR_LENGTH = 300
_MAX_VALUE_LENGTH = 500
_TEXTS = ("report.html", "recipe.yaml", "selection.json")


def describe_trackers(names: Sequence[TrackerName]) -> str:
    """Return where a run will be logged, in words."""
    kinds = [TRACKERS[name] for name in names]
    places = [os.environ.get(kind.target) or kind.default for kind in kinds]
    return ", ".join(f"{k.title} ({redacted(p)})" for k, p in zip(kinds, places, strict=True))


def forget_failures(directory: RunDir) -> None:
    """Let the report say nothing of trackers that failed before: they are tried again."""
    kept = read_json(directory.tracking_file)
    if [name for name, entry in kept.items() if entry.pop("error", None)]:
        atomic_write_json(directory.tracking_file, kept)


def log_run(directory: RunDir, names: Sequence[TrackerName], progress: Progress) -> bool:
    """Log a finished run with these trackers; what is logged already is not logged again.

    Args:
        directory: The run, its report written.
        names: The trackers.
        progress: Told of each, and of each failure as a warning.

    Returns:
        Whether one failed, which the report should tell.
    """
    if not names:
        return False
    facts = read_facts(directory.path)
    # The page itself changes with the version that draws it.
    what = asdict(facts) | {"texts": None}
    digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
    kept = read_json(directory.tracking_file)
    for name in names:
        title, entry = TRACKERS[name].title, kept.get(name, {})
        if entry.get("digest") == digest:
            progress.message(f"{title}: already logged")
            continue
        run_id, error = _log(name, facts, entry.get("run_id"))
        kept[name] = {"run_id": run_id, **({"error": error} if error else {"digest": digest})}
        atomic_write_json(directory.tracking_file, kept)
        told = f"warning: not logged to {title}: {error}" if error else f"{title}: logged"
        progress.message(told)
    return any("error" in kept[name] for name in names)


def _log(name: TrackerName, facts: Facts, run_id: str | None) -> tuple[str | None, str | None]:
    """Return the id of the tracker's run, and why it failed."""
    told = json.dumps({"run_id": run_id, "facts": asdict(facts)})
    error = None
    try:
        done = subprocess.run(
            child_command(main, name),
            input=told.encode(),
            capture_output=True,
            timeout=LIMIT_SECONDS,
            check=False,
        )
        answer = done.stdout
        if done.returncode:
            lines = redacted(done.stderr.decode(errors="replace")).split("\n")
            last = next((line for line in reversed(lines) if line.strip()), "no word")
            error = f"{last[:_MAX_ERROR_LENGTH]} (exit code {done.returncode})"
    except subprocess.TimeoutExpired as late:
        answer, error = late.stdout or b"", f"no end within {LIMIT_SECONDS} s"
    except OSError as failure:
        answer, error = b"", redacted(str(failure))
    return answer.decode().strip() or run_id, error


def read_facts(run_directory: Path) -> Facts:
    """Return what trackers are told of a run.

    Args:
        run_directory: With its selection.json and report.html.

    Raises:
        ConfigError: A file in it is missing or malformed.
    """
    run = RunFiles.read(run_directory, tables=False)
    recipe = {key: v for key, v in run.resolved.get("recipe", {}).items() if key != "track"}
    series = {"candidates": Series(axis="alpha", rows=list(_candidates(run.selection)))}
    for label, summary in run.loadtests.items():
        rows = [_numbers(point) for point in summary["points"]]
        series[f"loadtest/{label}"] = Series(axis="concurrency", rows=rows)
    return Facts(
        name=redacted(str(recipe.get("name") or run_directory.resolve().name)),
        params=_texts(_flat("", recipe)),
        tags=_texts(_tags(run)),
        metrics=_numbers(_summary(run.selection)),
        series={name: one for name, one in series.items() if one.rows},
        texts={
            name: redacted_settings((run_directory / name).read_text("utf-8", errors="replace"))
            for name in _TEXTS
        },
    )


def _tags(run: RunFiles) -> Iterator[tuple[str, object]]:
    yield "verdict", run.selection["verdict"]
    yield "reason", run.selection.get("reason")
    fired = {g["name"] for g in run.selection.get("guards", ()) if g["fired"]}
    yield "guards_fired", ", ".join(sorted(fired))
    yield "recipe_digest", run.resolved.get("recipe_digest")
    yield "run_directory", run.path.resolve()
    for side in ("initial", "aligned"):
        yield side, run.resolved.get(side, {}).get("uri")
    for alpha, record in run.checkpoints.items():
        yield f"weights_digest.{checkpoint_name(alpha)}", record.get("weights_digest")
    for package, version in run.resolved.get("versions", {}).items():
        yield f"version.{package}", version


def _summary(selection: Mapping[str, Any]) -> dict[str, object]:
    means = {float(c["alpha"]): c.get("mean_reward") for c in selection["candidates"]}
    heldout = selection.get("heldout") or {}
    return {
        "best_alpha": selection["best_alpha"],
        "extrapolated": selection["verdict"] == "extrapolate",
        "aligned_mean_reward": means.get(0.0),
        "chosen_mean_reward": means.get(float(selection["best_alpha"])),
        **{f"heldout_{key}": value for key, value in heldout.items()},
        "num_guards_fired": sum(bool(g["fired"]) for g in selection.get("guards", ())),
    }


def _candidates(selection: Mapping[str, Any]) -> Iterator[dict[str, float]]:
    guards: dict[float, dict[str, object]] = {}
    for guard in selection.get("guards", ()):
        name = f"guard.{guard['name']}.{guard.get('split') or 'tuning'}"
        of_alpha = guards.setdefault(float(guard["alpha"]), {})
        of_alpha |= {name: guard["value"], f"{name}.fired": bool(guard["fired"])}
    for candidate in sorted(selection["candidates"], key=lambda c: float(c["alpha"])):
        yield _numbers({**candidate, **guards.get(float(candidate["alpha"]), {})})


def _flat(key: str, value: object) -> Iterator[tuple[str, object]]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _flat(f"{key}.{name}" if key else str(name), inner)
    elif isinstance(value, list) and any(isinstance(inner, Mapping) for inner in value):
        for number, inner in enumerate(value):
            yield from _flat(f"{key}.{number}", inner)
    else:
        yield key, value


def _texts(pairs: Iterator[tuple[str, object]]) -> dict[str, str]:
    """Return what is given, without secrets, under names that every tracker takes."""
    return {
        _name(key): redacted_value(key, value)[:_MAX_VALUE_LENGTH]
        for key, value in pairs
        if value is not None and value != ""
    }


def _numbers(figures: Mapping[str, Any]) -> dict[str, float]:
    return {
        _name(key): float(value)
        for key, value in figures.items()
        if isinstance(value, bool | int | float) and math.isfinite(value)
    }


def _name(key: str) -> str:
    return "".join(c if (c.isascii() and c.isalnum()) or c in "_-. /" else "_" for c in key)
