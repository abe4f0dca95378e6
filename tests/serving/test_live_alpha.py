"""Changing alpha of a service with two embedded replicas."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import ray

import expo_ray
from expo_ray.checkpoints import Checkpoint, weights_digest
from expo_ray.errors import ConfigError, ServingError
from expo_ray.extrapolation import extrapolate
from expo_ray.serving import ModelSource, ServedModel, get_alpha, set_alpha
from tests.pico import save_pair

KEY = "sk-pico"
HEADERS = {"Authorization": f"Bearer {KEY}"}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """So far apart that the greatest alphas overflow."""
    return save_pair(tmp_path_factory.mktemp("live"), scale=1.0)


@pytest.fixture(scope="module")
def served(ray_cluster: str, pair: tuple[Path, Path]) -> Iterator[ServedModel]:
    initial, aligned = map(str, pair)
    source = ModelSource(model=aligned, initial=initial, alpha=0.5)
    with ServedModel(source, num_replicas=2, api_key=KEY, allow_alpha_change=True) as served:
        yield served


def written_digest(pair: tuple[Path, Path], alpha: float, folder: Path) -> str:
    extrapolate(*map(str, pair), folder, alpha=alpha, address="inline")
    return weights_digest(Checkpoint.open(folder))


def replica_names(served: ServedModel) -> list[str]:
    return [
        actor["name"]
        for actor in ray.util.list_named_actors(all_namespaces=True)
        if actor["name"].startswith(f"SERVE_REPLICA::{served.app_name}#OpenAIServer")
    ]


async def ask(client: httpx.AsyncClient, served: ServedModel, model: str) -> tuple[int, str, str]:
    body = {"model": model, "prompt": "x", "max_tokens": 30}
    answer = await client.post(f"{served.url}/v1/completions", json=body)
    seen = answer.json()
    return answer.status_code, seen.get("model", ""), seen.get("system_fingerprint", "")


def test_no_answer_is_ever_labelled_with_other_weights(
    served: ServedModel, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    alphas = (0.5, 0.3, 0.0)
    digests = {
        f"aligned@alpha={alpha:g}": written_digest(pair, alpha, tmp_path / str(alpha))
        for alpha in alphas[:2]
    }
    digests["aligned@alpha=0"] = weights_digest(Checkpoint.open(pair[1]))

    async def load_and_change() -> list[tuple[int, str, str]]:
        answers: list[tuple[int, str, str]] = []
        ended = False

        async def keep_asking(client: httpx.AsyncClient) -> None:
            while not ended:
                for model in digests:
                    answers.append(await ask(client, served, model))

        async with httpx.AsyncClient(timeout=60, headers=HEADERS) as client:
            askers = [asyncio.create_task(keep_asking(client)) for _ in range(6)]
            for alpha in (0.3, 0.0, 0.5):
                await asyncio.sleep(0.5)
                state = await asyncio.to_thread(served.set_alpha, alpha)
                assert state["weights_digest"] == digests[served.model]
                assert {r["weights_digest"] for r in state["replicas"].values()} == {
                    digests[served.model]
                }
                assert len(state["replicas"]) == 2
            ended = True
            await asyncio.gather(*askers)
        return answers

    answers = asyncio.run(load_and_change())
    assert {status for status, _, _ in answers} == {200, 404}
    fine = {(model, digest) for status, model, digest in answers if status == 200}
    assert fine == set(digests.items())


def test_a_replica_that_is_replaced_has_the_current_alpha(served: ServedModel) -> None:
    served.set_alpha(0.25)
    before = set(replica_names(served))
    assert len(before) == 2
    ray.kill(ray.get_actor(min(before), namespace="serve"))
    deadline = time.monotonic() + 120
    while len(set(replica_names(served)) - before) < 1:
        assert time.monotonic() < deadline, "Serve starts another one"
        time.sleep(0.2)

    async def ask_until_both_answer() -> None:
        async with httpx.AsyncClient(timeout=60, headers=HEADERS) as client:
            while True:
                assert time.monotonic() < deadline
                answers = await asyncio.gather(
                    *(ask(client, served, served.model) for _ in range(8))
                )
                # A request on its way to the dead one may fail; none may have other weights.
                assert {a[1:] for a in answers if a[0] == 200} <= {
                    (served.model, served.weights_digest)
                }
                state = get_alpha(url=served.url, api_key=KEY)
                members = [r["alpha"] for r in state["replicas"].values()]
                if set(state["replicas"]) == {n.split("#")[-1] for n in replica_names(served)}:
                    assert members == [0.25, 0.25]
                    return
                await asyncio.sleep(0.5)

    asyncio.run(ask_until_both_answer())


def test_an_alpha_that_cannot_be_changes_nothing(served: ServedModel) -> None:
    model, digest = served.model, served.weights_digest
    with pytest.raises(ServingError, match="refuses") as caught:
        expo_ray.set_alpha(3e38, url=f"{served.url}/v1", api_key=KEY)
    assert "finite" in str(caught.value.got)
    answer = asyncio.run(once(served, model))
    assert answer == (200, model, digest)


async def once(served: ServedModel, model: str) -> tuple[int, str, str]:
    async with httpx.AsyncClient(timeout=60, headers=HEADERS) as client:
        return await ask(client, served, model)


def test_only_those_who_may(served: ServedModel, pair: tuple[Path, Path]) -> None:
    with pytest.raises(ConfigError, match="refuses") as caught:
        set_alpha(0.3, url=served.url, api_key="sk-other")
    assert "401" in str(caught.value.got)
    with pytest.raises(ConfigError, match="finite"):
        set_alpha("nan", url=served.url)
    with pytest.raises(ConfigError, match="URL"):
        set_alpha(0.3, url="nowhere")
    with pytest.raises(ServingError, match="does not answer"):
        set_alpha(0.3, url="http://127.0.0.1:9")
    with pytest.raises(ConfigError, match="pair"):
        ServedModel(ModelSource(model=str(pair[1])), allow_alpha_change=True)
    for body in ({"alpha": "a lot"}, {"alpha": 1, "extra": 1}, {}):
        answer = httpx.post(f"{served.url}/v1/alpha", json=body, headers=HEADERS)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_value")
    with ServedModel(ModelSource(model=str(pair[1]))) as fixed:
        with pytest.raises(ConfigError, match="refuses") as caught:
            set_alpha(0.3, url=fixed.url)
    assert "--allow-alpha-change" in str(caught.value.got)
