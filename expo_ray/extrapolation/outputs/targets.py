"""The outputs of one run: where each alpha goes, whether it may, and what is there already."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from expo_ray.checkpoints.storages.object_stores import object_addresses
from expo_ray.checkpoints.storages.remote_path import AnyPath, RemotePath, any_path, is_remote
from expo_ray.checkpoints.storages.s3_client import MAX_COPY_BYTES, may_move
from expo_ray.checkpoints.storages.storage import split_address
from expo_ray.errors import ConfigError, argument
from expo_ray.extrapolation.arithmetic.directions import Direction
from expo_ray.extrapolation.outputs.assembly import Attachments
from expo_ray.extrapolation.outputs.work_folder import (
    OutputState,
    begin_output,
    claimed_folder,
    examine_output,
    leave_folder,
)
from expo_ray.extrapolation.pairing.tensor_pair import Pair
from expo_ray.extrapolation.planning.alpha import checkpoint_name
from expo_ray.extrapolation.planning.alpha_rules import Resolution
from expo_ray.extrapolation.planning.path import step_checkpoint_name
from expo_ray.extrapolation.planning.plan import Plan, plan_digest
from expo_ray.extrapolation.shards.receipts import read_receipt
from expo_ray.extrapolation.shards.tasks import (
    WRITE,
    ShardOutput,
    ShardReceipt,
    ShardTask,
    shard_task,
)
from expo_ray.extras import install_command

# Room for index, sidecars and record beside the weights.
SPARE_BYTES = 64 * 1024 * 1024


@dataclass(kw_only=True, slots=True)
class Target:
    """One output checkpoint of a run."""

    alpha: float | None
    """None under alpha rules."""
    folder: AnyPath
    plan_digest: str
    state: OutputState
    resolution: Resolution | None = None
    """Under alpha rules, the alpha of every tensor."""
    at_step: float | None = None
    """The step that was asked for, along a trajectory."""
    direction: Direction | None = None
    """Of a trajectory: what takes the place of delta; None where it is that of a pair, or is not
    known yet."""
    run_token: str = ""
    receipts: dict[str, ShardReceipt] = field(default_factory=dict)
    """Finished shards by name; those found at the start were resumed."""
    num_resumed: int = 0

    @property
    def is_done(self) -> bool:
        """Whether the checkpoint was complete before this run."""
        return self.state is OutputState.COMPLETE


def find_targets(
    plan: Plan,
    output: str | Path,
    alphas: Sequence[float],
    attachments: Attachments,
    *,
    overwrite: bool,
    resolution: Resolution | None = None,
    at_steps: Sequence[float] = (),
) -> list[Target]:
    """Decide where every alpha goes; nothing is changed.

    Args:
        plan: The plan.
        output: The folder that the caller named.
        alphas: One output per alpha.
        attachments: What lies beside the weights.
        overwrite: Whether what is there may be replaced.
        resolution: Alpha rules that replace `alphas` by one output.
        at_steps: Of a trajectory, the step that each alpha stands for, where steps were asked for.

    Raises:
        ConfigError: An output lies in an input, or holds what this run did not make.
    """
    root = _output_root(plan, output)
    digests = attachments.digests()
    targets = []
    steps: Sequence[float | None] = at_steps or (None,) * len(alphas)
    asked = [(None, None)] if resolution else list(zip(alphas, steps, strict=True))
    for alpha, step in asked:
        folder = root
        if alpha is not None and len(alphas) > 1:
            folder = root / (checkpoint_name(alpha) if step is None else step_checkpoint_name(step))
        _refuse_input_as_output(plan.pair, folder)
        tensor_alphas = resolution.alphas if resolution else None
        digest = plan_digest(plan, alpha, digests, tensor_alphas, at_step=step)
        with _usable(folder):
            state = examine_output(folder, digest, overwrite=overwrite)
        targets.append(
            Target(
                alpha=alpha,
                folder=folder,
                plan_digest=digest,
                state=state,
                resolution=resolution,
                at_step=step,
            )
        )
    return targets


def _output_root(plan: Plan, output: str | Path) -> AnyPath:
    text = str(output)
    if "://" in text and not text.startswith("file://") and not is_remote(text):
        raise ConfigError(
            "this kind of output is not supported",
            where="OUTPUT",
            got=text,
            expected=f"a local folder, {object_addresses()}",
        )
    root = any_path(text)
    largest = max(plan.shards, key=lambda shard: shard.data_bytes)
    if isinstance(root, RemotePath) and not may_move(root, largest.data_bytes + SPARE_BYTES):
        raise ConfigError(
            "a shard is bigger than what S3 moves in one request",
            where=f"OUTPUT, {largest.name}",
            got=f"{largest.data_bytes} bytes",
            expected=f"at most {MAX_COPY_BYTES - SPARE_BYTES} bytes, without boto3",
            hint=f"lower {argument('max_shard_size')}; where one tensor is so big, boto3 copies "
            f"in parts: {install_command('s3')} on every node",
        )
    return root


def _refuse_input_as_output(pair: Pair, folder: AnyPath) -> None:
    for side, address in ((s, a) for s, c in pair.sides.items() for a in split_address(c.uri)):
        if not address or address.startswith("hf://"):
            continue
        source = any_path(address).resolve()
        if folder.resolve() == source or source in folder.resolve().parents:
            raise ConfigError(
                f"the output lies in {side}, which is never written to",
                where="OUTPUT",
                got=folder,
                hint="choose another folder",
            )


@contextlib.contextmanager
def _usable(folder: AnyPath) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(
            "the output cannot be used",
            where=folder,
            got=error.strerror or error,
            hint="check the path, its rights, and the credentials of the environment",
        ) from error


def check_space(plan: Plan, targets: Sequence[Target]) -> None:
    """Let a run pass whose outputs fit on their disks.

    Raises:
        ConfigError: They do not.
    """
    needed: dict[Path, int] = {}
    for target in targets:
        if target.is_done or isinstance(target.folder, RemotePath):
            continue
        present = sum(p.stat().st_size for p in target.folder.glob("*.safetensors"))
        parent = next(p for p in (target.folder, *target.folder.parents) if p.exists())
        needed[parent] = needed.get(parent, 0) + max(0, plan.file_bytes - present)
    for parent, num_bytes in needed.items():
        free_bytes = shutil.disk_usage(parent).free
        if num_bytes + SPARE_BYTES > free_bytes:
            raise ConfigError(
                "there is not enough room on the disk of the output",
                where=parent,
                got=f"{free_bytes} bytes free",
                expected=f"at least {num_bytes + SPARE_BYTES} bytes",
            )


def claim(stack: contextlib.ExitStack, plan: Plan, target: Target, *, overwrite: bool) -> None:
    """Own the folder of a target until the stack closes, and find its finished shards.

    Raises:
        ConfigError: Another run owns it.
    """
    with _usable(target.folder):
        target.run_token = stack.enter_context(
            claimed_folder(target.folder, target.plan_digest, overwrite=overwrite)
        )
    if not target.run_token:
        target.state = OutputState.COMPLETE
        return
    if overwrite:
        return
    for shard in plan.shards:
        receipt = read_receipt(target.folder, shard.name, target.plan_digest)
        if receipt is not None:
            target.receipts[shard.name] = receipt
    target.num_resumed = len(target.receipts)


def begin(plan: Plan, targets: Sequence[Target], *, overwrite: bool) -> None:
    """Make the claimed folders ready for tasks: from here on an old result is gone.

    Raises:
        ConfigError: A folder cannot be written to.
    """
    sides = {side: {"uri": checkpoint.uri} for side, checkpoint in plan.pair.sides.items()}
    for target in targets:
        if not target.is_done:
            with _usable(target.folder):
                begin_output(
                    target.folder,
                    target.plan_digest,
                    target.run_token,
                    overwrite=overwrite,
                    request={"alpha": target.alpha, **sides},
                )


def release(targets: Sequence[Target]) -> None:
    """Undo the claims of a request that was refused before its work began."""
    for target in targets:
        # Without a token the folder is another run's, or was not reached.
        if target.run_token and target.state is OutputState.FRESH:
            leave_folder(target.folder)


def plan_tasks(
    plan: Plan,
    targets: Sequence[Target],
    *,
    allow_nonfinite: bool = False,
    allow_overflow: bool = False,
) -> list[ShardTask]:
    """Return one task per shard that some target still lacks."""
    tasks = []
    for shard in plan.shards:
        pending = [t for t in targets if not t.is_done and shard.name not in t.receipts]
        # Alphas of one direction are computed from one sum over the checkpoints.
        directions = {id(t.direction): t.direction for t in pending if t.direction is not None}
        outputs = tuple(
            ShardOutput(
                alpha=target.alpha,
                folder=str(target.folder),
                plan_digest=target.plan_digest,
                run_token=target.run_token,
                tensor_alphas=target.resolution.of(shard.tensors) if target.resolution else {},
                direction=list(directions).index(id(target.direction)) if directions else 0,
            )
            for target in pending
        )
        if outputs:
            tasks.append(
                shard_task(
                    plan,
                    shard,
                    WRITE,
                    outputs,
                    directions=tuple(directions.values()),
                    allow_nonfinite=allow_nonfinite,
                    allow_overflow=allow_overflow,
                )
            )
    return tasks
