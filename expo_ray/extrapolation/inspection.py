"""What a checkpoint holds, from its headers alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from expo_ray.checkpoints.checkpoint import Checkpoint
from expo_ray.checkpoints.opening import open_checkpoint
from expo_ray.checkpoints.quantization import quantization_of
from expo_ray.checkpoints.storages.storage import RECORD_NAME
from expo_ray.extrapolation.outputs.record import parse_record
from expo_ray.extrapolation.outputs.results import SCHEMA_VERSION
from expo_ray.extrapolation.planning.plan import natural_key


@dataclass(frozen=True, kw_only=True, slots=True)
class Inspection:
    """The facts of one checkpoint."""

    checkpoint: Checkpoint
    quantization: str | None
    record: dict[str, Any] | None
    """Of an output of ours: alpha, parents, weights digest."""

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON of the command."""
        checkpoint = self.checkpoint
        elements: Counter[str] = Counter()
        for ref in checkpoint.tensors.values():
            elements[ref.dtype] += ref.num_elements
        tensors = sorted(checkpoint.tensors.values(), key=lambda ref: natural_key(ref.name))
        return {
            "schema_version": SCHEMA_VERSION,
            "uri": checkpoint.uri,
            "architectures": checkpoint.config.get("architectures"),
            "model_type": checkpoint.config.get("model_type"),
            "num_parameters": checkpoint.num_parameters,
            "num_tensors": len(checkpoint.tensors),
            "num_bytes": checkpoint.num_bytes,
            "num_shards": len(checkpoint.files),
            "dtypes": {dtype: elements[dtype] for dtype in sorted(elements)},
            "tie_word_embeddings": checkpoint.config.get("tie_word_embeddings"),
            "quantization": self.quantization,
            "extrapolated": self._extrapolated(),
            "shards": [
                {"name": name, "bytes": file.facts.num_bytes, "header_sha256": file.header_sha256}
                for name, file in checkpoint.weight_files.items()
            ],
            "sidecars": list(checkpoint.sidecars),
            "other_files": list(checkpoint.other_files),
            "tensors": [
                {
                    "name": ref.name,
                    "dtype": ref.dtype,
                    "shape": list(ref.shape),
                    "bytes": ref.num_bytes,
                    "file": ref.file,
                }
                for ref in tensors
            ],
        }

    def _extrapolated(self) -> dict[str, Any] | None:
        if self.record is None:
            return None
        return {
            "alpha": self.record["alpha"],
            "initial": self.record["initial"].get("uri"),
            "aligned": self.record["aligned"].get("uri"),
            "trajectory": self._trajectory(),
            "weights_digest": self.record["weights_digest"],
        }

    def _trajectory(self) -> dict[str, Any] | None:
        path = None if self.record is None else self.record.get("trajectory")
        if path is None:
            return None
        kept = {key: path.get(key) for key in ("fit", "options", "from", "at_step", "steps")}
        places = [{"step": row["step"], "uri": row["uri"]} for row in path["checkpoints"]]
        return {**kept, "checkpoints": places}


def inspect_checkpoint(uri: str | Path) -> Inspection:
    """Read the headers of a checkpoint; quantized ones are shown too.

    Args:
        uri: A folder, s3://, gs://, hf://owner/name[@revision] or a bare Hub id.

    Returns:
        Tensors, dtypes, parameters, bytes and shards.

    Raises:
        CheckpointError: It is missing or malformed.

    Example:
        >>> facts = expo_ray.inspect_checkpoint("dpo").as_dict()
        >>> facts["model_type"], facts["num_parameters"], facts["dtypes"]
        ('llama', 26976, {'BF16': 26976})
    """
    checkpoint = open_checkpoint(uri)
    has_record = RECORD_NAME in checkpoint.storage.list_files()
    return Inspection(
        checkpoint=checkpoint,
        quantization=quantization_of(checkpoint),
        record=_record(checkpoint) if has_record else None,
    )


def _record(checkpoint: Checkpoint) -> dict[str, Any]:
    data = checkpoint.storage.read_bytes(RECORD_NAME)
    return parse_record(data, where=f"{checkpoint.uri}/{RECORD_NAME}")
