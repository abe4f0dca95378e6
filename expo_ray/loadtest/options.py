"""How a load is offered, beyond its points: each option with its default and the reason."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class LoadtestOptions(BaseModel):
    """Options of a load test; unknown keys are refused."""

    model_config = ConfigDict(
        strict=True, frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )

    model: str | None = None
    """Model name to ask for; null takes the only one that the service lists."""

    arrivals: Literal["poisson", "constant"] = "poisson"
    """How an open loop spaces its requests. Poisson: independent users, so bursts happen."""

    seed: int = Field(default=42, ge=0)
    """Seed of the arrival times."""

    num_clients: int = Field(default=1, ge=1)
    """Ray actors that send. One suffices for some thousand streamed tokens a second."""

    num_replicas: int = Field(default=1, ge=1)
    """Replicas of a model that is served for the test."""

    engine: str = "auto"
    """Engine of these replicas."""

    num_warmup: int | None = Field(default=None, ge=0)
    """Requests before each point that are recorded and not measured; null sends one per request
    in flight, at least two and at most 16."""

    request_timeout_seconds: float = Field(default=600.0, gt=0)
    """A request that takes longer has failed."""

    max_error_rate: float = Field(default=0.01, ge=0, le=1)
    """Share of measured requests that the service may fail; above it the load test fails, after
    everything is written. Answers without text are counted as failed, yet are the model's doing
    and do not count here."""

    max_client_lag_ms: float = Field(default=50.0, gt=0)
    """99th percentile of the client's own delay above which it counts as saturated and its
    latencies as void."""

    ttft_slo_ms: float | None = Field(default=None, gt=0)
    """Goodput counts requests whose first token came within this; null sets no limit."""

    tpot_slo_ms: float | None = Field(default=None, gt=0)
    """The same for the mean time per further token."""

    e2el_slo_ms: float | None = Field(default=None, gt=0)
    """The same for the whole answer."""

    extra_body: dict[str, Any] = Field(default_factory=dict)
    """Further fields of the request, such as temperature or ignore_eos."""

    api_key_env: str | None = None
    """Environment variable that holds the API key; null sends none."""
