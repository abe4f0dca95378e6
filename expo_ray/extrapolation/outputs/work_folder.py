"""The output folder while a checkpoint is being written: lock, run token, receipts, states.

`OUTPUT/.expo_ray/` holds what an unfinished run needs to continue and is removed at the end.
A checkpoint is complete if and only if its `expo_ray.json` exists.
"""

from __future__ import annotations

import contextlib
import secrets
import shutil
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from expo_ray.checkpoints.sidecars import is_found_by_name
from expo_ray.checkpoints.storages.atomic_io import atomic_write_json
from expo_ray.checkpoints.storages.folder_lock import owned_lock
from expo_ray.checkpoints.storages.remote_path import AnyPath, RemotePath
from expo_ray.checkpoints.storages.storage import RECORD_NAME, WORK_FOLDER
from expo_ray.checkpoints.storages.unfinished_uploads import (
    Upload,
    abort_uploads,
    find_unfinished_uploads,
)
from expo_ray.errors import ConfigError, argument, first_names
from expo_ray.extrapolation.outputs.record import outputs_by_alpha
from expo_ray.extrapolation.shards.receipts import RECEIPT_FOLDER
from expo_ray.extrapolation.shards.run_token import RUN_FILE, check_token
from expo_ray.json_text import parse_json

LOCK_FILE = "lock"
MEASURED_FOLDER = "measured"
"""What the first of two passes has found, task by task."""
_TEMPLATES = "additional_chat_templates"


class OutputState(Enum):
    """What an output folder holds before the work starts."""

    FRESH = "fresh"
    UNFINISHED = "unfinished"
    COMPLETE = "complete"


