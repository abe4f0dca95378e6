"""Whether every node sees the inputs and shares the output, before any work starts.

A token that this process writes is read on every node, and what every node writes is read here: a
path that exists on one node only is an error and not a half-written result. Knows no Ray.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field

from expo_ray.checkpoints.opening import open_storage
from expo_ray.checkpoints.storages.remote_path import AnyPath, RemotePath, any_path
from expo_ray.checkpoints.storages.storage import WORK_FOLDER, FileFacts
from expo_ray.errors import ConfigError, ExpoError
from expo_ray.extrapolation.planning.plan import Plan

_MAX_LISTED = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeCheck:
    """What is asked of every node."""

    inputs: tuple[tuple[str, tuple[FileFacts, ...]], ...] = ()
    """Address and files of each input, as this process sees them."""
    outputs: tuple[str, ...] = ()
    """Folders that are written into."""
    token: str = field(default_factory=lambda: secrets.token_hex(8))

    def marker(self, folder: str, name: str) -> AnyPath:
        """Return where a process called `name` leaves its token."""
        # The ending is that of other temporary files: a later run removes what a kill left here.
        return any_path(folder) / WORK_FOLDER / f"check-{self.token}-{name}.tmp"


def plan_check(plan: Plan, outputs: Sequence[AnyPath]) -> NodeCheck:
    """Return the check for a plan; of a remote input one file stands for all."""
    inputs = []
    for side in plan.pair.sides.values():
        facts = tuple(file.facts for file in side.weight_files.values())
        inputs.append((side.uri, facts[:1] if "://" in side.uri else facts))
    return NodeCheck(inputs=tuple(inputs), outputs=tuple(map(str, outputs)))


def leave_token(check: NodeCheck, name: str) -> None:
    """Write the token of one process into every output.

    Raises:
        OSError: An output cannot be written to.
    """
    for folder in check.outputs:
        marker = check.marker(folder, name)
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.write_bytes(check.token.encode())


def probe_node(check: NodeCheck, name: str) -> list[str]:
    """Look at inputs and outputs from one node; runs there.

    Args:
        check: What to look at.
        name: A name for this node that is fit for a file.

    Returns:
        The problems found, in words.
    """
    problems = []
    for uri, files in check.inputs:
        try:
            storage = open_storage(uri)
            for facts in files:
                with storage.open(facts.name) as reader:
                    if reader.facts != facts:
                        problems.append(f"{uri}/{facts.name} is another file here")
                        break
        except (ExpoError, OSError) as error:
            problems.append(f"{uri} cannot be read: {_words(error)}")
    for folder in check.outputs:
        try:
            found = _read(check.marker(folder, "driver"))
            if found != check.token:
                problems.append(f"{folder} is not the folder that the driver sees")
                continue
            marker = check.marker(folder, name)
            marker.write_bytes(check.token.encode())
        except (ExpoError, OSError) as error:
            problems.append(f"{folder} cannot be written to: {_words(error)}")
    return problems


def unseen_outputs(check: NodeCheck, name: str) -> list[str]:
    """Return in words which outputs of a node cannot be seen from this process."""
    return [
        f"what it writes into {folder} is not seen by the driver"
        for folder in check.outputs
        if _read(check.marker(folder, name)) != check.token
    ]


def remove_tokens(check: NodeCheck) -> None:
    """Remove all tokens that can be seen from here."""
    for folder in check.outputs:
        work = any_path(folder) / WORK_FOLDER
        with contextlib.suppress(OSError):
            markers: list[AnyPath] = list(work.glob(f"check-{check.token}-*"))
            for marker in markers:
                marker.unlink(missing_ok=True)


def refuse_problems(problems: dict[str, list[str]]) -> None:
    """Let a run pass that every node can take part in.

    Raises:
        ConfigError: Some node cannot.
    """
    lines = [f"{node}: {text}" for node, texts in sorted(problems.items()) for text in texts]
    if lines:
        more = [f"and {len(lines) - _MAX_LISTED} more"] if len(lines) > _MAX_LISTED else []
        raise ConfigError(
            "not every node of the cluster sees the inputs and the output",
            where=", ".join(sorted(node for node, texts in problems.items() if texts)),
            got="; ".join([*lines[:_MAX_LISTED], *more]),
            expected="the same files on every node",
            hint="give paths on a shared disk, or s3:// addresses; credentials and endpoints "
            "must be set on every node",
        )


def _read(path: AnyPath) -> str | None:
    # A network file system may show a new file late; a folder that is listed anew is up to date.
    with contextlib.suppress(OSError):
        if not isinstance(path, RemotePath):
            list(path.parent.iterdir())
        return path.read_text(encoding="utf-8")
    return None


def _words(error: Exception) -> str:
    if isinstance(error, ExpoError):
        return f"{error.message} ({error.got})" if error.got else error.message
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error)
