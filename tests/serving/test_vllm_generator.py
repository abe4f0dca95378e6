"""What a vLLM replica does around new weights; the engine answers as the test says."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from expo_ray.serving import ModelSource
from expo_ray.serving.loaded import Loaded
from tests.serving.vllm_here import require_vllm

require_vllm()


class Engine:
    """Notes what it is asked for."""

    def __init__(self, *, resets: bool) -> None:
        self.resets = resets
        self.calls: list[str] = []
        self.output_processor = SimpleNamespace(request_states={"left behind": None})
        self.model_config = SimpleNamespace(max_model_len=9)
        self._engine_client = self

    async def abort(self, request_ids: list[str], internal: bool) -> None:
        assert internal
        self.calls += ["abort", *request_ids]

    async def collective_rpc(self, method: str, **more: Any) -> list[dict[str, str]]:
        self.calls.append(method)
        return [{"digest": "d"}]

    async def reset_prefix_cache(self) -> bool:
        self.calls.append("reset")
        return self.resets


def replaced(engine: Engine) -> Loaded:
    # It sets the level of the root logger: not while all tests are collected.
    from expo_ray.serving.vllm_generator import VLLMGenerator

    class Replica(VLLMGenerator):
        """Without what Serve awaits at its end."""

        def __del__(self) -> None: ...

    replica = Replica.__new__(Replica)
    replica.engine = engine
    return asyncio.run(replica.replace(ModelSource(model="m", initial="i", alpha=0.5)))


@pytest.mark.parametrize("resets", [True, False])
def test_weights_count_only_when_nothing_of_the_others_is_left(resets: bool) -> None:
    engine = Engine(resets=resets)
    loaded = replaced(engine)
    # In this order: vLLM does what it is asked for one after the other.
    assert engine.calls == ["abort", "left behind", "expo_ray_load", "reset"]
    assert loaded.weights_digest == ("d" if resets else None)
    assert (loaded.error is None) == resets
    assert resets or "prefix cache" in str(loaded.error)
