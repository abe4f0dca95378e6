"""What a replica says of itself when it has no weights, or when nobody leads changes of alpha."""

import asyncio
from types import SimpleNamespace

import httpx
import pytest
import ray

from expo_ray.errors import ServingError, ShardError
from expo_ray.serving import ModelSource, openai_service
from expo_ray.serving.alpha_board import find_or_start_board, stop_board
from expo_ray.serving.loaded import NOTHING_LOADED, Loaded
from expo_ray.serving.openai_service import OpenAIService, ServiceSettings, openai_app
from expo_ray.serving.weights_gate import WeightsGate

FAILED = Loaded(weights_digest=None, max_model_len=0, error=ShardError("not finite"))
FINE = Loaded(weights_digest="d", max_model_len=9)


class Service(OpenAIService):
    """Loads what the test says."""

    def __init__(self, loaded: Loaded) -> None:
        self._will_be = loaded
        self._loaded = NOTHING_LOADED
        self._gate = WeightsGate()

    async def replace(self, source: ModelSource) -> Loaded:
        self._source, self._loaded = source, self._will_be
        return self._loaded

    async def chat_completions(self) -> None: ...
    async def text_completions(self) -> None: ...


def started(loaded: Loaded) -> Service:
    service = Service(loaded)
    source = ModelSource(model="m", initial="i", alpha=0.5)
    asyncio.run(service.start_service(source, ServiceSettings(), None))
    return service


def test_a_replica_without_weights_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_service, "replica_name", lambda: "r")
    started(FAILED)._require_weights()  # first whoever has started it is told why
    monkeypatch.setattr(openai_service, "_UNREADY_SECONDS", -1)
    started(FINE)._require_weights()
    service = started(FAILED)
    with pytest.raises(ServingError, match="not loaded") as caught:
        service._require_weights()
    assert "not finite" in str(caught.value.got)
    service._is_loading = True
    service._require_weights()
    service._is_loading = False
    service._member = SimpleNamespace(is_changing=True)  # type: ignore[assignment]
    service._require_weights()


def test_a_board_that_is_gone_is_a_503_to_try_again(ray_cluster: str) -> None:
    service = started(FINE)
    board = find_or_start_board("gone", 0.5)
    service._member = SimpleNamespace(board=board)  # type: ignore[assignment]

    async def ask() -> list[httpx.Response]:
        transport = httpx.ASGITransport(openai_app(service))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return [
                await client.get("/v1/alpha"),
                await client.post("/v1/alpha", json={"alpha": 0.3}),
            ]

    fine, refused = asyncio.run(ask())
    state = fine.json()
    assert (state["model"], state["alpha"], state["weights_digest"]) == ("m@alpha=0.5", 0.5, None)
    assert refused.status_code == 409
    stop_board("gone")
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(board.state.remote())
    for answer in asyncio.run(ask()):
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert answer.json()["error"]["code"] == "restarting"
