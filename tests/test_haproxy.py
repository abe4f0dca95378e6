"""HAProxy before a service: what is open, who may administer it, and that it ends with its Ray."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Iterable
from pathlib import Path

import httpx
import psutil
import pytest

from expo_ray import haproxy
from expo_ray.serve_internals import haproxy_template, proxy_settings
from tests.cli.test_main import EXPO_RAY
from tests.head_node import free_port
from tests.listening import family, open_to_others
from tests.test_ray_internals import wait_until

CONFIG = """global
    log 127.0.0.1:514 local0 info
    stats socket /tmp/s mode 666 level admin expose-fd listeners
    maxconn 10
defaults
    mode http
frontend prometheus
    bind :9101
frontend http_frontend
    bind 127.0.0.1:8000
backend b
    http-reuse always
listen stats
  bind *:8404
"""


def test_nothing_listens_but_the_service_and_only_its_user_administers_it() -> None:
    mended = haproxy.mended(CONFIG, "0.0.0.0")
    assert mended.splitlines() == [
        "global",
        "    no strict-limits",
        "    stats socket /tmp/s mode 600 level admin expose-fd listeners",
        "    maxconn 10",
        "defaults",
        "    option httpclose",
        "    timeout http-request 30s",
        "    mode http",
        "frontend http_frontend",
        "    bind ipv4@0.0.0.0:8000",
        "backend b",
        "    http-reuse safe",
    ]
    assert "bind ipv6@:::8000 v4v6\n" in haproxy.mended(CONFIG, "::")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("listen stats", "listen pages"),
        ("backend b\n", "backend b\n    bind :1\n"),
        ("    mode http\n", "    mode http\nlisten more\n    bind :1\n"),
        ("mode 666", "mode 777"),
        ("bind 127.0.0.1:8000", "bind /a/socket"),
        ("local0 info", "local0"),
    ],
)
def test_a_configuration_that_is_not_known_is_not_used(before: str, after: str) -> None:
    assert before in CONFIG
    with pytest.raises(ValueError, match=r"^it"):
        haproxy.mended(CONFIG.replace(before, after), "127.0.0.1")


def test_the_installed_ray_writes_what_we_know(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_SERVE_ENABLE_HA_PROXY", raising=False)
    mended = haproxy.mended(haproxy_template() or "", "127.0.0.1")
    binds = [
        line.split(":")[0].strip()
        for line in mended.splitlines()
        if line.strip().startswith("bind ")
    ]
    assert set(binds) == {"bind ipv4@127.0.0.1"}
    assert "http-reuse always" not in mended
    assert mended.count("option httpclose\n") == 1
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "0")
    assert haproxy_template() is None


def test_where_it_cannot_be_had_serves_own_proxy_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert proxy_settings(None, 1) == {"RAY_SERVE_ENABLE_HA_PROXY": "0"}
    assert haproxy.prepare([Path("/tmp")], None) is None
    assert haproxy.prepare([Path("/tmp")], CONFIG.replace("stats", "others")) is None
    too_long = tmp_path / ("a" * 40)
    too_long.mkdir()
    assert haproxy.prepare([Path("/proc"), too_long], CONFIG) is None
    assert list(too_long.iterdir()) == []
    for binary in ("/no/such/haproxy", "/bin/false"):
        monkeypatch.setenv("RAY_SERVE_HAPROXY_BINARY_PATH", binary)
        assert haproxy.prepare([Path("/tmp")], CONFIG) is None


def test_its_folder_is_of_its_user_alone_and_goes() -> None:
    folder = haproxy.prepare([Path("/proc"), Path("/tmp")], CONFIG)
    assert folder is not None
    try:
        assert folder.stat().st_mode & 0o777 == 0o700
        assert haproxy.listens_at(folder) == "127.0.0.1"
        haproxy.listen_at(folder, "::")
        assert haproxy.listens_at(folder) == "::"
    finally:
        haproxy.remove(folder)
    assert not folder.exists()
    haproxy.remove(None)


def configurations(processes: Iterable[psutil.Process]) -> set[str]:
    """Return the files that those of them read which are HAProxy."""
    found = set()
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess, ValueError):
            if process.name() == "haproxy":
                found.add(process.cmdline()[process.cmdline().index("-f") + 1])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_one_port_is_open_as_asked_and_nothing_is_left_of_a_killed_command(
    pico_pair: tuple[Path, Path], host: str
) -> None:
    port = free_port()
    own = ("RAY_ADDRESS", "RAY_SERVE_ENABLE_HA_PROXY")
    environment = {name: value for name, value in os.environ.items() if name not in own}
    command = [EXPO_RAY, "serve", pico_pair[1], "--json", "--host", host, "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as process:
        try:
            assert process.stdout is not None
            events = [json.loads(process.stdout.readline())["event"] for _ in range(2)]
            assert events == ["starting", "ready"]
            # One HAProxy hands on to the next when it hears of replicas.
            wait_until(lambda: port in open_to_others(process.pid))
            assert sorted(open_to_others(process.pid).values()) == ["haproxy", "ray::ServeReplica"]
            for name in ("127.0.0.1", *(["[::1]"] if host == "::" else [])):
                url = f"http://{name}:{port}/v1/models"
                assert httpx.get(url, timeout=30, trust_env=False).status_code == 200, url
            config = configurations(family(process.pid)).pop()
            process.send_signal(signal.SIGKILL)
            wait_until(lambda: config not in configurations(psutil.process_iter()))
            haproxy.remove(Path(config).parents[1])
        finally:
            process.kill()
