"""What runs inside vLLM's worker processes: weights that come as a stream, at the start and later.

vLLM imports this module in every worker (`worker_extension_cls`), which registers the loader.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from vllm.config import ModelConfig
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod
from vllm.model_executor.model_loader import register_model_loader
from vllm.model_executor.model_loader.base_loader import BaseModelLoader

from expo_ray.checkpoints import WeightsDigest
from expo_ray.errors import ExpoError
from expo_ray.serving.source import ModelSource

LOAD_FORMAT = "expo_ray"
EXTENSION = f"{__name__}.WorkerExtension"


class WeightsStream:
    """The weights of a source, digested as they pass.

    Args:
        source: Fields of a `ModelSource`.
    """

    last_digest: str | None = None
    """Of the weights that this process holds; None while they are being replaced."""

    def __init__(self, source: Mapping[str, Any]) -> None:
        self._source = ModelSource(**source)

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        WeightsStream.last_digest = None
        digest = WeightsDigest()
        yield from self._source.iter_weights(digest)
        WeightsStream.last_digest = digest.written()


@register_model_loader(LOAD_FORMAT)
class StreamLoader(BaseModelLoader):  # type: ignore[misc]
    """Loads the `ModelSource` of `model_loader_extra_config`: a pair needs no checkpoint."""

    def download_model(self, model_config: ModelConfig) -> None:
        """Do nothing: the stream reads what it needs."""

    def load_weights(self, model: torch.nn.Module, model_config: ModelConfig) -> None:
        """Load every weight of a new model.

        Args:
            model: The vLLM model.
            model_config: Its settings.

        Raises:
            ValueError: The source lacks weights of this model.
        """
        stream = WeightsStream(self.load_config.model_loader_extra_config)
        loaded = model.load_weights(stream)  # type: ignore[operator]
        missing = {name for name, _ in model.named_parameters()} - (loaded or set())
        if loaded is not None and missing and model_config.quantization is None:
            raise ValueError(f"the checkpoint lacks {', '.join(sorted(missing)[:5])}")


def _repack_tied_heads(model: torch.nn.Module) -> None:
    """Let output heads use the embeddings that were replaced.

    On CPUs a head multiplies by a packed copy, which reload_weights renews only where the
    checkpoint has a tensor for the head itself.
    """
    for layer in model.modules():
        method = getattr(layer, "quant_method", None)
        if isinstance(method, UnquantizedEmbeddingMethod):
            method.process_weights_after_loading(layer)


class WorkerExtension:
    """Methods of every worker, for `collective_rpc`. Results are plain: they cross processes."""

    model_runner: Any

    def expo_ray_digest(self) -> str | None:
        """Return the digest of the weights that are loaded."""
        return WeightsStream.last_digest

    def expo_ray_requests(self) -> dict[str, int]:
        """Return how many tokens each response has that is being made; abandoned ones are not."""
        requests = self.model_runner.requests
        return {name: len(request.output_token_ids) for name, request in requests.items()}

    def expo_ray_load(self, source: dict[str, Any]) -> dict[str, Any]:
        """Replace the weights in place.

        Args:
            source: Fields of a `ModelSource`.

        Returns:
            `digest` of the new weights, or `error`, after which the weights mean nothing.
        """
        try:
            # The repacked weights of the CPU back end take no load_weights; this undoes that.
            self.model_runner.reload_weights(weights_iterator=iter(WeightsStream(source)))
            _repack_tied_heads(self.model_runner.get_model())
        except ExpoError as error:
            return {"error": error.as_dict()}
        return {"digest": WeightsStream.last_digest}
