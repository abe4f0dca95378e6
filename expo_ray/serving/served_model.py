"""One model behind the OpenAI API, for the length of a `with` block."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import httpx
import ray
from ray import serve

from expo_ray.errors import ConfigError, ServingError, argument
from expo_ray.proxies import http_client
from expo_ray.redaction import redacted
from expo_ray.rewards import RewardModelSpec, pin_reward_model
from expo_ray.serve_internals import serve_endpoint
from expo_ray.serving.alpha_board import stop_board
from expo_ray.serving.alpha_client import DRAIN_SECONDS, set_alpha
from expo_ray.serving.alpha_setting import RulesLike
from expo_ray.serving.chunked_calls import call_in_chunks
from expo_ray.serving.engines.options import EngineOptions
from expo_ray.serving.engines.registry import require_options, resolve_engine
from expo_ray.serving.front_door import ServiceSettings, key_digest
from expo_ray.serving.launching import (
    LOCALHOST,
    application,
    ensure_serve,
    replica_options,
    replica_threads,
)
from expo_ray.serving.rewarder import Rewarder
from expo_ray.serving.source import ModelSource

_MAX_WAITING_REQUESTS = 256
_REFUSAL_SLOTS = 64
_MAX_QUEUED_REQUESTS = 4096
_NO_OPTIONS = EngineOptions()
_ANSWER_TIMEOUT_SECONDS = 120.0


class ServedModel:
    """Serves a model on the connected Ray. Entering waits until a request has been answered.

    Args:
        source: Which weights.
        num_replicas: How many; each takes one CPU, and one GPU where the cluster has any.
        engine: `auto`, `transformers` or `vllm`.
        options: Settings of the engine.
        reward_model: Also serve this one at /v1/rewards.
        initial: For an implicit reward: the checkpoint before alignment.
        host: Address to listen on.
        allowed_hosts: Further names by which clients may call a service without a key.
        port: Port to listen on; None takes the one of a Serve that runs, else a free one.
        route: URL prefix; "" makes a unique one, so that several can live on one port.
        api_key: Key that clients must send; None asks for none.
        allow_alpha_change: Whether clients may change alpha while it runs; needs a pair.
        max_replicas: Let Serve's autoscaler add replicas up to so many; None keeps the number.

    Raises:
        ConfigError: The engine, its options, the reward model or the port is not usable.
        CheckpointError: A checkpoint is missing or malformed.
    """

    url: str
    """Without `/v1` and without a trailing slash."""
    model: str
    """The name of the weights that are served, alpha included; requests may give it."""
    weights_digest: str
    """Of the tensors that the replicas hold, taken while they were loaded (`engines/loading.py`;
    vLLM: `vllm_worker.py`). Every answer carries it as `system_fingerprint`."""
    engine: str
    """The one that `auto` stands for."""
    app_name: str
    """Name of the Serve application, for callers that reach its replicas by a handle."""

    def __init__(
        self,
        source: ModelSource,
        *,
        num_replicas: int = 1,
        engine: str = "auto",
        reward_model: str | None = None,
        initial: str | Path | None = None,
        host: str = LOCALHOST,
        allowed_hosts: Sequence[str] = (),
        port: int | None = None,
        route: str = "",
        api_key: str | None = None,
        options: EngineOptions = _NO_OPTIONS,
        allow_alpha_change: bool = False,
        max_replicas: int | None = None,
    ) -> None:
        self._engine = resolve_engine(engine)
        self.engine = self._engine.name
        require_options(self._engine, options)
        if allow_alpha_change and source.setting is None:
            raise ConfigError(
                "alpha can change only where a pair is served",
                where=argument("allow_alpha_change"),
                hint=f"give {argument('initial')} and {argument('alpha')} (0 is the aligned model "
                f"itself) or {argument('alpha_rules')}",
            )
        if max_replicas is not None and max_replicas < num_replicas:
            raise ConfigError(
                "the most replicas are fewer than those to start with",
                where=argument("max_replicas"),
                got=max_replicas,
                expected=f"{num_replicas} or more",
            )
        self._options = options
        self._allow_alpha_change = allow_alpha_change
        self._max_replicas = max_replicas
        self._source = source.pinned()
        self._rewarder = None
        if reward_model is not None:
            self._rewarder = pin_reward_model(
                RewardModelSpec.parse(reward_model),
                initial=self._source.initial if initial is None else initial,
                aligned=self._source.model,
            )
        self._num_replicas = num_replicas
        self._listen = (host, port)
        self._host = self._listen[0]
        self._allowed_hosts = tuple(allowed_hosts)
        self._route = route
        self._api_key = api_key
        self._stack = ExitStack()
        self.model = self._source.name
        self.app_name = ""

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            host, port = self._listen
            self._source.check()
            running = serve_endpoint()
            if running is not None and port is None:
                self._host = running[0]  # joins a Serve that somebody else has started
            app = self.bind()  # refuses what it can before Serve is started
            root = ensure_serve(host=host, port=port)
            # Ends after the replicas, which would look for another one.
            stack.callback(self._stop_board)
            handle, route = stack.enter_context(application(app, label="server", route=self._route))
            self.app_name = str(handle.app_name)
            [(_, loaded)] = call_in_chunks(
                lambda _: handle.describe.remote(), [self._source], num_in_flight=1
            )
            if loaded.error is not None:
                raise loaded.error
            self.weights_digest = loaded.weights_digest
            self.url = f"{root}{route or ''}".rstrip("/")
            self._wait_for_an_answer()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def set_alpha(
        self,
        alpha: float | None = None,
        *,
        alpha_rules: RulesLike | None = None,
        drain_seconds: float = DRAIN_SECONDS,
    ) -> dict[str, Any]:
        """Bring all replicas to another alpha, or to rules, see `expo_ray.serving.set_alpha`."""
        state = set_alpha(
            alpha,
            alpha_rules=alpha_rules,
            url=self.url,
            api_key=self._api_key,
            drain_seconds=drain_seconds,
        )
        self.model, self.weights_digest = state["model"], state["weights_digest"]
        return state

    def bind(self) -> serve.Application:
        """Return the Serve application, not deployed yet."""
        settings = ServiceSettings(
            api_key_digest=None if self._api_key is None else key_digest(self._api_key),
            host=self._host,
            allowed_hosts=self._allowed_hosts,
            allow_alpha_change=self._allow_alpha_change,
            # Twice the batch: while one batch runs, the next one gathers in the replica.
            max_requests=2 * self._engine.max_batch_rows(self._options) + _MAX_WAITING_REQUESTS,
        )
        rewarder: Any = None
        if self._rewarder is not None:
            one = replica_options(1)
            rewarder = serve.deployment(Rewarder).options(**one)
            rewarder = rewarder.bind(*self._rewarder, num_threads=replica_threads(one))
        return self._engine.server_app(
            self._source,
            self._options,
            settings=settings,
            rewarder=rewarder,
            deployment=self._deployment(settings.max_requests),
        )

    def _deployment(self, max_requests: int) -> dict[str, Any]:
        deployment = self._engine.deployment(self._num_replicas, self._options)
        if self._max_replicas is not None:
            deployment.pop("num_replicas")
            deployment["autoscaling_config"] = {
                "min_replicas": self._num_replicas,
                "max_replicas": self._max_replicas,
                # More than a batch means waiting: that is when another replica helps.
                "target_ongoing_requests": self._engine.max_batch_rows(self._options),
            }
        # The replica refuses what is too much, in OpenAI's words; Serve's own limits lie above.
        # Not in the oldest Ray that is supported.
        if hasattr(ray.serve.config, "BackpressureConfig"):
            deployment["backpressure_config"] = {"retry_after_s": 1}
        return {
            **deployment,
            "max_ongoing_requests": max_requests + _REFUSAL_SLOTS,
            "max_queued_requests": _MAX_QUEUED_REQUESTS,
        }

    def _stop_board(self) -> None:
        if self._allow_alpha_change and self.app_name and ray.is_initialized():
            stop_board(self.app_name, version=self._source.source_id)

    def _wait_for_an_answer(self) -> None:
        """Complete one token: only then can a client be told that the service is ready."""
        headers = {} if self._api_key is None else {"Authorization": f"Bearer {self._api_key}"}
        body = {"model": self.model, "prompt": "a", "max_tokens": 1}
        deadline = time.monotonic() + _ANSWER_TIMEOUT_SECONDS
        problem = "no attempt"
        client = http_client(self.url, is_ours=True, headers=headers, timeout=60)
        while time.monotonic() < deadline:
            try:
                answer = client.post(f"{self.url}/v1/completions", json=body)
            except httpx.HTTPError as error:
                problem = f"{type(error).__name__}: {error}"
            else:
                if answer.status_code == 200:
                    return
                problem = f"status {answer.status_code}: {redacted(answer.text)[:300]}"
            time.sleep(0.1)
        raise ServingError(
            "the service does not answer",
            where=self.url,
            got=problem,
            expected=f"an answer within {_ANSWER_TIMEOUT_SECONDS:g} s",
        )
