"""Changing alpha of a service with two embedded replicas."""

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import ray
import yaml
from ray import serve
from ray.serve.schema import ApplicationStatus
from typer.testing import CliRunner

import expo_ray
from expo_ray.checkpoints import open_checkpoint, weights_digest
from expo_ray.cli.main import app as command
from expo_ray.errors import ConfigError, ServingError
from expo_ray.extrapolation import extrapolate
from expo_ray.extrapolation.planning.alpha_rules import AlphaRules
from expo_ray.serving import ModelSource, ServedModel, generator, get_alpha, set_alpha
from expo_ray.serving.alpha_memory import NAMESPACE
from expo_ray.serving.app import AppArguments, build_app
from expo_ray.serving.launching import ensure_serve
from tests.pico import save_pair

KEY = "sk-pico"
HEADERS = {"Authorization": f"Bearer {KEY}"}
RULES = [
    {"match": "*norm*", "alpha": 0},
    {"match": "model.layers.*", "alpha": {"first": 0.1, "last": 0.4}},
]


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


def written_digest(pair: tuple[Path, Path], alpha: float, folder: Path, **more: Any) -> str:
    extrapolate(*map(str, pair), folder, alpha=alpha, address="inline", **more)
    return weights_digest(open_checkpoint(folder))


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
    digests["aligned@alpha=0"] = weights_digest(open_checkpoint(pair[1]))

    async def load_and_change() -> list[tuple[int, str, str]]:
        answers: list[tuple[int, str, str]] = []
        ended = False
        stable.clear()

        async def keep_asking(client: httpx.AsyncClient) -> None:
            while not ended:
                for model in digests:
                    answers.append(await ask(client, served, model))
                stable.append(await ask(client, served, "aligned"))

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

    stable: list[tuple[int, str, str]] = []
    answers = asyncio.run(load_and_change())
    # The name that stays is always answered, and the answer says by which weights.
    assert {(200, *pair) for pair in digests.items()} >= {*stable}
    assert len({model for _, model, _ in stable}) > 1
    assert {status for status, _, _ in answers} == {200, 404}
    fine = {(model, digest) for status, model, digest in answers if status == 200}
    assert fine == set(digests.items())


def test_rules_from_a_file_on_the_command_line(
    served: ServedModel,
    pair: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text(yaml.safe_dump(RULES))
    old = served.model
    monkeypatch.setenv("PICO_KEY", KEY)

    def alpha_set(*arguments: object) -> Any:
        key = ("--url", served.url, "--api-key-env", "PICO_KEY", "--json")
        return CliRunner().invoke(command, ["alpha", "set", *map(str, arguments), *key])

    state = json.loads(alpha_set("0.3", "--alpha-rules", rules).stdout)
    current = AlphaRules.parse(RULES).with_default(0.3)
    assert state["model"] == f"aligned@rules={current.digest}"
    digest = written_digest(pair, 0.3, tmp_path / "written", alpha_rules=rules)
    assert state["weights_digest"] == digest
    assert (state["alpha"], state["alpha_rules"]) == (None, current.as_dict())
    assert [r["weights_digest"] for r in state["replicas"].values()] == [digest] * 2
    stable, entry = httpx.get(f"{served.url}/v1/models", headers=HEADERS).json()["data"]
    assert (stable["id"], stable["alpha_rules"]) == ("aligned", entry["alpha_rules"])
    assert (entry["id"], entry["alpha"]) == (state["model"], None)
    assert entry["alpha_rules"] == current.as_dict()
    assert asyncio.run(once(served, state["model"])) == (200, state["model"], digest)
    assert asyncio.run(once(served, old))[0] == 404
    assert asyncio.run(once(served, "aligned")) == (200, state["model"], digest)

    # Rules that do not fit this model change nothing, and nobody waits for them.
    rules.write_text(yaml.safe_dump([*RULES, {"match": "*.no_such.*", "alpha": 1}]))
    refused = alpha_set("0.3", "--alpha-rules", rules)
    assert isinstance(refused.exception, ConfigError)
    assert "never used" in str(refused.exception.got)
    assert get_alpha(url=served.url, api_key=KEY)["generation"] == state["generation"]
    assert isinstance(alpha_set().exception, ConfigError)


def test_a_replica_that_is_replaced_has_the_current_rules(served: ServedModel) -> None:
    served.set_alpha(0.25, alpha_rules=RULES)
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
                members = [r["weights_digest"] for r in state["replicas"].values()]
                if set(state["replicas"]) == {n.split("#")[-1] for n in replica_names(served)}:
                    assert members == [served.weights_digest] * 2
                    return
                await asyncio.sleep(0.5)

    asyncio.run(ask_until_both_answer())


def test_a_client_that_vanishes_amid_a_change(served: ServedModel) -> None:
    """Serve cancels whatever its request had begun; the change goes on all the same."""
    served.set_alpha(0.5)
    old, digest = served.model, served.weights_digest

    async def vanish() -> list[tuple[int, str, str]]:
        async with httpx.AsyncClient(timeout=60, headers=HEADERS) as client:
            inside = [asyncio.create_task(ask(client, served, old)) for _ in range(16)]
            await asyncio.sleep(0.05)
            with pytest.raises(httpx.ReadTimeout):
                await client.post(f"{served.url}/v1/alpha", json={"alpha": 0.3}, timeout=0.05)
            return await asyncio.gather(*inside)

    assert {answer for answer in asyncio.run(vanish()) if answer[0] == 200} <= {(200, old, digest)}
    deadline = time.monotonic() + 60
    while get_alpha(url=served.url, api_key=KEY)["changing"]:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    state = served.set_alpha(0.25)
    assert state["weights_digest"] not in (None, digest)
    answered = asyncio.run(once(served, served.model))
    assert answered == (200, "aligned@alpha=0.25", state["weights_digest"])


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
    for body in ({"alpha": "a lot"}, {"alpha": 1, "extra": 1}, {}, {"alpha_rules": [{}]}):
        answer = httpx.post(f"{served.url}/v1/alpha", json=body, headers=HEADERS)
        code = "unknown_parameter" if "extra" in body else "invalid_value"
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, code)
    with ServedModel(ModelSource(model=str(pair[1]))) as fixed:
        with pytest.raises(ConfigError, match="refuses") as caught:
            set_alpha(0.3, url=fixed.url)
    assert "--allow-alpha-change" in str(caught.value.got)


