"""The application builder that a Serve config file names: `expo_ray.serving.app:build_app`."""

from typing import Any

# No `from __future__ import annotations` here: Serve reads the type of `args` itself.
from pydantic import BaseModel, ConfigDict, Field
from ray import serve

from expo_ray.credentials import read_api_key
from expo_ray.serving.commands import model_source
from expo_ray.serving.engines.options import EngineOptions
from expo_ray.serving.front_door import ANY_ADDRESS
from expo_ray.serving.served_model import ServedModel


class AppArguments(BaseModel):
    """The `args` of the application in a Serve config file."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    model: str
    """A checkpoint; with `initial`, the aligned one."""

    initial: str | None = None
    """theta0 of a live extrapolation."""

    alpha: float | None = None
    """How far beyond `model`, in units of delta; beside rules, for tensors without a rule."""

    alpha_rules: str | dict[str, Any] | list[Any] | None = None
    """Alpha by part of the model: a YAML file, or the table that it would hold."""

    num_replicas: int = 1
    """Replicas of the model."""

    engine: str = "auto"
    """auto, transformers or vllm."""

    max_model_len: int | None = None
    """Tokens of prompt and response together; the model's own context otherwise."""

    tensor_parallel_size: int = 1
    """Devices that share each layer (vLLM)."""

    engine_args: dict[str, Any] = Field(default_factory=dict)
    """vLLM's own engine arguments."""

    allow_alpha_change: bool = False
    """Whether clients may change alpha of the running service."""

    max_replicas: int | None = None
    """Let the autoscaler add replicas up to so many; None keeps `num_replicas`."""

    allowed_hosts: list[str] = Field(default_factory=list)
    """Names besides addresses and localhost by which clients may call a service without a key."""

    api_key_env: str | None = None
    """Environment variable that holds the key clients must send."""


def build_app(args: AppArguments) -> serve.Application:
    """Return the OpenAI-compatible application of one model.

    Raises:
        ConfigError: The engine or the API key is not usable.
        CheckpointError: A checkpoint is missing or malformed.
    """
    return ServedModel(
        model_source(args.model, args.initial, args.alpha, args.alpha_rules),
        num_replicas=args.num_replicas,
        engine=args.engine,
        options=EngineOptions(
            max_model_len=args.max_model_len,
            tensor_parallel_size=args.tensor_parallel_size,
            engine_args=args.engine_args,
        ),
        allow_alpha_change=args.allow_alpha_change,
        max_replicas=args.max_replicas,
        # Where Serve listens is for the file that names this application to say.
        host=ANY_ADDRESS[0],
        allowed_hosts=args.allowed_hosts,
        api_key=read_api_key(args.api_key_env),
    ).bind()
