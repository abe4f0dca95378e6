"""Loading weights into a transformers model, with the digest of exactly what was loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from expo_ray.checkpoints import Checkpoint, WeightsDigest
from expo_ray.checkpoints.tensors import TORCH_DTYPES
from expo_ray.errors import CheckpointError
from expo_ray.rewards.pretrained import load_tokenizer
from expo_ray.serving.source import ModelSource

_DTYPE_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}
_DEFAULT_CONTEXT = 4096


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedModel:
    """A model that is ready to generate."""

    model: Any
    tokenizer: Any
    weights_digest: str
    eos_ids: tuple[int, ...]
    max_model_len: int


def load_model(source: ModelSource, *, device: str) -> LoadedModel:
    """Load a source: float32 on the CPU, the weights' own dtype elsewhere.

    Args:
        source: Which weights.
        device: "cpu" or "cuda".

    Raises:
        CheckpointError: The checkpoint does not fit its model class.
        PairError: Initial and aligned do not belong together.
    """
    checkpoint = Checkpoint.open(source.model)
    tokenizer = load_tokenizer(checkpoint.uri)
    digest = WeightsDigest()
    weights: dict[str, torch.Tensor] = {}
    for name, tensor in source.iter_weights():
        digest.add(name, tensor, _DTYPE_NAMES[tensor.dtype], tensor.shape)
        weights[name] = tensor
    try:
        config = AutoConfig.from_pretrained(checkpoint.uri, trust_remote_code=False)
        model = _build(config, weights, device)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(
            "the model cannot be loaded", where=source.model, got=error
        ) from error
    eos_ids = _eos_ids(checkpoint.uri, config, tokenizer)
    # What a checkpoint wishes for (its own temperature, penalties, ...) would change results
    # behind the sampling settings of the run.
    model.generation_config = GenerationConfig()
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        weights_digest=digest.hexdigest(),
        eos_ids=eos_ids,
        max_model_len=context or _DEFAULT_CONTEXT,
    )


def _build(config: Any, weights: dict[str, torch.Tensor], device: str) -> Any:
    # The auto class wants a folder; the class that it picks also takes tensors in memory.
    with torch.device("meta"):
        model_class = type(AutoModelForCausalLM.from_config(config, trust_remote_code=False))
    model, info = model_class.from_pretrained(
        None,
        config=config,
        state_dict=weights,
        dtype=torch.float32 if device == "cpu" else "auto",
        output_loading_info=True,
    )
    wrong = {kind: info[kind] for kind in ("missing_keys", "unexpected_keys") if info[kind]}
    if wrong:
        raise CheckpointError(
            "the tensors are not those of the model class",
            where=model_class.__name__,
            got="; ".join(f"{kind}: {', '.join(sorted(k)[:3])}" for kind, k in wrong.items()),
        )
    return model.to(device).eval()


def _eos_ids(folder: str, config: Any, tokenizer: Any) -> tuple[int, ...]:
    try:
        generation_config = GenerationConfig.from_pretrained(folder)
    except OSError:  # the file is optional
        generation_config = None
    found: set[int] = set()
    for owner in (generation_config, config.get_text_config(), tokenizer):
        value = getattr(owner, "eos_token_id", None)
        found.update([value] if isinstance(value, int) else value or ())
    return tuple(sorted(found))
