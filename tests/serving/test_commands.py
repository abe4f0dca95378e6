import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from expo_ray.errors import CheckpointError, ConfigError, PairError, ServingError, TableError
from expo_ray.serving import SamplingParams, generate, score, serve
from expo_ray.tables import REWARDS_SCHEMA, read_table
from tests.head_node import free_port
from tests.listening import family, open_to_others
from tests.pico import save_pair
from tests.proxy_server import ProxyServer, running_proxy

EXPO_RAY = Path(sys.executable).with_name("expo-ray")


def test_generate_and_score_files(
    ray_cluster: str, pico_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"prompt": "x" * 300}) + '\n{"instruction": "two"}\n')
    responses = tmp_path / "new" / "responses.parquet"
    initial, aligned = pico_pair
    made = generate(
        aligned,
        prompts=prompts,
        output=responses,
        initial=initial,
        alpha=0.3,
        sampling=SamplingParams(max_tokens=5),
    )
    assert (made["num_rows"], made["num_errors"]) == (2, 1)
    scored = score(
        responses,
        reward_model="implicit:beta=1",
        output=tmp_path / "rewards.parquet",
        initial=initial,
        aligned=aligned,
    )
    assert (scored["num_scored"], scored["num_errors"]) == (2, 1)
    failed, fine = read_table(tmp_path / "rewards.parquet", REWARDS_SCHEMA).to_pylist()
    assert failed["reward"] is None
    assert failed["error"].startswith("no response: the prompt has")
    assert fine["reward"] == scored["mean_reward"]
    assert fine["alpha"] == 0.3
    assert json.dumps([made, scored])
    prompts.write_text(json.dumps({"prompt": "x" * 300}))
    with pytest.raises(ServingError, match="every one of the responses failed") as caught:
        generate(aligned, prompts=prompts, output=tmp_path / "none.parquet")
    assert str(caught.value.got).startswith("1 of 1; prompt 0: the prompt has")
    with pytest.raises(ServingError, match="every one of the rewards failed"):
        score(
            tmp_path / "none.parquet",
            reward_model="implicit:beta=1",
            output=tmp_path / "no-rewards.parquet",
            initial=initial,
            aligned=aligned,
        )


def test_wrong_requests_start_nothing(
    pico_pair: tuple[Path, Path],
    pico_reward_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = str(pico_pair[1])
    output = tmp_path / "o.parquet"
    with pytest.raises(TableError):
        generate(model, prompts=tmp_path / "none.jsonl", output=output)
    with pytest.raises(CheckpointError):
        score(tmp_path / "r.parquet", reward_model=str(tmp_path / "none"), output=output)
    with pytest.raises(CheckpointError):
        serve(tmp_path / "none")
    # This address refuses to start a Ray: what is told comes before that.
    alone = {"output": output, "address": "inline"}
    with pytest.raises(CheckpointError, match="one label"):
        score(tmp_path / "r.parquet", reward_model=model, **alone)
    with pytest.raises(TableError):
        score(tmp_path / "r.parquet", reward_model=str(pico_reward_model), **alone)
    prompts = tmp_path / "p.jsonl"
    prompts.write_text('{"prompt": "x"}')
    with pytest.raises(CheckpointError):
        generate(tmp_path / "none", prompts=prompts, **alone)
    monkeypatch.delenv("PICO_KEY", raising=False)
    with pytest.raises(ConfigError, match="API key"):
        serve(model, api_key_env="PICO_KEY")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ConfigError, match="port") as caught:
            serve(model, port=taken.getsockname()[1], address="local")
    assert caught.value.exit_code == 2
    for host in ("203.0.113.7", "no-such-host.invalid"):
        with pytest.raises(ConfigError, match="no such address") as caught:
            serve(model, host=host, address="local")
        assert caught.value.where == "host="
    stranger, _ = save_pair(tmp_path / "stranger", hidden_size=16)
    for command in (
        lambda: serve(model, initial=stranger, alpha=0.5, address="inline"),
        lambda: generate(model, prompts=prompts, initial=stranger, alpha=0.5, **alone),
    ):
        with pytest.raises(PairError):
            command()
    assert not output.exists()


@pytest.fixture
def company_proxy() -> Iterator[ProxyServer]:
    with running_proxy() as running:
        yield running


@pytest.mark.parametrize("proxy", ["haproxy", pytest.param("serve", marks=pytest.mark.slow)])
def test_serve_says_ready_when_it_answers_and_a_signal_ends_it(
    pico_pair: tuple[Path, Path], proxy: str, company_proxy: ProxyServer
) -> None:
    """A Ray of its own: the command starts and stops it, and asks no proxy of the environment."""
    port = free_port()
    environment = {**os.environ, "PICO_KEY": "sk-1\n"}  # as files give it
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        environment |= {name: company_proxy.url, name.upper(): company_proxy.url}
        environment.pop("no_proxy", None)
        environment.pop("NO_PROXY", None)
    environment.pop("RAY_SERVE_ENABLE_HA_PROXY", None)
    if proxy == "serve":
        environment["RAY_SERVE_ENABLE_HA_PROXY"] = "0"
    environment.pop("RAY_ADDRESS", None)
    initial, aligned = map(str, pico_pair)
    command = [str(EXPO_RAY), "serve", aligned, "--initial", initial, "--alpha", "0.5", "--json"]
    with subprocess.Popen(
        [*command, "--port", str(port), "--api-key-env", "PICO_KEY", "--address", "local"],
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            starting, ready = (json.loads(process.stdout.readline()) for _ in range(2))
            assert [starting["event"], ready["event"]] == ["starting", "ready"]
            assert [starting["schema_version"], ready["schema_version"]] == [1, 1]
            assert ready["url"] == f"http://127.0.0.1:{port}"
            assert ready["model"] == starting["model"] == "aligned@alpha=0.5"
            body = {"model": ready["model"], "prompt": "x", "max_tokens": 2}
            url = f"{ready['url']}/v1/completions"
            headers = {"Authorization": "Bearer sk-1"}
            answer = httpx.post(url, json=body, headers=headers, timeout=30)
            assert answer.json()["system_fingerprint"] == ready["weights_digest"]
            proxies = [p.name() for p in family(process.pid)]
            assert ("haproxy" in proxies) == (proxy == "haproxy")
            assert [*open_to_others(process.pid).values()] == ["ray::ServeReplica"]
            body |= {"max_tokens": 100, "stream": True}
            with httpx.stream("POST", url, json=body, headers=headers, timeout=30) as stream:
                assert stream.status_code == 200, stream.read()
                next(stream.iter_raw())
                process.send_signal(signal.SIGTERM)
                stopping = {"schema_version": 1, "event": "stopping"}
                assert json.loads(process.stdout.readline()) == stopping
                # Ten seconds on a machine with nothing else to do.
                assert process.wait(timeout=30) == 128 + signal.SIGTERM
            assert process.stdout.read() == ""
            # Ray itself may ask whether it runs in a cloud.
            assert [line for line in company_proxy.asked if "metadata" not in line] == []
        finally:
            process.kill()
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))
