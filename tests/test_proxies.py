"""Every client of ours beside a proxy that is real and writes down what comes."""

from __future__ import annotations

import asyncio
import base64
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from expo_ray.checkpoints.storages.remote_path import RemotePath
from expo_ray.errors import ConfigError, ExpoError, ServingError
from expo_ray.loadtests.client import LoadClient
from expo_ray.loadtests.options import LoadtestOptions
from expo_ray.loadtests.records import Job, RequestRecord
from expo_ray.loadtests.stream import Endpoint
from expo_ray.loadtests.target import open_target
from expo_ray.proxies import find_proxy, http_client, spare_this_machine, through_proxy
from expo_ray.rewards import load_reward_model
from expo_ray.serving.alpha_client import get_alpha
from tests.loadtests.fake_service import FakeService, running_service
from tests.proxy_server import ProxyServer, running_proxy

NAMES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "grpc_proxy")
FAR = "http://models.example"
AUTH = b"Basic " + base64.b64encode(b"user:pass@word")


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*NAMES, *map(str.upper, NAMES), "HF_HUB_OFFLINE"):
        # Set first, so that what the code sets goes again at the end.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[ProxyServer]:
    with running_proxy() as running:
        monkeypatch.setenv("HTTP_PROXY", running.url)
        monkeypatch.setenv("HTTPS_PROXY", running.url)
        yield running


@pytest.fixture
def service() -> Iterator[FakeService]:
    with running_service() as running:
        yield running


def send(url: str, app_name: str | None = None) -> RequestRecord:
    client = LoadClient(Endpoint(url=url, model="fake", app_name=app_name), {}, 20.0)
    message = {"role": "user", "content": "tokens=2"}
    job = Job(request_id=0, prompt_id="p", messages=(message,))  # type: ignore[arg-type]
    sent = asyncio.run(client.run_closed([job], concurrency=1, start_at=time.time()))
    [record] = sent.records
    return record


@pytest.mark.parametrize(
    ("environment", "url", "variable"),
    [
        ({"HTTP_PROXY": "http://p:1"}, "http://h/v1", "HTTP_PROXY"),
        ({"http_proxy": "p:1", "HTTP_PROXY": "http://q:1"}, "http://h/v1", "http_proxy"),
        ({"HTTP_PROXY": "http://p:1"}, "https://h/v1", None),
        ({"ALL_PROXY": "http://p:1"}, "https://h/v1", "ALL_PROXY"),
        *(
            ({"ALL_PROXY": "http://p:1"}, f"http://{host}/v1", None)
            for host in ("127.0.0.1:8000", "127.8.8.8", "localhost", "[::1]:80", "a.localhost")
        ),
        ({"HTTP_PROXY": "http://p:1", "NO_PROXY": "other, .example"}, FAR, None),
        ({"HTTP_PROXY": "http://p:1", "NO_PROXY": "*"}, FAR, None),
        ({"HTTP_PROXY": "http://p:1", "NO_PROXY": "10.0.0.0/8"}, "http://10.1.2.3:8000", None),
        ({"HTTP_PROXY": "http://p:1", "NO_PROXY": "10.0.0.0/8"}, "http://11.1.2.3", "HTTP_PROXY"),
        ({"HTTP_PROXY": "http://p:1", "NO_PROXY": "h:8000"}, "http://h:8000/v1", None),
    ],
)
def test_the_rule(
    environment: dict[str, str],
    url: str,
    variable: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    found = find_proxy(url)
    assert (found and found.variable) == variable
    assert found is None or found.url == "http://p:1"


@pytest.mark.parametrize("value", ["socks5://p:1080", "http://", "http://p:port"])
def test_a_proxy_that_cannot_be_used_is_refused_and_does_not_touch_this_machine(
    value: str, monkeypatch: pytest.MonkeyPatch, service: FakeService
) -> None:
    monkeypatch.setenv("ALL_PROXY", value)
    with pytest.raises(ConfigError, match="cannot be used") as error:
        find_proxy(FAR)
    assert error.value.where == "ALL_PROXY"
    with http_client(service.url) as client:
        assert client.get(f"{service.url}/v1/models").status_code == 200


def test_a_load_test_of_this_machine_asks_no_proxy(
    proxy: ProxyServer, service: FakeService
) -> None:
    with open_target(service.url, initial=None, alpha=None, options=LoadtestOptions()) as endpoint:
        assert endpoint.model == "fake"
    assert send(service.url).error is None
    assert proxy.asked == []


def test_a_load_test_through_the_proxy_goes_there_with_all_it_sends(
    proxy: ProxyServer, service: FakeService
) -> None:
    proxy.answers_for["models.example"] = service.url
    with open_target(FAR, initial=None, alpha=None, options=LoadtestOptions()) as endpoint:
        record = send(endpoint.url)
    assert (record.error, record.output_tokens) == (None, 2)
    assert proxy.asked == [
        f"GET {FAR}/v1/models HTTP/1.1",
        f"POST {FAR}/v1/chat/completions HTTP/1.1",
    ]
    assert all(AUTH in head for head in proxy.heads)


def test_what_we_serve_has_no_proxy_wherever_it_listens(
    proxy: ProxyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A name of this machine that is not one of loopback.
    assert send("http://models.example:1", app_name="ours").error == "connect"
    with http_client("http://models.example:1", is_ours=True) as client:
        with pytest.raises(Exception, match=r"resol|Name|known|connect"):
            client.get("http://models.example:1")
    assert proxy.asked == []


def test_failures_name_the_proxy_without_its_password(proxy: ProxyServer) -> None:
    said = [str(send(FAR).error_detail)]
    with (
        pytest.raises(ServingError) as refused,
        open_target(FAR, initial=None, alpha=None, options=LoadtestOptions()),
    ):
        pass
    said.append(str(refused.value))
    with pytest.raises(ExpoError) as refused_alpha:
        get_alpha(url=FAR)
    said.append(str(refused_alpha.value))
    said.append(through_proxy(FAR))
    for words in said:
        assert "through the proxy HTTP_PROXY=http://***@127.0.0.1:" in words
        assert "word" not in words
    assert len(proxy.asked) == 3


def test_a_judge_is_asked_through_the_proxy_and_says_so(
    proxy: ProxyServer, service: FakeService
) -> None:
    proxy.answers_for["models.example"] = service.url
    chat = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "tokens=1"}]
    for url, num_asked in ((service.url, 0), (FAR, 1)):
        # It streams, whatever was asked for: no answer that a judge gives.
        [score] = load_reward_model(f"judge:{url}/v1#m").score([chat])  # type: ignore[list-item]
        assert score.reward is None
        assert ("through the proxy" in str(score.error)) is bool(num_asked)
        assert len(proxy.asked) == num_asked


