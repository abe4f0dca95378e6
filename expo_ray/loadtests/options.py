"""How a load is offered, beyond its points: each option with its default and the reason."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from expo_ray.loadtests.schedule import Arrivals
from expo_ray.serving.engines.options import EngineOptions


class LoadtestOptions(BaseModel):
    """Options of a load test; unknown keys are refused."""

    model_config = ConfigDict(
        strict=True, frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )

    model: str | None = None
    """Model name to ask for; null takes the only one that the service lists."""

    arrivals: Arrivals = "poisson"
    """How an open loop spaces its requests: poisson (independent users, so bursts happen),
    constant, or gamma."""

    burstiness: float = Field(default=1.0, gt=0)
    """Shape of gamma arrivals: below 1 burstier than Poisson, 1 the same, above 1 more even."""

    seed: int = Field(default=42, ge=0)
    """Seed of the arrival times."""

    num_clients: int | None = Field(default=None, ge=1)
    """Ray actors that send; null takes one per Ray node without replicas, at least two and at most
    eight. One suffices for some thousand streamed tokens a second."""

    client_labels: dict[str, str] = Field(default_factory=dict)
    """Labels of the Ray nodes on which clients may run; empty prefers nodes without replicas."""

    num_replicas: int = Field(default=1, ge=1)
    """Replicas of a model that is served for the test."""

    engine: str = "auto"
    """Engine of these replicas."""

    engine_options: EngineOptions = EngineOptions()
    """Settings of that engine."""

    host: str = "127.0.0.1"
    """Address on which a model that is served for the test listens. 0.0.0.0 lets clients on other
    nodes reach it; it then asks for a key which is made for the test."""

    num_warmup: int | None = Field(default=None, ge=0)
    """Requests before each point that are recorded and not measured; null sends one per request
    in flight, at least two and at most 16."""

    num_cooldown: int = Field(default=0, ge=0)
    """Requests after those measured, which keep the load up until the last of them has ended."""

    ramp_seconds: float = Field(default=0.0, ge=0)
    """The load of a point rises linearly during this time, which is not measured."""

    unique_prompts: bool = False
    """Put a few letters that never repeat before each prompt, so that no prefix cache helps."""

    prompt_salt: str | None = None
    """What makes these letters; null draws it. The same salt gives the same prompts again."""

    request_timeout_seconds: float = Field(default=600.0, gt=0)
    """A request that takes longer has failed."""

    max_error_rate: float = Field(default=0.01, ge=0, le=1)
    """Share of measured requests that the service may fail; above it the load test fails, after
    everything is written. Answers without text are counted as failed and have their own limit."""

    max_empty_rate: float = Field(default=0.5, ge=0, le=1)
    """Share of measured requests whose answers may end properly and without any text, as a model
    does that has nothing to say; above it the load test fails too."""

    max_client_lag_ms: float = Field(default=50.0, gt=0)
    """99th percentile of the client's own delay above which it counts as saturated and its
    latencies as void."""

    ttft_slo_ms: float | None = Field(default=None, gt=0)
    """Goodput counts requests whose first token came within this; null sets no limit."""

    tpot_slo_ms: float | None = Field(default=None, gt=0)
    """The same for the mean time per further token."""

    e2el_slo_ms: float | None = Field(default=None, gt=0)
    """The same for the whole answer."""

    slo_share: float = Field(default=0.99, gt=0, le=1)
    """Share of all requests sent that must meet the limits, when searching the highest rate."""

    search_precision: float = Field(default=0.1, gt=0, lt=1)
    """The search ends when the rate that fails is at most this share above one that passes."""

    search_seconds: float = Field(default=10.0, gt=0)
    """A search offers each rate for at least so long, and for four times as long as an answer last
    took (up to ten times this): in a shorter time every service seems to fall behind."""

    saturation_gain: float = Field(default=0.05, ge=0)
    """A sweep ends when twice the load brings less than this share of further throughput."""

    max_points: int = Field(default=12, ge=1)
    """A sweep or search ends after so many points."""

    trace_speed: float = Field(default=1.0, gt=0)
    """Replay a trace so many times as fast."""

    extra_body: dict[str, Any] = Field(default_factory=dict)
    """Further fields of the request, such as temperature or ignore_eos."""

    api_key_env: str | None = None
    """Environment variable that holds the API key; null sends none."""
