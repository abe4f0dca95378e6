"""How a model is given to `ray.serve.llm`: engine arguments, resources, replicas."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from expo_ray.checkpoints.local_files import local_folder
from expo_ray.errors import ConfigError, argument
from expo_ray.serving.engines.devices import has_gpu
from expo_ray.serving.engines.options import EngineOptions
from expo_ray.serving.engines.precision import cpu_dtype
from expo_ray.serving.source import ModelSource

MAX_NUM_SEQS = 256
_KV_CACHE_GIB = "1"


def source_fields(source: ModelSource) -> dict[str, Any]:
    """Return a source as plain values, which cross to vLLM's processes."""
    fields = {field.name: getattr(source, field.name) for field in dataclasses.fields(source)}
    rules = source.alpha_rules
    along = None if source.along is None else dataclasses.asdict(source.along)
    return {**fields, "alpha_rules": None if rules is None else rules.as_dict(), "along": along}


def llm_config(
    source: ModelSource, options: EngineOptions, *, deployment: Mapping[str, Any]
) -> Any:
    """Return the `LLMConfig` of a model.

    Args:
        source: Which weights.
        options: Settings of the engine.
        deployment: Options of the Serve deployment: replicas, queues.

    Raises:
        ConfigError: vLLM does not know an engine argument, or refuses its value.
        CheckpointError: The checkpoint is missing or malformed.
    """
    from ray.serve.llm import LLMConfig

    with_gpu = has_gpu()
    folder = str(local_folder(source.open()))
    try:
        config = LLMConfig(
            model_loading_config={"model_id": source.name, "model_source": folder},
            engine_kwargs=_engine_args(source, options, with_gpu=with_gpu),
            accelerator_config={"kind": "gpu" if with_gpu else "cpu"},
            # The workers' bundles hold the CPUs and GPUs; the replica itself only passes on.
            deployment_config={
                **deployment,
                "ray_actor_options": {"num_cpus": 1 if with_gpu else 0},
            },
            runtime_env={
                "env_vars": {
                    # Its processes start with the folder of their node first on their path.
                    "PYTHONSAFEPATH": "1",
                    # The second takes other logits processors: of `vllm_noise` it knows nothing.
                    "VLLM_USE_V2_MODEL_RUNNER": "0",
                    **({} if with_gpu else _cpu_environment(deployment)),
                }
            },
            experimental_configs={"stream_batching_interval_ms": 0},
            log_engine_metrics=False,
        )
        config.get_engine_config()
    except ValueError as error:
        raise ConfigError(
            "vLLM refuses its settings", where=argument("engine_args"), got=error
        ) from error
    return config


def _engine_args(source: ModelSource, options: EngineOptions, *, with_gpu: bool) -> dict[str, Any]:
    from expo_ray.serving.engines.vllm_noise import PROCESSOR
    from expo_ray.serving.engines.vllm_worker import EXTENSION, LOAD_FORMAT

    # Without a GPU: tests and laptops. Compiling would take longer than most such services live.
    defaults = {} if with_gpu else {"dtype": cpu_dtype(source.open()), "enforce_eager": True}
    parallel = {"tensor_parallel_size": options.tensor_parallel_size}
    context = {} if options.max_model_len is None else {"max_model_len": options.max_model_len}
    ours = {
        "load_format": LOAD_FORMAT,
        "model_loader_extra_config": source_fields(source),
        "worker_extension_cls": EXTENSION,
        "logits_processors": [PROCESSOR],
        # What a checkpoint wishes for would change results behind the request's settings.
        "generation_config": "vllm",
    }
    taken = sorted({*ours, "model", "served_model_name"} & {*options.engine_args})
    if taken:
        raise ConfigError(
            "these engine arguments are set by expo-ray",
            where=argument("engine_args"),
            got=", ".join(taken),
        )
    return {
        "max_num_seqs": MAX_NUM_SEQS,
        **defaults,
        **parallel,
        **context,
        **options.engine_args,
        **ours,
    }


def _cpu_environment(deployment: Mapping[str, Any]) -> dict[str, str]:
    from expo_ray.serving.launching import replica_threads

    # Ray may have been told of more CPUs than there are.
    num_threads = min(replica_threads(deployment), os.cpu_count() or 1)
    defaults = {
        "VLLM_CPU_KVCACHE_SPACE": _KV_CACHE_GIB,
        # vLLM pins threads to cores by default: replicas would all sit on the same ones.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(num_threads),
    }
    return {name: os.environ.get(name, value) for name, value in defaults.items()}
