"""Loading weights into a transformers model, with the digest of exactly what was loaded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from expo_ray.checkpoints import WeightsDigest
from expo_ray.checkpoints.local_files import local_folder
from expo_ray.errors import CheckpointError
from expo_ray.rewards.pretrained import WRITERS, load_pretrained, load_tokenizer
from expo_ray.serving.source import ModelSource
from expo_ray.serving.text_stream import special_ids

_DEFAULT_CONTEXT = 4096
_NUM_PROBES = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedModel:
    """A model that is ready to generate."""

    model: Any
    tokenizer: Any
    weights_digest: str
    eos_ids: tuple[int, ...]
    special_ids: frozenset[int]
    """Of the tokenizer: what a response may hold out of place."""
    max_model_len: int
    is_refillable: bool
    """The model holds the tensors as they were given: others of the same names can replace them."""


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
    probes: dict[str, torch.Tensor] = {}
    weights = _probed(source.iter_weights(digest), probes)
    model = load_pretrained(WRITERS, checkpoint, weights, device=device)
    eos_ids = _eos_ids(local_folder(checkpoint), model.config, tokenizer)
    # What a checkpoint wishes for (its own temperature, penalties, ...) would change results
    # behind the sampling settings of the run.
    model.generation_config = GenerationConfig()
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        weights_digest=digest.written(),
        eos_ids=eos_ids,
        special_ids=special_ids(tokenizer),
        max_model_len=context or _DEFAULT_CONTEXT,
        is_refillable=_holds_as_given(model, probes),
    )


def refill(loaded: LoadedModel, source: ModelSource) -> LoadedModel:
    """Put the weights of another alpha of the same pair into a loaded model.

    Nothing is built anew and no second copy of the model is made. After an error the model holds
    weights of both alphas and must not be used.

    Args:
        loaded: A refillable model of the same pair.
        source: The pair at the other alpha.

    Raises:
        CheckpointError: The tensors are no longer those that were loaded first.
    """
    digest = WeightsDigest()
    places = loaded.model.state_dict()

    def place_of(name: str, shape: torch.Size) -> torch.Tensor:
        if name not in places or places[name].shape != shape:
            raise CheckpointError(
                "the checkpoint changed while it was served",
                where=f"tensor {name!r} of {source.model}",
                got=list(shape),
                expected=list(places[name].shape) if name in places else "the tensors loaded first",
                hint="serve it anew",
            )
        return places[name].view(-1)  # type: ignore[no-any-return]

    source.fill(place_of, digest)
    return replace(loaded, weights_digest=digest.written())


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


def _probed(
    weights: Iterable[tuple[str, torch.Tensor]], probes: dict[str, torch.Tensor]
) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in weights:
        probes[name] = _probe(tensor)
        yield name, tensor


def _probe(tensor: torch.Tensor) -> torch.Tensor:
    """Return the shape and some values: enough to notice other names, dtypes or orders."""
    values = tensor.detach().flatten()
    values = values[:: max(1, values.numel() // _NUM_PROBES)].double().cpu()
    return torch.cat([torch.tensor(tensor.shape, dtype=torch.float64), values])


def _holds_as_given(model: Any, probes: dict[str, torch.Tensor]) -> bool:
    """Whether every tensor lies in the model unchanged, and the model holds no other."""
    places = model.state_dict()
    if not probes.keys() <= places.keys() or not all(p.is_contiguous() for p in places.values()):
        return False
    filled = {places[name].data_ptr() for name in probes}
    return all(place.data_ptr() in filled for place in places.values()) and all(
        torch.equal(_probe(places[name]), probe) for name, probe in probes.items()
    )
