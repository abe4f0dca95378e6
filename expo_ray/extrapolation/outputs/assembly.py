"""Reassembly: from shard receipts to one loadable checkpoint, its record written last."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from expo_ray.checkpoints.checkpoint import CONFIG_NAME, Checkpoint
from expo_ray.checkpoints.digests import WeightsDigest, digest_of
from expo_ray.checkpoints.formats.header import FLOAT_DTYPES
from expo_ray.checkpoints.formats.index import build_index
from expo_ray.checkpoints.formats.layouts import INDEX_NAME
from expo_ray.checkpoints.opening import open_checkpoint, open_storage
from expo_ray.checkpoints.sidecars import is_legal
from expo_ray.checkpoints.storages.atomic_io import atomic_write_bytes, atomic_write_parts
from expo_ray.checkpoints.storages.remote_path import AnyPath
from expo_ray.checkpoints.storages.storage import (
    DEQUANTIZED_MARK,
    MAX_SMALL_FILE_BYTES,
    RECORD_NAME,
)
from expo_ray.errors import CheckpointError, ShardError
from expo_ray.extrapolation.arithmetic.directions import Direction
from expo_ray.extrapolation.arithmetic.requantization_costs import requantization_loss
from expo_ray.extrapolation.nodes.trial_load import LoadingCheck
from expo_ray.extrapolation.outputs.model_card import path_words, render_card
from expo_ray.extrapolation.outputs.record import SCHEMA_VERSION, read_record, sealed_parts
from expo_ray.extrapolation.planning.alpha import round_alpha
from expo_ray.extrapolation.planning.alpha_rules import Resolution
from expo_ray.extrapolation.planning.plan import Plan
from expo_ray.extrapolation.shards.receipts import is_as_written
from expo_ray.extrapolation.shards.run_token import check_token
from expo_ray.extrapolation.shards.tasks import ShardReceipt
from expo_ray.versions import versions

CARD_NAME = "README.md"
_ROLES = ("initial", "aligned", "onto")
_DTYPE_NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Attachments:
    """Files that go into every output unchanged, and the config; read once."""

    config: bytes
    sidecars: Mapping[str, bytes]

    def digests(self) -> dict[str, str]:
        """Return the sha256 of each by name: they are part of what a plan writes."""
        files = {CONFIG_NAME: self.config, **self.sidecars}
        return {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}


def read_attachments(plan: Plan) -> Attachments:
    """Read the files beside the weights of the base.

    Outputs are given away, so that a link in a downloaded checkpoint must not bring in a file of
    this machine: licences behind one stay behind, files that a model needs are refused. Weights
    may be links, as on clusters they often are: nothing but well-formed weights passes there.

    Raises:
        CheckpointError: One cannot be read, leads out of the checkpoint, or all are too big.
    """
    base = plan.pair.base
    for name, target in base.links.items():
        if not is_legal(name):
            raise CheckpointError(
                "the file is a link that leaves the checkpoint: it is not copied into an output",
                where=f"{base.uri}/{name}",
                got=target,
                expected="a file inside the checkpoint",
                hint="if it belongs to the model, put a copy of it in place of the link",
            )
    sidecars: dict[str, bytes] = {}
    for name in base.sidecars:
        if name not in base.links:
            sidecars[name] = base.storage.read_bytes(name)
            if sum(map(len, sidecars.values())) > MAX_SMALL_FILE_BYTES:
                raise CheckpointError(
                    "the files beside the weights are too big",
                    where=f"{base.uri}/{name}",
                    expected=f"at most {MAX_SMALL_FILE_BYTES} bytes in all",
                    hint="move what does not belong to the model elsewhere",
                )
    return Attachments(config=output_config(plan), sidecars=sidecars)


def written_dtype(plan: Plan) -> str:
    """Return the name of the dtype that most floating-point elements of the output have."""
    counts: Counter[str] = Counter()
    for pair in plan.pair.tensors:
        if pair.output_dtype in FLOAT_DTYPES:
            counts[pair.output_dtype] += pair.aligned.num_elements
    # Where all is FP8, what counts is the dtype of activations.
    return _DTYPE_NAMES[min(counts, key=lambda name: (-counts[name], name), default="BF16")]


def output_config(plan: Plan) -> bytes:
    """Return config.json of the base with its dtype set to what is written.

    Where nothing has to change, the bytes are those of the base.
    """
    base = plan.pair.base
    storage = base.storage
    if plan.is_requantized:  # how the blocks are stored is said there and holds on
        storage = open_storage(base.uri.removesuffix(DEQUANTIZED_MARK))
    original = storage.read_bytes(CONFIG_NAME)
    config = json.loads(original)
    dtype = written_dtype(plan)
    sections = [config]
    floats = {p.output_dtype for p in plan.pair.tensors if p.output_dtype in FLOAT_DTYPES}
    if len(floats) == 1:  # of several, which part of the model has which is not told here
        sections += [v for k, v in config.items() if k.endswith("_config") and isinstance(v, dict)]
    changed = False
    for section in sections:
        keys = [key for key in ("dtype", "torch_dtype") if isinstance(section.get(key), str)]
        if section is config and not keys:
            keys = ["dtype"]
        for key in keys:
            changed |= section.get(key) != dtype
            section[key] = dtype
    if not changed:
        return original
    return (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode("utf-8")


def assemble(
    plan: Plan,
    *,
    folder: AnyPath,
    alpha: float | None,
    resolution: Resolution | None,
    at_step: float | None = None,
    direction: Direction | None = None,
    plan_digest: str,
    run_token: str,
    receipts: Sequence[ShardReceipt],
    attachments: Attachments,
    loading: LoadingCheck | None,
    allow: Mapping[str, bool],
) -> str:
    """Write everything beside the shards; the record last, config.json just before it.

    Args:
        plan: The plan.
        folder: The output folder, with all shards in it.
        alpha: Its alpha, None under rules.
        resolution: Under rules, the alpha of every tensor.
        at_step: Of a trajectory, the step that was asked for.
        direction: Of a trajectory, what took the place of delta.
        plan_digest: Its plan digest.
        run_token: Of the run that owns the folder.
        receipts: One per shard, in the order of the plan.
        attachments: Config and sidecars.
        loading: What the trial load found.
        allow: Which checks were switched off.

    Returns:
        The weights digest.

    Raises:
        ShardError: What lies there is not what was planned and written, or another run has
            taken over the folder, as is possible where there are no locks.
    """

    def write(name: str, data: bytes, kind: str) -> dict[str, str | int]:
        check_token(folder, run_token)
        return _write(folder, name, data, kind)

    digest = _weights_digest(receipts)
    alphas = resolution.alphas if resolution else {}
    files = [_entry(r.name, r.num_bytes, r.digest, "weights") for r in receipts]
    if len(receipts) > 1:
        index = build_index(
            {name: r.name for r in receipts for name in r.tensors},
            total_bytes=plan.data_bytes,
            num_parameters=plan.pair.base.num_parameters,
        )
        files.append(write(INDEX_NAME, index, "index"))
    for name, data in attachments.sidecars.items():
        files.append(write(name, data, "sidecar"))
    card = render_card(
        alpha=alpha,
        alpha_range=(min(alphas.values()), max(alphas.values())) if alphas else None,
        initial_uri=plan.pair.initial.uri,
        aligned_uri=plan.pair.aligned.uri,
        onto_uri=None if plan.pair.onto is None else plan.pair.onto.uri,
        path_words=path_words(plan, at_step),
        between={label: side.uri for label, side in plan.pair.between.items()},
        end_labels=plan.pair.end_labels,
        formula=plan.formula,
        weights_digest=digest,
        num_parameters=plan.pair.base.num_parameters,
        dtype=written_dtype(plan),
        folder_name=folder.name,
    )
    files.append(write(CARD_NAME, card.encode("utf-8"), "card"))
    files.append(write(CONFIG_NAME, attachments.config, "config"))
    _check_shards(plan, folder, receipts, run_token)
    record = {
        "schema_version": SCHEMA_VERSION,
        "alpha": alpha,
        "alpha_float32": None if alpha is None else round_alpha(alpha),
        "alpha_rules": resolution.as_dict() if resolution else None,
        "formula": plan.formula,
        "weights_digest": digest,
        "plan_digest": plan_digest,
        **{side: _side(plan.pair.sides[side]) for side in _ROLES if side in plan.pair.sides},
        "trajectory": _trajectory(plan, at_step, direction),
        "options": {
            "output_dtype": plan.output_dtype,
            "max_shard_bytes": plan.max_shard_bytes,
            "vocab_policy": plan.vocab_policy,
            "transforms": list(map(str, plan.transforms)),
            "extra_tensors": list(plan.extra_tensors),
            **allow,
        },
        "dtype": written_dtype(plan),
        "num_parameters": plan.pair.base.num_parameters,
        "num_bytes": plan.data_bytes,
        "versions": versions(),
        "files": sorted(files, key=lambda entry: str(entry["name"])),
        "files_not_carried": [*plan.pair.base.other_files, *sorted(plan.pair.base.links)],
        "tensors_left_out": list(plan.pair.left_out),
        "notes": list(plan.pair.notes),
        "vocabulary": _vocabulary(plan),
        "requantization": _rounding(receipts) if plan.is_requantized else None,
        "loading": loading.as_dict() if loading else None,
    }
    check_token(folder, run_token)
    tensors = _facts(receipts, alphas)
    atomic_write_parts(folder / RECORD_NAME, sealed_parts(record, tensors))
    _withdraw_if_taken_over(folder, run_token, digest)
    return digest


def _facts(
    receipts: Sequence[ShardReceipt], alphas: Mapping[str, float]
) -> Iterator[tuple[str, dict[str, Any]]]:
    for receipt in receipts:
        for name, facts in sorted(receipt.tensors.items()):
            yield name, {**facts, "alpha": alphas.get(name)} if alphas else facts


def _rounding(receipts: Sequence[ShardReceipt]) -> dict[str, Any]:
    return requantization_loss(facts for _, facts in _facts(receipts, {}))


def _weights_digest(receipts: Sequence[ShardReceipt]) -> str:
    digest = WeightsDigest()
    for receipt in receipts:
        for name, facts in receipt.tensors.items():
            digest.add_digest(name, facts["digest"], facts["dtype"], facts["shape"])
    return digest.written()


def _withdraw_if_taken_over(folder: AnyPath, run_token: str, digest: str) -> None:
    """Take the record back where another run began while it was written, which takes seconds."""
    try:
        check_token(folder, run_token)
    except ShardError:
        with contextlib.suppress(CheckpointError, OSError):
            if read_record(folder)["weights_digest"] == digest:
                (folder / RECORD_NAME).unlink()
        raise


def _check_shards(
    plan: Plan, folder: AnyPath, receipts: Sequence[ShardReceipt], run_token: str
) -> None:
    """Read our own output back as strictly as any input; each file must be the one we wrote."""
    written = open_checkpoint(str(folder), allow_unfinished=True)
    found = {ref.name: (ref.dtype, ref.shape) for ref in written.tensors.values()}
    expected = {
        name: (dtype, shape) for pair in plan.pair.tensors for name, dtype, shape in pair.outputs
    }
    if found != expected:
        different = sorted(set(found.items()) ^ set(expected.items()))
        raise ShardError(
            "the assembled checkpoint is not the planned one", where=folder, got=different[:3]
        )
    for receipt in receipts:
        if not is_as_written(folder, receipt, written.weight_files[receipt.name].facts):
            check_token(folder, run_token)
            raise ShardError(
                "a finished shard was changed while others were written",
                where=folder / receipt.name,
                expected=receipt.digest,
                hint="run the same command again, it writes this shard anew",
            )


def _write(folder: AnyPath, name: str, data: bytes, kind: str) -> dict[str, str | int]:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(path, data)
    return _entry(name, len(data), digest_of(data), kind)


def _entry(name: str, num_bytes: int, digest: str, kind: str) -> dict[str, str | int]:
    return {"name": name, "bytes": num_bytes, "digest": digest, "kind": kind}


def _vocabulary(plan: Plan) -> dict[str, Any] | None:
    found = plan.pair.vocabulary
    if found is None:
        return None
    tensors = [pair.name for pair in plan.pair.tensors if pair.runs]
    return {"policy": plan.vocab_policy, **found.as_dict(), "tensors": tensors}


def _trajectory(
    plan: Plan, at_step: float | None, direction: Direction | None
) -> dict[str, Any] | None:
    """Return which checkpoints made the direction, and with which weights."""
    if plan.path is None:
        return None
    pair = plan.pair
    sides = (pair.initial, *pair.between.values(), pair.aligned)
    # Where each tensor has weights of its own, they are among the facts of the tensors.
    weights = direction.weights if direction else ()
    return {
        **plan.path.as_dict(),
        "at_step": at_step,
        "checkpoints": [
            {"step": step, **_side(side)} for step, side in zip(plan.path.read, sides, strict=True)
        ],
        "weights": list(weights) or None,
    }


def _side(checkpoint: Checkpoint) -> dict[str, Any]:
    return {"uri": checkpoint.uri, "files": checkpoint.identity()}
