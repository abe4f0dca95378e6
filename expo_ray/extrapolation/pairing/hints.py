"""Why tensors of a pair do not meet though both models may be right, and what to do about it."""

from __future__ import annotations

import re

from expo_ray.checkpoints.checkpoint import Checkpoint
from expo_ray.checkpoints.formats.header import FLOAT_DTYPES, TensorRef
from expo_ray.errors import CheckpointError

_ONE_EXPERT = re.compile(r"\.experts\.\d+\.")
# Parts of names that versions of transformers put in another order, or leave out.
_MOVED = frozenset({"model", "language_model", "text_model", "transformer", "base_model"})
_SAVE_AGAIN = (
    "load it with from_pretrained and save it with save_pretrained of one version of transformers, "
    "as the other side was"
)
# Parts that a wrapper puts before or into the names, and what to save in its place.
_WRAPPERS = {
    "_orig_mod": "from inside torch.compile: save the model itself (`model._orig_mod`)",
    "module": "from inside a wrapper such as DDP: save the model itself (`model.module`)",
    "_fsdp_wrapped_module": "from inside FSDP: gather its full state dict before saving",
    "_checkpoint_wrapped_module": "with activation checkpointing around it: unwrap before saving",
    "pretrained_model": "with the value head of TRL around it: save `model.pretrained_model`",
}
_PEFT = ("base_layer.", "lora_A.", "lora_B.", "base_model.model.", "modules_to_save.")


def naming_hint(name: str, *, present: Checkpoint, missing: Checkpoint) -> str | None:
    """Tell two ways of naming one model from two models.

    Args:
        name: A tensor that only one side has.
        present: That side.
        missing: The other side.

    Returns:
        What to do; None where nothing speaks for one model.
    """
    for side, other in ((present, missing), (missing, present)):
        for wrapper, words in _WRAPPERS.items():
            if _has_part(side, wrapper) and not _has_part(other, wrapper):
                return f"{side.uri} was saved {words}"
        own = side.tensors.keys() - other.tensors.keys()
        if any(f".{part}" in f".{n}" for n in own for part in _PEFT):
            return (
                f"{side.uri} holds layers of an adapter among the weights: merge it with peft "
                "(merge_and_unload), or give the adapter's own folder"
            )
    if _are_experts_stored_otherwise(name, missing):
        return f"one side stores experts fused, the other one by one: {_SAVE_AGAIN}"
    others = missing.tensors.keys() - present.tensors.keys()
    if any(_core(other) == _core(name) for other in others):
        return (
            "the two were saved by different versions of transformers, which name the same "
            f"tensors with another prefix (4 and 5 do): {_SAVE_AGAIN}"
        )
    return None


def refuse_empty_weights(checkpoint: Checkpoint, *, side: str) -> None:
    """Let weights pass that are there; ZeRO-3 leaves empty ones where they were not gathered.

    Raises:
        CheckpointError: A weight has no elements.
    """
    for ref in checkpoint.tensors.values():
        if ref.shape == (0,) and ref.dtype in FLOAT_DTYPES and ref.name.endswith(".weight"):
            raise CheckpointError(
                f"{side} holds weights without elements, as DeepSpeed ZeRO-3 leaves them",
                where=f"{checkpoint.uri}/{ref.file}, tensor {ref.name!r}",
                got="shape [0]",
                expected="the gathered weights",
                hint="run zero_to_fp32.py of its checkpoint folder, or save again with "
                "stage3_gather_16bit_weights_on_model_save",
            )


def shape_hint(first: TensorRef, second: TensorRef) -> str | None:
    """Return what two shapes of one tensor tell, None where they only differ."""
    if first.shape == second.shape[::-1]:
        return f"one side stores it transposed: {_SAVE_AGAIN}"
    return None


def _are_experts_stored_otherwise(name: str, missing: Checkpoint) -> bool:
    experts = [other for other in missing.tensors if ".experts." in other]
    one_by_one = {bool(_ONE_EXPERT.search(other)) for other in experts}
    return (
        ".experts." in name and bool(experts) and bool(_ONE_EXPERT.search(name)) not in one_by_one
    )


def _core(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _MOVED)


def _has_part(checkpoint: Checkpoint, part: str) -> bool:
    count = all if part == "module" else any
    return count(part in name.split(".") for name in checkpoint.tensors)