@pytest.mark.slow
def test_a_replica_that_the_autoscaler_adds_has_the_current_alpha(
    ray_cluster: str, pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = ServedModel._deployment

    def hurried(self: ServedModel, max_requests: int) -> dict[str, Any]:
        options = whole(self, max_requests)
        # Serve looks for 30 seconds before it adds a replica, by default.
        options["autoscaling_config"] |= {
            "upscale_delay_s": 0.5,
            "metrics_interval_s": 0.5,
            "look_back_period_s": 1,
        }
        return options

    monkeypatch.setattr(ServedModel, "_deployment", hurried)
    monkeypatch.setattr(generator, "MAX_BATCH_ROWS", 4)
    initial, aligned = map(str, pair)
    source = ModelSource(model=aligned, initial=initial, alpha=0.5)
    with ServedModel(source, allow_alpha_change=True, max_replicas=2) as scaled:
        scaled.set_alpha(0.3)
        [only] = get_alpha(url=scaled.url)["replicas"]
        # Serve needs seconds to see that the only one is dead; nobody else knows this alpha.
        ray.kill(ray.get_actor(replica_names(scaled)[0], namespace="serve"))
        deadline = time.monotonic() + 150
        while True:
            answer = httpx.get(f"{scaled.url}/v1/alpha", timeout=60)
            if answer.status_code == 200 and {*answer.json()["replicas"]} - {only}:
                break
            assert time.monotonic() < deadline
            time.sleep(0.5)
        assert asyncio.run(once(scaled, scaled.model)) == (
            200,
            "aligned@alpha=0.3",
            scaled.weights_digest,
        )

        async def load_until_there_are_two() -> set[tuple[int, str, str]]:
            seen: set[tuple[int, str, str]] = set()
            state: dict[str, Any] = {"replicas": {}}

            async def keep_asking(client: httpx.AsyncClient) -> None:
                while len(state["replicas"]) < 2:
                    assert time.monotonic() < deadline
                    seen.add(await ask(client, scaled, scaled.model))

            async with httpx.AsyncClient(timeout=60) as client:
                askers = [asyncio.create_task(keep_asking(client)) for _ in range(12)]
                while len(state["replicas"]) < 2 and not any(a.done() for a in askers):
                    await asyncio.sleep(0.2)
                    state = await asyncio.to_thread(get_alpha, url=scaled.url)
                await asyncio.gather(*askers)
                # Some of these are answered by the second one.
                many = (ask(client, scaled, scaled.model) for _ in range(12))
                seen |= {*await asyncio.gather(*many)}
            assert {r["alpha"] for r in state["replicas"].values()} == {0.3}
            return seen

        seen = asyncio.run(load_until_there_are_two())
        assert {answer for answer in seen if answer[0] == 200} == {
            (200, "aligned@alpha=0.3", scaled.weights_digest)
        }


def boards() -> list[str]:
    actors = ray.util.list_named_actors(all_namespaces=True)
    mine = (a["name"] for a in actors if a["namespace"] == NAMESPACE)
    return [name for name in mine if name.startswith("expo-ray-alpha-from-a-file")]


@pytest.mark.slow
def test_a_config_file_that_changes_starts_anew_and_leaves_nothing_behind(
    ray_cluster: str, pair: tuple[Path, Path]
) -> None:
    root = ensure_serve()
    name = "from-a-file"

    def deploy(alpha: float) -> str:
        arguments = AppArguments(
            model=str(pair[1]), initial=str(pair[0]), alpha=alpha, allow_alpha_change=True
        )
        serve.run(build_app(arguments), name=name, route_prefix=f"/{name}")
        assert serve.status().applications[name].status == ApplicationStatus.RUNNING
        answer = httpx.get(f"{root}/{name}/v1/models", timeout=60)
        return str(answer.json()["data"][-1]["id"])

    def wait_for_boards(number: int) -> None:
        deadline = time.monotonic() + 60
        while len(boards()) != number:
            assert time.monotonic() < deadline, boards()
            time.sleep(0.5)

    try:
        assert deploy(0.5) == "aligned@alpha=0.5"
        set_alpha(0.7, url=f"{root}/{name}")
        # The same file again changes nothing; another one is followed, not the last alpha.
        assert deploy(0.5) == "aligned@alpha=0.7"
        assert deploy(0.3) == "aligned@alpha=0.3"
        wait_for_boards(1)
    finally:
        serve.delete(name)
    wait_for_boards(0)
