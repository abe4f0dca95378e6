"""How a load is offered, beyond its points: each option with its flag, its default, its reason."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from expo_ray.errors import ConfigError, argument
from expo_ray.flags import Flag
from expo_ray.json_text import parse_json
from expo_ray.serving.engines.options import EngineOptions
from expo_ray.serving.engines.registry import engine_help

Arrivals = Literal["poisson", "constant", "gamma"]
_LOAD = "Load"
SEARCH_PANEL = "Search and replay"
_LIMITS = "Limits"
_CLIENTS = "Clients"
_SERVICE = "A running service"
SERVED_PANEL = "A model that is served for the test"


def _extra_body(text: str) -> dict[str, Any]:
    try:
        value = parse_json(text)
    except ValueError as error:
        raise ConfigError("not JSON", where=argument("extra_body"), got=text) from error
    if not isinstance(value, dict):
        raise ConfigError("not a JSON object", where=argument("extra_body"), got=text)
    return value


def _client_labels(pairs: Sequence[str]) -> dict[str, str]:
    labels = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
    if len(labels) != len(pairs):
        raise ConfigError(
            "not labels of Ray nodes",
            where=argument("client_labels"),
            got=", ".join(pairs),
            expected="key=value, each key once",
        )
    return labels


class LoadtestOptions(BaseModel):
    """Options of a load test; unknown keys are refused."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)

    arrivals: Annotated[Arrivals, Flag(panel=_LOAD, metavar="KIND")] = Field(
        "poisson",
        description="How --rate spaces requests: poisson (independent users), constant or gamma. "
        "Independent users come in bursts now and then.",
    )
    burstiness: Annotated[float, Flag(panel=_LOAD)] = Field(
        1.0,
        gt=0,
        description="Shape of gamma arrivals: below 1 burstier than poisson, above 1 more even.",
    )
    seed: Annotated[int, Flag(panel=_LOAD)] = Field(
        42, ge=0, description="Seed of the arrival times."
    )
    num_warmup: Annotated[int | None, Flag(name="--warmup", panel=_LOAD)] = Field(
        None,
        ge=0,
        description="Requests before each point, not measured; by default one per request in "
        "flight, 2 to 16.",
    )
    num_cooldown: Annotated[int, Flag(name="--cooldown", panel=_LOAD)] = Field(
        0, ge=0, description="Requests after those measured, which keep the load up to their end."
    )
    ramp_seconds: Annotated[float, Flag(panel=_LOAD)] = Field(
        0.0, ge=0, description="The load rises linearly for so long, not measured."
    )
    unique_prompts: Annotated[bool, Flag(panel=_LOAD)] = Field(
        False,
        description="Put letters that never repeat before each prompt: no prefix cache helps.",
    )
    prompt_salt: str | None = Field(
        None,
        description="What makes these letters; null draws it. The same salt gives the same prompts "
        "again.",
    )
    extra_body: Annotated[dict[str, Any], Flag(panel=_LOAD, metavar="JSON", parse=_extra_body)] = (
        Field(
            default_factory=dict,
            description="Further fields of every request, such as '{\"temperature\": 0}'.",
        )
    )

    max_points: Annotated[int, Flag(panel=SEARCH_PANEL)] = Field(
        12, ge=1, description="--find ends after so many loads."
    )
    search_seconds: Annotated[float, Flag(panel=SEARCH_PANEL)] = Field(
        10.0,
        gt=0,
        description="--find offers each rate for so long at least. It takes four times as long as "
        "an answer last took, up to ten times this: in a shorter time every service seems to fall "
        "behind.",
    )
    search_precision: float = Field(
        0.1,
        gt=0,
        lt=1,
        description="The search ends when the rate that fails is at most this share above one that "
        "passes.",
    )
    saturation_gain: float = Field(
        0.05,
        ge=0,
        description="A sweep ends when twice the load brings less than this share of further "
        "throughput.",
    )
    trace_speed: Annotated[float, Flag(panel=SEARCH_PANEL)] = Field(
        1.0, gt=0, description="Replay --trace so many times as fast."
    )

    ttft_slo_ms: Annotated[float | None, Flag(panel=_LIMITS, metavar="MS")] = Field(
        None,
        gt=0,
        description="Goodput counts answers whose first token came within this.",
    )
    tpot_slo_ms: Annotated[float | None, Flag(panel=_LIMITS, metavar="MS")] = Field(
        None, gt=0, description="The same for the mean time per further token."
    )
    e2el_slo_ms: Annotated[float | None, Flag(panel=_LIMITS, metavar="MS")] = Field(
        None, gt=0, description="The same for the whole answer."
    )
    slo_share: Annotated[float, Flag(panel=_LIMITS)] = Field(
        0.99,
        gt=0,
        le=1,
        description="Share of all requests sent that must be within these, for --find slo.",
    )
    request_timeout_seconds: Annotated[
        float, Flag(name="--timeout", panel=_LIMITS, metavar="SECONDS")
    ] = Field(600.0, gt=0, description="A request that takes longer has failed.")
    max_error_rate: Annotated[float, Flag(panel=_LIMITS)] = Field(
        0.01,
        ge=0,
        le=1,
        description="Exit 1 where the service fails a larger share (0 to 1) of the requests. "
        "Everything is written before. Answers without text have their own limit.",
    )
    max_empty_rate: Annotated[float, Flag(panel=_LIMITS)] = Field(
        0.5,
        ge=0,
        le=1,
        description="Exit 1 where a larger share of the answers ends properly without any text. "
        "They count as failed, and not in max_error_rate.",
    )
    max_client_lag_ms: Annotated[float, Flag(panel=_LIMITS, metavar="MS")] = Field(
        50.0,
        gt=0,
        description="A point is void where the client's own delay exceeds this at p99. Its "
        "latencies then say more of the client than of the service.",
    )

    num_clients: Annotated[int | None, Flag(name="--clients", panel=_CLIENTS)] = Field(
        None,
        ge=1,
        description="Ray actors that send; by default one per Ray node without replicas, 2 to 8. "
        "One suffices for some thousand streamed tokens a second.",
    )
    client_labels: Annotated[
        dict[str, str],
        Flag(
            name="--client-label",
            panel=_CLIENTS,
            metavar="K=V",
            parse=_client_labels,
            repeats=True,
        ),
    ] = Field(
        default_factory=dict,
        description="Send only from Ray nodes with this label (ray start --labels). "
        "None prefers nodes without replicas.",
    )

    model: Annotated[str | None, Flag(panel=_SERVICE, metavar="NAME")] = Field(
        None, description="Model to ask for, where the service lists several."
    )
    api_key_env: Annotated[str | None, Flag(panel=_SERVICE, metavar="NAME")] = Field(
        None, description="Environment variable that holds the API key; by default none is sent."
    )

    engine: Annotated[str, Flag(panel=SERVED_PANEL, metavar="NAME")] = Field(
        "auto", description=f"Engine of its replicas: {engine_help()}"
    )
    engine_options: EngineOptions = Field(EngineOptions(), description="Settings of that engine.")
    num_replicas: int = Field(
        1, ge=1, description="Replicas of a model that is served for the test."
    )
    host: Annotated[str, Flag(panel=SERVED_PANEL, metavar="ADDRESS")] = Field(
        "127.0.0.1",
        description="Address that it listens on; 0.0.0.0 lets clients on other nodes reach it. It "
        "then asks for a key which is made for the test.",
    )
