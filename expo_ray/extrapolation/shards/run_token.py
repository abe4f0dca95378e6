"""The token of the run that owns an output folder: it fences off the tasks of older runs.

Object stores have no locks, and a task may outlive its run: both look at the token before they
make anything visible.
"""

from __future__ import annotations

from expo_ray.checkpoints.storages.remote_path import AnyPath
from expo_ray.checkpoints.storages.storage import WORK_FOLDER
from expo_ray.errors import ShardError
from expo_ray.json_text import parse_json

RUN_FILE = "run.json"


def check_token(folder: AnyPath, run_token: str) -> None:
    """Let a task pass whose run still owns the output folder.

    A task that outlived its run must not touch a folder that a newer run owns by now.

    Raises:
        ShardError: The folder belongs to another run, or cannot be seen from here.
    """
    path = folder / WORK_FOLDER / RUN_FILE
    try:
        token = parse_json(path.read_text(encoding="utf-8"))["run_token"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        token = None
    if token != run_token:
        raise ShardError(
            "another run has taken over the output folder, or it is not visible on this node",
            where=path,
            hint="the output must lie on a disk that every node sees",
        )
