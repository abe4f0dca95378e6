"""What a local Ray is started with: a folder fit for it, a token, and only what was asked for."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from ray._private.utils import check_version_info

from expo_ray import ray_start
from expo_ray.errors import ConfigError
from tests.cli.test_main import EXPO_RAY

UV = Path(sys.executable).with_name("uv")
LONG = "/tmp/" + "a-long-name/" * 8
DRIVER = """
import sys
import psutil
import ray
from expo_ray.cluster import ray_session

@ray.remote
def path():
    import sys
    return sys.path

with ray_session("local", num_cpus=1):
    assert ray.get_runtime_context().runtime_env == {}, ray.get_runtime_context().runtime_env
    assert not {"", sys.argv[1]} & set(ray.get(path.remote()))
    me = psutil.Process()
    listening = [
        c.laddr.ip.removeprefix("::ffff:")
        for process in [me, *me.children(recursive=True)]
        for c in process.net_connections("inet")
        if c.status == psutil.CONN_LISTEN
    ]
    print(len(listening), {*listening})
"""


def test_under_uv_in_a_large_folder_nothing_is_sent_and_all_listens_on_loopback(
    tmp_path: Path,
) -> None:
    with (tmp_path / "model.safetensors").open("wb") as weights:
        weights.truncate(10 * 2**30)  # Ray takes 512 MiB
    bad_home = {"HOME": "/dev/null", "TMPDIR": LONG, "PYTHONPATH": f":{os.environ['PYTHONPATH']}"}
    environment = {**os.environ, **bad_home, "UV_CACHE_DIR": str(tmp_path / "uv")}
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_TMPDIR", "UV_RUN_RECURSION_DEPTH"):
        environment.pop(name, None)
    command = [UV, "run", "--no-project", "--offline", "--python", sys.executable, sys.executable]
    result = subprocess.run(
        [*command, "-c", DRIVER, str(tmp_path)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=170,
    )
    assert result.returncode == 0, result.stderr
    num_listening, addresses = result.stdout.split(maxsplit=1)
    assert int(num_listening) > 3
    assert addresses.strip() == "{'127.0.0.1'}"
    assert "Ray keeps its files in /tmp/ray instead" in result.stderr


@pytest.mark.parametrize("name", ["RAY_TMPDIR", "TMPDIR"])
@pytest.mark.parametrize("place", [LONG, "/dev/null", "/proc"])
def test_a_folder_that_is_not_fit_is_passed_over_with_a_word(
    name: str,
    place: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv(name, place)
    assert ray_start._session_folder() == Path("/tmp/ray")
    assert place.rstrip("/") in caplog.text


def test_a_folder_that_is_fit_is_the_users(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        monkeypatch.setenv("RAY_TMPDIR", folder)
        assert ray_start._session_folder() == Path(folder) / "ray"
    assert not caplog.text


def test_without_any_space_the_cure_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", LONG)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 10, before[1]))
    try:
        with pytest.raises(ConfigError, match="no temporary folder is fit") as caught:
            ray_start.start_local(1, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.where == "RAY_TMPDIR"
    assert "too long for sockets" in str(caught.value.got)
    assert "/tmp/ray: File too large" in str(caught.value.got)
    assert "RAY_TMPDIR" in str(caught.value.hint)


def test_a_local_ray_that_does_not_start_is_no_wrong_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/dev/null")
    command = "from expo_ray.cluster import ray_session\nwith ray_session('local'): pass"
    result = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True)
    assert "WorkError: a local Ray did not start" in result.stderr


def test_a_cluster_of_another_version_is_told_from_one_that_is_not_there() -> None:
    other = {"ray_version": "1.0.0", "python_version": "3.6.0"}
    with pytest.raises(RuntimeError) as said:
        check_version_info(other, "this process", raise_on_mismatch=True)
    error = ray_start.not_joined("head:6379", said.value)
    assert "another version" in error.message
    assert "1.0.0" in str(error.got)


def test_a_cluster_with_another_token_says_so(ray_cluster: str) -> None:
    import ray

    address = ray.get_runtime_context().gcs_address
    environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "f" * 64}
    command = [EXPO_RAY, "doctor", "--address", address, "--json"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=150)
    assert result.returncode == 2, result.stderr
    error = json.loads(result.stdout)["error"]
    assert "does not take this process" in error["message"]
    assert "RAY_AUTH_TOKEN" in error["hint"]
