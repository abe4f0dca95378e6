"""Private interfaces of Ray Serve and of `ray.serve.llm`, as `ray_internals` has those of Ray.

Each function says why no public way will do; `tests/test_ray_internals.py` tries them.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from expo_ray import haproxy
from expo_ray.ray_internals import recall, remember

_POLL_SECONDS = 0.2
_HAPROXY = "expo-ray-haproxy"
_HAPROXY_SWITCH = "RAY_SERVE_ENABLE_HA_PROXY"
_MAKING_CONFIGS = threading.Lock()


def haproxy_template() -> str | None:
    """Return what Serve makes HAProxy's configuration from; None where it is not wanted.

    Read, not imported: Serve takes its settings from the environment when it is imported.
    """
    import ray

    file = Path(ray.__file__).parent / "serve/_private/haproxy_templates.py"
    is_wanted = os.environ.get(_HAPROXY_SWITCH, "1") == "1"
    if not is_wanted or not file.is_file():
        return None
    return file.read_text(encoding="utf-8").partition('HAPROXY_CONFIG_TEMPLATE = """')[2]


def proxy_settings(folder: Path | None, fallback_port: int) -> dict[str, str]:
    """Return the environment of a Ray whose services are reached through HAProxy.

    Args:
        folder: Made by `haproxy.prepare`; None leaves it to Serve's own proxy.
        fallback_port: For Serve's own proxy, which answers while HAProxy knows no replica.
    """
    if folder is None:
        return {_HAPROXY_SWITCH: "0"}
    return {
        _HAPROXY_SWITCH: "1",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(haproxy.program_of(folder)),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "cfg"),
        # Short, see `haproxy.prepare`.
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "s"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "state"),
        "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(fallback_port),
        # When replicas come or go another HAProxy takes over, and this one ends what it streams:
        # for up to a day, not two minutes. Ports are kept for so long as by default.
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "86400",
        "RAY_SERVE_PORT_QUARANTINE_S": "150",
        # It hears at once that a replica goes; balancers of clouds are given 30 s.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0.5",
    }


def keep_haproxy_folder(folder: Path) -> None:
    """Let every process of the connected Ray know the folder of its HAProxy."""
    remember("folder", str(folder), namespace=_HAPROXY)


def haproxy_folder() -> Path | None:
    """Return the folder of this Ray's HAProxy; None where Ray or a user has set up its proxies."""
    folder = recall("folder", namespace=_HAPROXY)
    return None if folder is None else Path(folder)


# `serve.status` tells neither where it listens nor on which nodes replicas are, and its other calls
# wait for what they have started.


def serve_controller() -> str | None:
    """Return which Serve runs, another one has another controller; None where none does."""
    import ray
    from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE

    try:
        controller = ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
    except ValueError:
        return None
    return str(controller._actor_id.hex())


def _serve_client() -> Any:
    from ray.serve.context import _get_global_client

    return _get_global_client(raise_if_no_controller_running=False)


def serve_endpoint() -> tuple[str, int] | None:
    """Return (host, port) on which this Ray cluster's Serve listens; None before it runs."""
    client = _serve_client()
    if client is None:
        return None
    folder = haproxy_folder()
    host = str(client.http_config.host) if folder is None else haproxy.listens_at(folder)
    return host, int(client.http_config.port)


def serve_details() -> dict[str, Any]:
    """Return all that Serve tells of its applications, nodes included; nothing before it runs."""
    client = _serve_client()
    return {} if client is None else client.get_serve_details()


def look_often() -> None:
    """Have `serve.run` and `serve.delete` look five times a second for what they wait for.

    They look once a second, which no argument or variable changes: every start and every end of an
    application took half a second longer than it did.
    """
    from ray.serve._private import client

    client.CLIENT_POLLING_INTERVAL_S = _POLL_SECONDS


def make_configs_in_turns() -> None:
    """Have threads take turns at making the configurations of Serve's deployments.

    Each makes a module of Ray known to cloudpickle for a moment, and so takes it from under another
    thread that does the same: "not registered for pickle by value". Ray has no lock for it.
    """
    from ray.serve import config

    for owner, name in (
        (config.RequestRouterConfig, "_serialize_request_router_cls"),
        (config.AutoscalingPolicy, "serialize_policy"),
    ):
        method = getattr(owner, name)
        if not hasattr(method, "__wrapped__"):
            setattr(owner, name, _in_turns(method))


def _in_turns(method: Callable[[Any], None]) -> Callable[[Any], None]:
    @functools.wraps(method)
    def one_at_a_time(config: Any) -> None:
        with _MAKING_CONFIGS:
            method(config)

    return one_at_a_time


def start_deleting(app_names: Sequence[str], *, timeout_seconds: float) -> None:
    """Have Serve delete applications; returns when it knows, not when they are gone."""
    import ray

    client = _serve_client()
    if client is not None:
        ray.get(client._controller.delete_apps.remote([*app_names]), timeout=timeout_seconds)


def vllm_client(server: Any) -> Any:
    """Return vLLM's own client (`AsyncLLM`) of a server of `ray.serve.llm`.

    The server itself has no call for token ids.
    """
    return server.engine._engine_client


def skip_model_download(config: Any) -> None:
    """Spare a server of `ray.serve.llm` the task that fetches its model on every node.

    Each of our processes opens its checkpoint itself. The task would find nothing to do, and takes
    a worker that imports vLLM: eight seconds of a core, for which the engine waits.

    Args:
        config: The `LLMConfig`, in the replica's process.
    """
    config.get_or_create_callback().ctx.run_init_node = False


def name_vllm_model(server: Any, *, name: str, fingerprint: str | None) -> None:
    """Set the model's name and fingerprint in the responses of a server of `ray.serve.llm`.

    Its settings are read once, at the start; weights of ours change later.
    """
    engine = server.engine
    engine._oai_models.base_model_paths[0].name = name
    for serving in (engine._oai_serving_chat, engine._oai_serving_completion):
        serving.system_fingerprint = fingerprint
