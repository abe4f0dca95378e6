"""One model behind the OpenAI API, for the length of a `with` block."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import httpx
from ray import serve

from expo_ray.checkpoints import Checkpoint
from expo_ray.errors import ServingError
from expo_ray.rewards import RewardModelSpec
from expo_ray.serving.chunked_calls import call_in_chunks
from expo_ray.serving.engines import resolve_engine
from expo_ray.serving.generator import MAX_BATCH_ROWS
from expo_ray.serving.launching import LOCALHOST, application, ensure_serve, replica_options
from expo_ray.serving.openai_app import OpenAIServer, key_digest
from expo_ray.serving.reward_replicas import rewarder_paths
from expo_ray.serving.rewarder import Rewarder
from expo_ray.serving.source import ModelSource

_MAX_QUEUED_REQUESTS = 256
_ANSWER_TIMEOUT_SECONDS = 120.0


class ServedModel:
    """Serves a model on the connected Ray. Entering waits until a request has been answered.

    Args:
        source: Which weights.
        num_replicas: How many; each takes one CPU, and one GPU where the cluster has any.
        engine: `auto` or `transformers`.
        reward_model: Also serve this one at /v1/rewards.
        initial: For an implicit reward: the checkpoint before alignment.
        host: Address to listen on.
        port: Port to listen on; None takes the one of a Serve that runs, else a free one.
        route: URL prefix; "" makes a unique one, so that several can live on one port.
        api_key: Key that clients must send; None asks for none.

    Raises:
        ConfigError: The engine, reward model or port is not usable.
        CheckpointError: A checkpoint is missing or malformed.
    """

    url: str
    """Without `/v1` and without a trailing slash."""
    model: str
    """The name that requests give."""
    weights_digest: str
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
        port: int | None = None,
        route: str = "",
        api_key: str | None = None,
    ) -> None:
        self._engine = resolve_engine(engine)
        self._source = source
        Checkpoint.open(source.model)
        self._spec = None if reward_model is None else RewardModelSpec.parse(reward_model)
        if self._spec is not None:
            pair_initial = source.initial if initial is None else initial
            self._pair = rewarder_paths(self._spec, pair_initial, source.model)
        self._num_replicas = num_replicas
        self._listen = (host, port)
        self._route = route
        self._api_key = api_key
        self._stack = ExitStack()
        self.model = source.name

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            host, port = self._listen
            root = ensure_serve(host=host, port=port)
            app = application(self.bind(), label="server", route=self._route)
            handle, route = stack.enter_context(app)
            [(_, loaded)] = call_in_chunks(
                lambda _: handle.describe.remote(), [self._source], num_in_flight=1
            )
            if loaded.error is not None:
                raise loaded.error
            self.weights_digest = loaded.weights_digest
            self.app_name = str(handle.app_name)
            self.url = f"{root}{route or ''}".rstrip("/")
            self._wait_for_an_answer()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def bind(self) -> serve.Application:
        """Return the Serve application, not deployed yet."""
        options = replica_options(self._num_replicas)
        rewarder: Any = None
        if self._spec is not None:
            one = replica_options(1)
            rewarder = serve.deployment(Rewarder).options(**one).bind(self._spec, *self._pair)
        # Twice the batch: while one batch runs, the next one gathers in the replica.
        deployment: Any = OpenAIServer
        server = deployment.options(
            max_ongoing_requests=2 * MAX_BATCH_ROWS,
            max_queued_requests=_MAX_QUEUED_REQUESTS,
            **options,
        )
        digest = None if self._api_key is None else key_digest(self._api_key)
        app: serve.Application = server.bind(self._engine, self._source, rewarder, digest)
        return app

    def _wait_for_an_answer(self) -> None:
        """Complete one token: only then can a client be told that the service is ready."""
        headers = {} if self._api_key is None else {"Authorization": f"Bearer {self._api_key}"}
        body = {"model": self.model, "prompt": "a", "max_tokens": 1}
        deadline = time.monotonic() + _ANSWER_TIMEOUT_SECONDS
        problem = "no attempt"
        while time.monotonic() < deadline:
            try:
                answer = httpx.post(
                    f"{self.url}/v1/completions", json=body, headers=headers, timeout=60
                )
            except httpx.HTTPError as error:
                problem = f"{type(error).__name__}: {error}"
            else:
                if answer.status_code == 200:
                    return
                problem = f"status {answer.status_code}: {answer.text[:300]}"
            time.sleep(0.1)
        raise ServingError(
            "the service does not answer",
            where=self.url,
            got=problem,
            expected=f"an answer within {_ANSWER_TIMEOUT_SECONDS:g} s",
        )
