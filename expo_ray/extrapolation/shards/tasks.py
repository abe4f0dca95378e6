"""What a task is told and what it tells back: small records that travel between processes."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from expo_ray.checkpoints.storages.part_upload import MAX_STREAMS, sends_small_parts
from expo_ray.checkpoints.storages.remote_path import RemotePath, is_remote
from expo_ray.checkpoints.storages.storage import FileFacts
from expo_ray.extrapolation.arithmetic.directions import Direction
from expo_ray.extrapolation.arithmetic.requantization_costs import requantization_memory_bytes
from expo_ray.extrapolation.arithmetic.transforms import Transform, transform_memory_bytes
from expo_ray.extrapolation.pairing.tensor_pair import TensorPair
from expo_ray.extrapolation.planning.plan import OutputShard, Plan, input_facts

WRITE = "write"
COMPARE = "compare"
MEASURE = "measure"
MEASURE_PATHS = "measure-paths"

# With the compiled arithmetic (numba and a kernel, about 180 MiB) a worker stays below
# TASK_MEMORY_BYTES.
BUFFER_BUDGET_BYTES = 40 * 1024 * 1024
TASK_MEMORY_BYTES = 256 * 1024 * 1024
# Sums over many checkpoints are not compiled, and take what that leaves: many files are read in
# pieces that must not be small.
PATH_BUFFER_BYTES = 144 * 1024 * 1024
# With very many alphas at a time, or after a failure for want of memory.
MIN_CHUNK_BYTES = 64 * 1024
DEFAULT_THREADS = 2
# Compiling takes a process about a second, which less work than this does not win back.
MIN_COMPILED_BYTES = 512 * 1024 * 1024
# Once per alpha, where parts are as small as S3 takes them.
SMALL_UPLOAD_BYTES = 6 * 1024 * 1024
STORE_CLIENT_BYTES = 48 * 1024 * 1024
# Many uploads keep a process waiting longer than the plain arithmetic does: they are not compiled,
# and take the memory that this leaves.
COMPILED_BYTES = 180 * 1024 * 1024
# A request over a network waits much longer than it computes: more and larger ones at a time. They
# are the read-ahead, inside the same budget of buffers.
REMOTE_OPTIONS = {"num_threads": 8, "chunk_bytes": 8 * 1024 * 1024}


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardOutput:
    """One checkpoint that a task writes its shard into, or compares it with."""

    alpha: float | None
    """None where every tensor has its own."""
    folder: str
    plan_digest: str
    run_token: str = ""
    """Drawn by the run that owns the folder; a task of an older run finds another one there."""
    tensor_alphas: Mapping[str, float] = field(default_factory=dict)
    """Under alpha rules, of the tensors of the shard that the formula covers."""
    direction: int = 0
    """Of a trajectory: which of the task's directions is its delta."""

    def alpha_of(self, name: str) -> float:
        """Return the alpha of one tensor."""
        return self.tensor_alphas[name] if self.alpha is None else self.alpha


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardTask:
    """The work on one output shard, for all alphas at once."""

    mode: str
    """write, compare, measure or measure-paths."""
    shard: OutputShard
    initial_uri: str
    aligned_uri: str
    initial_files: Mapping[str, FileFacts]
    aligned_files: Mapping[str, FileFacts]
    outputs: tuple[ShardOutput, ...]
    onto_uri: str | None = None
    """What delta is added to, where that is not aligned."""
    onto_files: Mapping[str, FileFacts] = field(default_factory=dict)
    between: Mapping[str, tuple[str, Mapping[str, FileFacts]]] = field(default_factory=dict)
    """Of a trajectory: the checkpoints between initial and aligned, in order, by "step 200"."""
    allow_nonfinite: bool = False
    allow_overflow: bool = False
    num_threads: int = DEFAULT_THREADS
    chunk_bytes: int = 4 * 1024 * 1024
    """Upper limit; with many alphas chunks get smaller so that memory stays bounded."""
    transforms: tuple[Transform, ...] = ()
    """Of delta, in the order in which they are applied."""
    may_compile: bool = False
    """The whole work is large enough to win back what compiling the kernel costs a process."""
    needs_statistics: bool = True
    """Whether somebody reads the sums; without them the compiled kernel is faster."""
    directions: tuple[Direction, ...] = ()
    """What takes the place of aligned - initial; empty where nothing does."""
    end_labels: tuple[str, str] = ("initial", "aligned")
    """What errors call the two ends."""

    @property
    def uris(self) -> tuple[str, ...]:
        """Where the inputs lie."""
        between = (uri for uri, _ in self.between.values())
        onto = () if self.onto_uri is None else (self.onto_uri,)
        return (self.initial_uri, *between, self.aligned_uri, *onto)

    @property
    def extra_memory_bytes(self) -> int:
        """What the most demanding tensor takes beside the buffers of every task."""
        is_writing = self.mode == WRITE
        folders = [output.folder for output in self.outputs]
        return extra_memory_bytes(
            self.shard.tensors,
            self.transforms,
            folders,
            is_writing=is_writing,
            has_directions=bool(self.directions),
        )


