"""The record of the vLLM engine: replicas are servers of `ray.serve.llm`, workers apart."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from expo_ray.errors import ConfigError, argument
from expo_ray.extras import missing_modules
from expo_ray.serving.engines.devices import has_gpu
from expo_ray.serving.engines.kind import FLOAT32, EngineKind

if TYPE_CHECKING:
    from ray import serve

    from expo_ray.checkpoints import Checkpoint
    from expo_ray.rewards import RewardModel, RewardModelSpec
    from expo_ray.serving.engines.options import EngineOptions
    from expo_ray.serving.front_door import ServiceSettings
    from expo_ray.serving.source import ModelSource

CLASSIFIERS = tuple(
    f"{family}ForSequenceClassification" for family in ("Llama", "Mistral", "Qwen2", "Qwen3")
)
"""Reward models whose scores a test compares with those of transformers."""
_ROPE_TYPES = ("default", "linear", "llama3", "yarn")
_SAME_MODEL = ("_name_or_path", "dtype", "torch_dtype", "transformers_version")


class VLLM(EngineKind):
    """vLLM: continuous batching, models over several devices."""

    name = "vllm"
    auto_when = "where it is installed and there is a GPU"
    extra = "vllm"
    reward_models = "classifiers with one label (Llama, Mistral, Qwen)"
    takes_engine_args = True

    def suits(self) -> tuple[bool, str]:
        """Return whether `auto` takes it: where it is installed and there is a GPU."""
        if missing_modules("vllm"):
            return False, "vLLM is not installed"
        if not has_gpu():
            return False, "no GPU here"
        return True, "vLLM is installed and there is a GPU"

    def check(self, source: ModelSource) -> None:
        """Check that it can do the model's attention where there is no GPU, see `EngineKind`."""
        if has_gpu():
            return
        config = source.open().config
        config = config.get("text_config") or config
        heads = config.get("num_attention_heads")
        size = config.get("head_dim") or (heads and config.get("hidden_size", 0) // heads)
        with _own_logging():
            from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend
        supported = CPUAttentionBackend.get_supported_head_sizes()
        if size and size not in supported:
            raise ConfigError(
                "vLLM has no attention for heads of this size on CPUs",
                where=f"{argument('engine', self.name)}, {source.model}",
                got=f"{size} per head",
                expected=", ".join(map(str, supported)),
                hint=f"use {argument('engine', 'transformers')}, or a GPU",
            )

    def check_reward_model(self, spec: RewardModelSpec) -> None:
        """Check that it is a classifier that vLLM scores as transformers does, see `EngineKind`."""
        problem = _difference(spec.kind.classifier(spec))
        if problem is not None:
            raise ConfigError(
                "vLLM does not compute this reward model as transformers does",
                where=f"{argument('engine', self.name)}, {spec.text}",
                got=problem,
                expected=f"one label, a head `score.weight`, and one of {', '.join(CLASSIFIERS)}",
                hint=f"leave {argument('engine')} out",
            )

    def load_reward_model(
        self,
        spec: RewardModelSpec,
        *,
        initial: str | None,
        aligned: str | None,
        device: str,
        truncate: bool,
    ) -> RewardModel:
        """Return a reward model in vLLM's pooling runner, see `EngineKind`."""
        from expo_ray.rewards.loading import let_truncate
        from expo_ray.serving.source import ModelSource

        source = ModelSource(model=spec.model)
        self.check(source)
        with _own_logging():
            from expo_ray.serving.vllm_reward_model import VLLMRewardModel

        model = VLLMRewardModel(source, name=spec.text, device=device)
        if truncate:
            let_truncate(model)
        return model

    def precision(self, source: ModelSource, options: EngineOptions) -> tuple[str, str]:
        """Return the dtype in which a CPU computes, and why, see `EngineKind`."""
        from expo_ray.serving.engines.precision import cpu_dtype

        asked = options.engine_args.get("dtype")
        if asked is not None:
            return str(asked), " as asked for"
        dtype = cpu_dtype(source.open())
        if dtype == FLOAT32:
            return dtype, ""
        return dtype, ", as the weights are and this processor multiplies fast (AMX)"

    def loads_in_place(self, one: ModelSource, other: ModelSource) -> bool:
        """Say whether both have the same config: vLLM builds the model from it once."""

        def facts(source: ModelSource) -> dict[str, Any]:
            config = source.open().config
            return {key: value for key, value in config.items() if key not in _SAME_MODEL}

        return facts(one) == facts(other)

    def max_batch_rows(self, options: EngineOptions) -> int:
        """Return how many sequences it decodes at the same time.

        Raises:
            ConfigError: It was told no such number.
        """
        from expo_ray.serving.engines.vllm_config import MAX_NUM_SEQS

        asked = options.engine_args.get("max_num_seqs", MAX_NUM_SEQS)
        if not isinstance(asked, int) or isinstance(asked, bool) or asked < 1:
            raise ConfigError(
                "vLLM refuses its settings",
                where=argument("engine_args"),
                got=f"max_num_seqs={asked}",
                expected="an integer of at least 1",
            )
        return asked

    def deployment(self, num_replicas: int, options: EngineOptions) -> dict[str, Any]:
        """Return options of a Serve deployment, see `EngineKind`: workers take the devices."""
        from expo_ray.serving.launching import worker_options

        return worker_options(num_replicas, num_workers=options.num_workers)

    def bulk_app(
        self, source: ModelSource, options: EngineOptions, *, deployment: dict[str, Any]
    ) -> serve.Application:
        """Return the application that answers rows of a driver, see `EngineKind`."""
        with _own_logging():
            from expo_ray.serving.vllm_generator import VLLMGenerator

        bind = {"source": source}
        return self._app(VLLMGenerator, source, options, deployment=deployment, bind=bind)

    def server_app(
        self,
        source: ModelSource,
        options: EngineOptions,
        *,
        settings: ServiceSettings,
        rewarder: Any,
        deployment: dict[str, Any],
    ) -> serve.Application:
        """Return the application that answers HTTP requests, see `EngineKind`."""
        with _own_logging():
            from expo_ray.serving.vllm_server import VLLMServer

        bind = {"source": source, "settings": settings, "rewarder": rewarder}
        return self._app(VLLMServer, source, options, deployment=deployment, bind=bind)

    def _app(
        self,
        replica: Any,
        source: ModelSource,
        options: EngineOptions,
        *,
        deployment: dict[str, Any],
        bind: dict[str, Any],
    ) -> serve.Application:
        """Return the application of a subclass of `LLMServer`, built by `ray.serve.llm`."""
        with _own_logging():
            from ray.serve.llm import build_llm_deployment

        from expo_ray.serving.engines.vllm_config import llm_config
        from expo_ray.serving.launching import quiet_logs

        quiet_logs()
        self.check(source)
        app: serve.Application = build_llm_deployment(
            llm_config(source, options, deployment=deployment),
            deployment_cls=replica,
            bind_kwargs=bind,
            # Else it would be the model's id, which may hold what a name must not.
            override_serve_options={"name": replica.__name__},
        )
        return app


def _difference(checkpoint: Checkpoint | None) -> str | None:
    """Return what keeps vLLM from the scores of transformers; None where nothing does."""
    if checkpoint is None:
        return "no classifier with one label"
    config = checkpoint.config
    architectures = config.get("architectures") or ["no architecture"]
    if not {*architectures} <= {*CLASSIFIERS}:
        return ", ".join(architectures)
    if checkpoint.auto_dtypes or config.get("quantization_config"):
        return "an adapter on its base, or quantized weights"
    if not config.get("is_causal", True):
        return "attention to what follows"
    rotary = config.get("rope_parameters") or config.get("rope_scaling") or {}
    rope_type = rotary.get("rope_type", rotary.get("type", "default"))
    if rope_type not in _ROPE_TYPES:
        return f"rotary positions of the type {rope_type}"
    # transformers leaves out a bias that its class does not have, vLLM adds it.
    head = [name for name in checkpoint.tensors if name.startswith("score.")]
    return None if head == ["score.weight"] else f"a head of {', '.join(head) or 'no tensors'}"


@contextmanager
def _own_logging() -> Iterator[None]:
    """Import `ray.serve.llm`, which takes over the root logger, without letting it."""
    root = logging.getLogger()
    handlers, level, disabled = root.handlers[:], root.level, root.manager.disable
    logging.disable(logging.WARNING)  # vLLM tells what this machine lacks for some of its parts
    try:
        yield
    finally:
        logging.disable(disabled)
        root.handlers[:] = handlers
        root.setLevel(level)
