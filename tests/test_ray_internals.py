"""Every private interface of Ray does what its caller counts on, in the Ray that is installed."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import pytest
import ray
from packaging.requirements import Requirement
from packaging.version import Version
from ray import serve

from expo_ray import ray_internals, serve_internals
from expo_ray.serving.launching import ensure_serve
from tests.conftest import ROOT
from tests.head_node import free_port
from tests.serving.vllm_here import require_vllm

NAMESPACE = "tests-of-internals"


def test_ray_is_bounded_by_what_was_read() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    [core] = [r for r in map(Requirement, project["dependencies"]) if r.name == "ray"]
    read = Version(version("ray"))
    assert core.specifier.contains(read)
    assert not core.specifier.contains(f"{read.major}.{read.minor + 1}.0")


def run(code: str, **environment: str) -> str:
    """Run code in a process that has not imported Ray yet."""
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_defaults_reach_ray_and_give_way_to_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    constants = {
        "RAY_SERVE_PROXY_USE_GRPC": "RAY_SERVE_PROXY_USE_GRPC",
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH",
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "PROXY_READY_CHECK_TIMEOUT_S",
    }
    code = f"""
import os
for name in {[*constants]}:
    os.environ.pop(name, None)
from expo_ray import ray_internals
ray_internals.set_defaults(proxy_callback="a.b")
from ray.serve._private import constants
print(*(getattr(constants, name) for name in {[*constants.values()]}))
"""
    assert run(code) == "True a.b 60.0"
    for name in (*constants, "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"):
        monkeypatch.setenv(name, "the user's")
    ray_internals.set_defaults(proxy_callback="a.b")
    assert {os.environ[name] for name in constants} == {"the user's"}


def test_on_loopback_ray_takes_this_machine_for_127_0_0_1() -> None:
    code = """