def extra_memory_bytes(
    tensors: Sequence[TensorPair],
    transforms: Sequence[Transform],
    folders: Sequence[str],
    *,
    is_writing: bool = True,
    has_directions: bool = False,
) -> int:
    """Return what transforms, FP8 blocks and uploads take beside the buffers of every task."""
    num_bytes = transform_memory_bytes(tensors, transforms)
    num_bytes += requantization_memory_bytes(tensors, len(folders), BUFFER_BUDGET_BYTES)
    if not is_writing:
        return num_bytes
    room_bytes = 0 if may_compile_beside(folders) or has_directions else COMPILED_BYTES
    return num_bytes + max(0, _upload_memory_bytes(folders) - room_bytes)


def may_compile_beside(folders: Sequence[str]) -> bool:
    """Tell whether there is memory for compiled arithmetic beside the uploads to some folders."""
    return sum(map(is_remote, folders)) <= MAX_STREAMS


def _upload_memory_bytes(folders: Sequence[str]) -> int:
    paths = [RemotePath(folder) for folder in folders if is_remote(folder)]
    if not paths:
        return 0
    return STORE_CLIENT_BYTES + sum(
        SMALL_UPLOAD_BYTES if sends_small_parts(path, len(folders)) else path.store.upload_bytes
        for path in paths
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One difference between a checkpoint and its record or its inputs."""

    file: str
    tensor: str | None
    message: str
    got: str
    expected: str

    def as_dict(self) -> dict[str, str | None]:
        """Return the fields, JSON-able."""
        return {
            "file": self.file,
            "tensor": self.tensor,
            "message": self.message,
            "got": self.got,
            "expected": self.expected,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardReceipt:
    """What was written (or found) for one shard and one alpha."""

    name: str
    plan_digest: str
    num_bytes: int
    digest: str
    """See `checkpoints.digests`."""
    packed_tensors: bytes
    """See `pack_tensors`: a driver holds the facts of all tensors of the model."""
    version: str = ""
    """Of the file as it was published: time of change, or ETag."""
    problems: tuple[Problem, ...] = ()

    @property
    def tensors(self) -> dict[str, dict[str, Any]]:
        """Per tensor: dtype, shape, digest, statistics; made anew at each call."""
        found: dict[str, dict[str, Any]] = json.loads(zlib.decompress(self.packed_tensors))
        return found

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON of the receipt file."""
        return {
            "name": self.name,
            "plan_digest": self.plan_digest,
            "bytes": self.num_bytes,
            "digest": self.digest,
            "version": self.version,
            "tensors": self.tensors,
        }


def pack_tensors(tensors: Mapping[str, Mapping[str, Any]]) -> bytes:
    """Return the facts of tensors in a tenth of the memory that dictionaries take.

    Raises:
        ValueError: A number is not finite, which JSON has no word for.
    """
    text = json.dumps(tensors, separators=(",", ":"), allow_nan=False)
    return zlib.compress(text.encode(), level=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardReport:
    """What a task hands back."""

    shard_name: str
    bytes_read: int
    bytes_written: int
    seconds: float
    receipts: tuple[ShardReceipt, ...] = ()
    """One per output of the task."""
    statistics: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Per tensor, without what depends on alpha; filled when measuring."""


def shard_task(
    plan: Plan,
    shard: OutputShard,
    mode: str,
    outputs: tuple[ShardOutput, ...],
    *,
    directions: Sequence[Direction] = (),
    **options: Any,
) -> ShardTask:
    """Return the task for one shard, with the facts of just the input files that it reads."""
    pair = plan.pair
    if any("://" in side.uri for side in pair.sides.values()):
        options = {**REMOTE_OPTIONS, **options}
    return ShardTask(
        mode=mode,
        shard=shard,
        initial_uri=pair.initial.uri,
        aligned_uri=pair.aligned.uri,
        initial_files=input_facts(
            pair.initial, {p.initial.file for p in shard.tensors if p.initial}
        ),
        # What is copied from another base is not read from aligned, which may not have it.
        aligned_files=input_facts(
            pair.aligned,
            {p.aligned.file for p in shard.tensors if p.initial or pair.onto is None},
        ),
        onto_uri=None if pair.onto is None else pair.onto.uri,
        onto_files={}
        if pair.onto is None
        else input_facts(pair.onto, {p.base.file for p in shard.tensors}),
        between={
            label: (checkpoint.uri, input_facts(checkpoint, files))
            for (label, checkpoint), files in zip(
                pair.between.items(), _files_between(shard.tensors, len(pair.between)), strict=True
            )
        },
        outputs=outputs,
        transforms=plan.transforms,
        may_compile=plan.input_bytes >= MIN_COMPILED_BYTES
        and may_compile_beside([output.folder for output in outputs]),
        directions=tuple(d.among(p.name for p in shard.tensors) for d in directions),
        end_labels=pair.end_labels,
        **options,
    )


def _files_between(tensors: Sequence[TensorPair], num_between: int) -> list[set[str]]:
    """Return the files that are read of each checkpoint between initial and aligned."""
    paths = [pair.between for pair in tensors if pair.between]
    return [{path[i].file for path in paths} for i in range(num_between)]
