"""The Serve applications of each engine, not deployed yet."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray import serve

from expo_ray.errors import ConfigError, argument
from expo_ray.serving.engines import VLLM, has_gpu
from expo_ray.serving.engines.options import EngineOptions
from expo_ray.serving.front_door import ServiceSettings
from expo_ray.serving.generator import Generator
from expo_ray.serving.launching import quiet_logs, replica_options, vllm_options
from expo_ray.serving.openai_app import OpenAIServer
from expo_ray.serving.source import ModelSource

_SAME_MODEL = ("_name_or_path", "dtype", "torch_dtype", "transformers_version")


def bulk_app(
    engine: str, source: ModelSource, options: EngineOptions, *, num_replicas: int
) -> serve.Application:
    """Return the application that answers rows of a driver.

    Args:
        engine: As `resolve_engine` returns it.
        source: The weights that come first.
        options: Settings of the engine.
        num_replicas: How many.

    Raises:
        ConfigError: The cluster is too small, or vLLM refuses its settings.
    """
    if engine != VLLM:
        deployment = serve.deployment(Generator).options(
            max_ongoing_requests=8, **replica_options(num_replicas)
        )
        return deployment.bind(engine, None, options)
    with _own_logging():
        from expo_ray.serving.vllm_generator import VLLMGenerator

    return vllm_app(
        VLLMGenerator,
        source,
        options,
        deployment=vllm_options(num_replicas, options) | {"max_ongoing_requests": 8},
        bind={"source": source},
    )


def server_app(
    engine: str,
    source: ModelSource,
    options: EngineOptions,
    *,
    settings: ServiceSettings,
    rewarder: Any,
    deployment: dict[str, Any],
) -> serve.Application:
    """Return the application that answers HTTP requests.

    Args:
        engine: As `resolve_engine` returns it.
        source: Weights to serve.
        options: Settings of the engine.
        settings: Settings of the service.
        rewarder: A bound reward deployment, or None.
        deployment: Options of the deployment.

    Raises:
        ConfigError: vLLM refuses its settings.
    """
    if engine != VLLM:
        server: Any = OpenAIServer
        app: serve.Application = server.options(**deployment).bind(
            engine, source, options, settings, rewarder
        )
        return app
    with _own_logging():
        from expo_ray.serving.vllm_server import VLLMServer

    return vllm_app(
        VLLMServer,
        source,
        options,
        deployment=deployment,
        bind={"source": source, "settings": settings, "rewarder": rewarder},
    )


def vllm_app(
    replica: Any,
    source: ModelSource,
    options: EngineOptions,
    *,
    deployment: dict[str, Any],
    bind: dict[str, Any],
) -> serve.Application:
    """Return the application of a vLLM replica class, built by `ray.serve.llm`.

    Args:
        replica: A subclass of `LLMServer`.
        source: Its weights.
        options: Settings of the engine.
        deployment: Options of the deployment.
        bind: Arguments of the replica besides `llm_config`.

    Raises:
        ConfigError: vLLM refuses its settings.
    """
    with _own_logging():
        from ray.serve.llm import build_llm_deployment

    quiet_logs()
    from expo_ray.serving.engines.vllm_config import llm_config

    require_support(VLLM, source)
    config = llm_config(source, options, deployment=deployment)
    app: serve.Application = build_llm_deployment(
        config,
        deployment_cls=replica,
        bind_kwargs=bind,
        # Else it would be the model's id, which may hold what a name must not.
        override_serve_options={"name": replica.__name__},
    )
    return app


def require_support(engine: str, source: ModelSource) -> None:
    """Check what an engine would find out only in its own process, after minutes.

    Args:
        engine: As `resolve_engine` returns it.
        source: What it shall load.

    Raises:
        ConfigError: vLLM cannot do the model's attention on CPUs.
        CheckpointError: The checkpoint is missing or malformed.
    """
    if engine != VLLM or has_gpu():
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
            where=f"{argument('engine', 'vllm')}, {source.model}",
            got=f"{size} per head",
            expected=", ".join(map(str, supported)),
            hint=f"use {argument('engine', 'transformers')}, or a GPU",
        )


def same_engine(engine: str, one: ModelSource, other: ModelSource) -> bool:
    """Say whether replicas that were started for one source can load the other in place.

    Args:
        engine: As `resolve_engine` returns it.
        one: What they were started for.
        other: What they shall load.
    """
    if engine != VLLM:
        return True

    def facts(source: ModelSource) -> dict[str, Any]:
        config = source.open().config
        return {key: value for key, value in config.items() if key not in _SAME_MODEL}

    return facts(one) == facts(other)


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
