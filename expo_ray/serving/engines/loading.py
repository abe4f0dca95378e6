"""Loading weights into a transformers model, with the digest of exactly what was loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, GenerationConfig

from expo_ray.checkpoints import WeightsDigest
from expo_ray.checkpoints.local_files import local_folder
from expo_ray.rewards.pretrained import load_pretrained, load_tokenizer
from expo_ray.serving.source import ModelSource

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
    checkpoint = source.open()
    tokenizer = load_tokenizer(checkpoint)
    digest = WeightsDigest()
    weights = source.iter_weights(digest)
    model = load_pretrained(AutoModelForCausalLM, checkpoint, weights, device=device)
    eos_ids = _eos_ids(local_folder(checkpoint), model.config, tokenizer)
    # What a checkpoint wishes for (its own temperature, penalties, ...) would change results
    # behind the sampling settings of the run.
    model.generation_config = GenerationConfig()
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        weights_digest=digest.hexdigest(),
        eos_ids=eos_ids,
        max_model_len=context or _DEFAULT_CONTEXT,
    )


def _eos_ids(folder: Path, config: Any, tokenizer: Any) -> tuple[int, ...]:
    try:
        generation_config = GenerationConfig.from_pretrained(folder)
    except OSError:  # the file is optional
        generation_config = None
    found: set[int] = set()
    for owner in (generation_config, config.get_text_config(), tokenizer):
        value = getattr(owner, "eos_token_id", None)
        found.update([value] if isinstance(value, int) else value or ())
    return tuple(sorted(found))