def test_libraries_beneath_are_told_to_spare_this_machine(
    proxy: ProxyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "intranet.example")
    spare_this_machine()
    for name in ("no_proxy", "NO_PROXY"):
        assert os.environ[name].startswith("intranet.example,localhost,127.0.0.1,::1,169.254")
    spare_this_machine("10.0.0.7")
    assert os.environ["no_proxy"].endswith(",10.0.0.7")
    assert os.environ["NO_PROXY"].count("localhost") == 1


def test_nothing_is_set_where_no_proxy_is() -> None:
    spare_this_machine()
    assert not {"NO_PROXY", "no_proxy"} & set(os.environ)


def test_a_bucket_is_asked_through_the_proxy(
    proxy: ProxyServer, service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy.answers_for["store.example"] = service.url  # which has no such path
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://store.example")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    with pytest.raises(FileNotFoundError):
        RemotePath("s3://bucket/key").open()
    assert proxy.asked and all("store.example/bucket/key" in line for line in proxy.asked)
    count = len(proxy.asked)
    monkeypatch.setenv("AWS_ENDPOINT_URL", service.url)
    with pytest.raises(FileNotFoundError):
        RemotePath("s3://bucket/key").open()
    assert len(proxy.asked) == count


def test_a_command_reaches_a_hub_on_this_machine(proxy: ProxyServer, tmp_path: Path) -> None:
    with running_service() as hub:
        result = subprocess.run(
            [str(Path(sys.executable).with_name("expo-ray")), "inspect", "hf://own/model"],
            env={**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=100,
        )
    assert result.returncode == 2
    assert "404" in result.stderr and "through the proxy" not in result.stderr
    assert proxy.asked == []


def test_the_proxy_of_these_tests_passes_on_a_body_that_comes_late(
    proxy: ProxyServer, service: FakeService
) -> None:
    proxy.answers_for["models.example"] = service.url
    where = urlsplit(proxy.url)
    body = b'{"messages": [{"role": "user", "content": "tokens=1"}]}'
    head = f"POST {FAR}/v1/chat/completions HTTP/1.1\r\nHost: models.example\r\n"
    with socket.create_connection(("127.0.0.1", where.port or 0), timeout=20) as client:
        client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode())
        time.sleep(0.2)
        client.sendall(body)
        assert client.recv(65536).startswith(b"HTTP/1.1 200")