import os, ray
from expo_ray import ray_internals
before = os.environ.get("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER")
with ray_internals.on_loopback(children=True):
    print(ray.util.get_node_ip_address(), os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"])
assert os.environ.get("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER") == before
"""
    assert run(code) == "127.0.0.1 0"


def test_the_agent_of_a_ray_takes_any_port_for_a_while() -> None:
    code = """
from ray._private import parameter
from expo_ray import ray_internals
fixed = parameter.RayParams().dashboard_agent_listen_port
with ray_internals.agent_on_any_port():
    free = parameter.RayParams(num_cpus=2)
print(fixed, free.dashboard_agent_listen_port, free.num_cpus)
print(parameter.RayParams().dashboard_agent_listen_port)
"""
    assert run(code).split() == ["52365", "0", "2", "52365"]


@pytest.mark.parametrize(
    ("environment", "uploads"),
    [
        ({}, False),
        ({"RAY_ENABLE_UV_RUN_RUNTIME_ENV": "1"}, True),
        ({"RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}, False),
        ({"RAY_JOB_CONFIG_JSON_ENV_VAR": '{"runtime_env": {"working_dir": "gcs://x"}}'}, True),
    ],
)
def test_under_uv_a_folder_is_sent_only_where_somebody_asks(
    environment: dict[str, str], uploads: bool
) -> None:
    code = """
from ray._private import ray_constants
from expo_ray import ray_internals
assert ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV in (True, False)
with ray_internals.without_uv_upload():
    print(ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV)
"""
    assert run(code, **environment) == str(uploads)


def test_a_submitted_job_is_known_by_the_variable_that_ray_gives_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from ray._private.worker import RAY_JOB_CONFIG_JSON_ENV_VAR

    monkeypatch.delenv(RAY_JOB_CONFIG_JSON_ENV_VAR, raising=False)
    assert not ray_internals.is_submitted_job()
    monkeypatch.setenv(RAY_JOB_CONFIG_JSON_ENV_VAR, "{}")
    assert ray_internals.is_submitted_job()


def test_no_folder_of_the_driver_is_sent() -> None:
    config = ray_internals.own_path_only()
    config._py_driver_sys_path.append("/a/folder")  # as `ray.init` does
    assert list(config._get_proto_job_config().py_driver_sys_path) == []


def test_a_cluster_is_found_without_joining_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with ray_internals.on_loopback():
        assert ray_internals.find_cluster("127.0.0.1:7") == "127.0.0.1:7"
        assert ray_internals.find_cluster("local") == ""
        monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:8")
        assert ray_internals.find_cluster("auto") == "127.0.0.1:8"


def test_a_client_sends_the_token_that_is_there(tmp_path: Path) -> None:
    code = """
import os
from expo_ray.ray_internals import send_token
os.environ.pop("RAY_AUTH_MODE", None)
send_token()
print(os.environ.get("RAY_AUTH_MODE"))
"""
    home = {"HOME": str(tmp_path), "RAY_AUTH_TOKEN": "", "RAY_AUTH_TOKEN_PATH": ""}
    assert run(code, **home) == "None"
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("a" * 64)
    assert run(code, **home) == "token"


def test_a_client_is_told_from_a_driver(ray_cluster: str) -> None:
    assert not ray_internals.is_client()
    code = f"""
import ray
from ray.util.client.server.server import serve
from expo_ray.ray_internals import is_client

# Not in a thread of the server: what is forked there, while gRPC works, may hang.
context = ray.init("local", num_cpus=1, include_dashboard=False, logging_level="ERROR")

def start(job_config=None, **_):
    return context

server = serve("127.0.0.1", {(port := free_port())}, ray_connect_handler=start)
ray.init("ray://127.0.0.1:{port}", logging_level="ERROR")
print(is_client())
ray.shutdown()
print(is_client())
server.stop(0)
"""
    assert run(code, RAY_AUTH_MODE="disabled").split() == ["True", "False"]


def test_files_of_the_session_lie_where_they_were_asked_for(ray_cluster: str) -> None:
    node = ray._private.worker._global_node
    folder = Path(node.get_temp_dir_path())
    assert ray_internals.folder_option(folder) == {"_temp_dir": str(folder)}
    assert folder in ray_internals.logs_folder().parents
    assert list(ray_internals.logs_folder().glob("raylet*"))
    socket = Path(node.plasma_store_socket_name)
    longest = ray_internals.longest_socket(folder)
    assert len(str(socket)) <= len(str(longest))
    assert len(socket.parts) == len(longest.parts)


def test_only_the_process_that_started_ray_is_its_head(ray_cluster: str) -> None:
    assert ray_internals.is_head()
    assert ray.get(ray.remote(num_cpus=0)(ray_internals.is_head).remote(), timeout=60) is False


def test_jobs_and_actors_are_told_with_what_they_hold(ray_cluster: str) -> None:
    job_id = ray.get_runtime_context().get_job_id()
    [ours] = [job for job in ray_internals.job_table() if str(job["JobID"]) == job_id]
    assert not ours["IsDead"]
    assert ours["DriverPid"] == os.getpid()
    assert ours["DriverIPAddress"] == "127.0.0.1"

    class Holder:
        def ready(self) -> None:
            pass

    holder = ray.remote(Holder).options(name="a-holder", num_cpus=0.5).remote()
    try:
        ray.get(holder.ready.remote(), timeout=60)
        [row] = [actor for actor in ray_internals.living_actors() if actor.name == "a-holder"]
        assert row.class_name.endswith("Holder")
        assert row.job_id.hex() == job_id
        assert dict(row.required_resources) == {"CPU": 0.5}
    finally:
        ray.kill(holder)
    wait_until(lambda: "a-holder" not in {a.name for a in ray_internals.living_actors()})


def test_an_actor_that_starts_has_a_process_only_where_it_has_its_room(ray_cluster: str) -> None:
    class Slow:
        def __init__(self) -> None:
            time.sleep(60)

    slow = ray.remote(Slow).options(name="slow", num_cpus=0).remote()
    homeless = ray.remote(Slow).options(name="homeless", num_cpus=1000).remote()

    def placed() -> dict[str, bool]:
        return {actor.name: actor.pid > 0 for actor in ray_internals.starting_actors()}

    try:
        wait_until(lambda: placed() == {"slow": True, "homeless": False})
    finally:
        ray.kill(slow)
        ray.kill(homeless)


@pytest.fixture
def autoscaled(ray_cluster: str) -> Iterator[None]:
    """The session's cluster says of itself what an autoscaled one would."""
    from ray._raylet import GCS_AUTOSCALER_CLUSTER_CONFIG_KEY, GCS_AUTOSCALER_STATE_NAMESPACE
    from ray.core.generated.autoscaler_pb2 import ClusterConfig

    config = ClusterConfig()
    config.node_group_configs.add(name="workers", max_count=7)
    config.node_group_configs.add(name="more", max_count=-1)
    client = ray._private.worker.global_worker.gcs_client
    client.report_cluster_config(config.SerializeToString())
    try:
        yield
    finally:
        key, space = GCS_AUTOSCALER_CLUSTER_CONFIG_KEY, GCS_AUTOSCALER_STATE_NAMESPACE
        ray_internals.forget(key, namespace=space)


@pytest.mark.usefixtures("autoscaled")
def test_groups_of_an_autoscaler_are_told_with_their_limits() -> None:
    assert sorted(ray_internals.node_group_limits()) == [-1, 7]


def test_a_fixed_cluster_has_no_groups_and_its_monitor_only_watches(ray_cluster: str) -> None:
    assert ray_internals.node_group_limits() == []
    wait_until(ray_internals.autoscaled_node_types)
    assert all(name.startswith("node_") for name in ray_internals.autoscaled_node_types())


def test_notes_are_kept_replaced_and_removed(ray_cluster: str) -> None:
    assert ray_internals.recall("note", namespace=NAMESPACE) is None
    for text in ("one", "zwei \u2713"):
        ray_internals.remember("note", text, namespace=NAMESPACE)
        assert ray_internals.recall("note", namespace=NAMESPACE) == text
    assert ray_internals.recall("note", namespace="another") is None
    ray_internals.forget("note", namespace=NAMESPACE)
    assert ray_internals.recall("note", namespace=NAMESPACE) is None


class Echo:
    """An application of one replica."""


def test_serve_tells_where_it_is_and_deletes_without_waiting(ray_cluster: str) -> None:
    url = ensure_serve()
    host, port = serve_internals.serve_endpoint() or ("", 0)
    assert url == f"http://{host}:{port}"
    controller = serve_internals.serve_controller()
    assert controller is not None and controller == serve_internals.serve_controller()
    options = {"num_cpus": 0}
    app = serve.deployment(Echo).options(ray_actor_options=options).bind()  # type: ignore[attr-defined]
    serve.run(app, name="of-internals", route_prefix=None)
    [deployment] = serve_internals.serve_details()["applications"]["of-internals"][
        "deployments"
    ].values()
    [replica] = deployment["replicas"]
    assert replica["node_id"] == ray.get_runtime_context().get_node_id()
    serve_internals.start_deleting(["of-internals"], timeout_seconds=30)
    wait_until(lambda: "of-internals" not in serve.status().applications)


def test_serve_is_asked_often_whether_it_is_done(
    ray_cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.serve._private import client

    class Clock:
        time = time.time

        @staticmethod
        def sleep(seconds: float) -> None:
            slept.append(seconds)
            time.sleep(seconds)

    slept: list[float] = []
    monkeypatch.setattr(client, "time", Clock)
    ensure_serve()
    options = {"num_cpus": 0}
    app = serve.deployment(Echo).options(ray_actor_options=options).bind()  # type: ignore[attr-defined]
    serve.run(app, name="asked", route_prefix=None)
    serve.delete("asked")
    assert slept and max(slept) <= 0.2


def test_ray_data_keeps_quiet_for_a_while() -> None:
    from ray.data._internal.execution import streaming_executor

    log = streaming_executor.logger
    before = log.getEffectiveLevel()
    with ray_internals.quiet_data():
        assert log.getEffectiveLevel() == logging.WARNING
    assert log.getEffectiveLevel() == before < logging.WARNING


def test_a_server_of_ray_serve_llm_has_the_parts_that_are_taken() -> None:
    """Quick: that they stand there. What they do, `tests/serving/test_vllm.py` shows."""
    require_vllm()
    from importlib.util import find_spec

    spec = find_spec("ray.llm")
    assert spec is not None and spec.submodule_search_locations
    folder = Path(spec.submodule_search_locations[0]) / "_internal/serve/engines/vllm"
    text = (folder / "vllm_engine.py").read_text(encoding="utf-8")
    for name in ("_engine_client", "_oai_models", "_oai_serving_chat", "_oai_serving_completion"):
        assert f"self.{name} = " in text, name


def wait_until(is_so: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, is_so
        time.sleep(0.2)


def test_what_is_uploaded_is_known_before(tmp_path: Path) -> None:
    for name in ("recipe.yaml", "runs/a", ".env", "big"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("text")
    (tmp_path / ".gitignore").write_text("big\n")
    found = ray_internals.uploaded_files(tmp_path, ["/runs/", ".?*"], most_bytes=100)
    assert found == {"recipe.yaml": 4}
    assert len(ray_internals.uploaded_files(tmp_path, [], most_bytes=3)) == 1


def test_threads_make_configurations_in_turns() -> None:
    serve_internals.make_configs_in_turns()
    from ray.serve import config

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(lambda _: config.RequestRouterConfig(), range(200)))
            list(threads.map(lambda _: config.AutoscalingConfig(), range(200)))
    finally:
        sys.setswitchinterval(interval)