def examine_output(folder: AnyPath, plan_digest: str, *, overwrite: bool) -> OutputState:
    """Look at an output folder without changing it.

    Args:
        folder: Where the checkpoint goes.
        plan_digest: What this run would write there.
        overwrite: Whether anything found may be replaced.

    Raises:
        ConfigError: It holds something that this run did not make.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError("the output is a file", where=folder, expected="a folder")
    if overwrite or not folder.is_dir():
        return OutputState.FRESH
    record = folder / RECORD_NAME
    if record.exists():
        _check_digest(record, plan_digest, "the output holds the result of another plan")
        _check_sizes(folder, record)
        return OutputState.COMPLETE
    run = folder / WORK_FOLDER / RUN_FILE
    if run.exists():
        _check_digest(run, plan_digest, "the output holds the unfinished result of another plan")
        return OutputState.UNFINISHED
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    if not names:
        return OutputState.FRESH
    if outputs := outputs_by_alpha(folder):
        raise ConfigError(
            "the output folder holds one checkpoint per alpha",
            where=folder,
            got=", ".join(outputs),
            expected="an empty folder, or the same alphas again",
            hint=f"choose another folder; {argument('overwrite', True)} would put this one beside "
            "them",
        )
    raise ConfigError(
        "the output folder is not empty and was not made by expo_ray",
        where=folder,
        got=first_names(names),
        hint=f"choose another folder, or replace its weights with {argument('overwrite', True)}",
    )


@contextlib.contextmanager
def claimed_folder(folder: AnyPath, plan_digest: str, *, overwrite: bool) -> Iterator[str]:
    """Own an output folder for the length of a `with` block; what it holds is left as it is.

    Yields:
        The run token; empty where another run completed the folder in the meantime.

    Raises:
        ConfigError: Another run owns the folder, or it holds something else.
    """
    try:
        (folder / WORK_FOLDER).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            "the output folder cannot be made", where=folder, got=error.strerror
        ) from error
    with _locked(folder / WORK_FOLDER / LOCK_FILE):
        # Another run may have ended between the first look and the lock.
        if examine_output(folder, plan_digest, overwrite=overwrite) is OutputState.COMPLETE:
            remove_work_folder(folder)
            yield ""
            return
        yield secrets.token_hex(16)


def begin_output(
    folder: AnyPath,
    plan_digest: str,
    run_token: str,
    *,
    overwrite: bool,
    request: Mapping[str, object] | None = None,
) -> None:
    """Make a claimed folder ready for tasks; under `overwrite` the old result goes now.

    `request` (alpha and the sides, as in the record) is for whoever finds the folder unfinished.

    A task of an older run may have seen its own token just before ours was written, and publish
    its shard any time later. So what it would publish is removed, before anything of this run can
    lie there: its temporary file, then an upload that copies from it. An upload in the list began
    before a newer run's, as long as our token stands.

    Raises:
        OSError: The folder cannot be written to.
        ShardError: A newer run has taken over the folder.
    """
    work = folder / WORK_FOLDER
    # The token first: an older run that is about to complete the folder must see it.
    table = {"plan_digest": plan_digest, "run_token": run_token, **(request or {})}
    atomic_write_json(work / RUN_FILE, table)
    for leftover in work.glob("*.tmp"):
        leftover.unlink(missing_ok=True)
    stale = _unfinished_uploads(folder)
    check_token(folder, run_token)
    abort_uploads(stale)
    if overwrite:
        _remove_old_result(folder)
    (work / RECEIPT_FOLDER).mkdir(exist_ok=True)


def _unfinished_uploads(folder: AnyPath) -> list[Upload]:
    if not isinstance(folder, RemotePath):
        return []
    work = folder / WORK_FOLDER
    return find_unfinished_uploads(folder, work, work / RECEIPT_FOLDER)


def remove_work_folder(folder: AnyPath) -> None:
    """Remove what only an unfinished run needs; the lock file goes last."""
    work = folder / WORK_FOLDER
    (work / RUN_FILE).unlink(missing_ok=True)
    remove_tree(work)


def leave_folder(folder: AnyPath) -> None:
    """Undo the claim of a folder in which nothing was begun, unless work lies there.

    That is an older run, which is resumable, or what a first pass has measured.
    """
    work = folder / WORK_FOLDER
    if not any((work / name).exists() for name in (RUN_FILE, MEASURED_FOLDER)):
        remove_tree(work)
    if isinstance(folder, Path):
        with contextlib.suppress(OSError):
            folder.rmdir()  # only where it is empty


def remove_tree(path: AnyPath) -> None:
    """Remove a folder, or what lies below a prefix; what is not there is no error."""
    if isinstance(path, RemotePath):
        path.remove_tree()
    else:
        shutil.rmtree(path, ignore_errors=True)


def written_bytes(folder: AnyPath) -> int:
    """Return the bytes of the temporary files that tasks are writing just now, where seen."""
    total = 0
    if isinstance(folder, RemotePath):
        return total  # an upload is invisible before it ends
    for path in (folder / WORK_FOLDER).glob("*.tmp"):
        with contextlib.suppress(OSError):
            total += path.stat().st_size
    return total


def _check_digest(path: AnyPath, plan_digest: str, message: str) -> None:
    table = _read_json(path)
    found = table.get("plan_digest")
    if found != plan_digest:
        raise ConfigError(
            message,
            where=path.parent if path.name == RECORD_NAME else path.parent.parent,
            got=f"plan {str(found)[:12]}{_describe(table)}",
            expected=f"plan {plan_digest[:12]}, as asked for now",
            hint="the same alpha and paths? then an input, a file beside it or an option changed; "
            f"choose another folder, or replace what is there with {argument('overwrite', True)}",
        )


def _describe(table: dict[str, Any]) -> str:
    if "alpha" not in table:
        return ""
    sides = [str(table.get(side, {}).get("uri")) for side in ("initial", "aligned")]
    alpha = "by rules" if table["alpha"] is None else table["alpha"]
    return f" (alpha {alpha} of {sides[0]} and {sides[1]})"


def _check_sizes(folder: AnyPath, record: AnyPath) -> None:
    for entry in _read_json(record).get("files", []):
        path = folder / entry["name"]
        size = path.stat().st_size if path.exists() else None
        if size != entry["bytes"]:
            raise ConfigError(
                "the finished output was changed afterwards",
                where=path,
                got="missing" if size is None else f"{size} bytes",
                expected=f"{entry['bytes']} bytes",
                hint=f"write it again with {argument('overwrite', True)}",
            )


def _read_json(path: AnyPath) -> dict[str, Any]:
    try:
        table = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            "the record in the output folder cannot be read",
            where=path,
            got=error,
            hint=f"choose another folder, or replace it with {argument('overwrite', True)}",
        ) from error
    return table if isinstance(table, dict) else {}


def _remove_old_result(folder: AnyPath) -> None:
    recorded = _recorded_files(folder)
    # The record first: from here on the folder is not a complete checkpoint.
    (folder / RECORD_NAME).unlink(missing_ok=True)
    (folder / "config.json").unlink(missing_ok=True)
    # A stale weight file beside new ones is what a loader might pick up, and so is a tokenizer.
    for pattern in ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin*"):
        for path in folder.glob(pattern):
            path.unlink()
    for name in (*recorded, *names_found_by_loaders(folder)):
        path = folder / name
        # What a folder that is a link leads to is not ours to remove.
        if isinstance(path, RemotePath) or _lies_below(path, folder):
            path.unlink(missing_ok=True)
    remove_tree(folder / WORK_FOLDER / RECEIPT_FOLDER)


def _lies_below(path: Path, folder: AnyPath) -> bool:
    return path.parent.resolve().is_relative_to(str(folder.resolve()))


def _recorded_files(folder: AnyPath) -> list[str]:
    """Return what an old record lists, if it is one, and nothing outside the folder."""
    try:
        table = parse_json((folder / RECORD_NAME).read_text(encoding="utf-8"))
        names = [str(entry["name"]) for entry in table["files"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [name for name in names if name and not {"", ".", ".."} & set(name.split("/"))]


def names_found_by_loaders(folder: AnyPath) -> list[str]:
    """Return the files beside the weights that change what a loaded model does."""
    names = [path.name for path in folder.iterdir()]
    names += [f"{_TEMPLATES}/{path.name}" for path in (folder / _TEMPLATES).glob("*.jinja")]
    return sorted(n for n in names if is_found_by_name(n) and (folder / n).is_file())


@contextlib.contextmanager
def _locked(path: AnyPath) -> Iterator[None]:
    if isinstance(path, RemotePath):
        yield  # object stores have no locks; the run token fences off older tasks
        return
    try:
        stack = contextlib.ExitStack()
        # Where there are none on a disk either, the run token still does.
        stack.enter_context(owned_lock(path))
    except BlockingIOError as error:
        raise ConfigError(
            "another run is writing into this output folder",
            where=path.parent.parent,
            hint="wait for it, or choose another folder",
        ) from error
    with stack:
        yield
