"""How long a board waits for replicas; live services show the rest in test_live_alpha.py."""

from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray import serve
from ray.exceptions import RayActorError

from expo_ray.serving.alpha_memory import NAMESPACE, board_name
from expo_ray.serving.alpha_watch import GONE_SECONDS, patience_seconds

MINE = ("app", "1")


def patience(
    monkeypatch: pytest.MonkeyPatch,
    *,
    status: str | None = "RUNNING",
    running: int = 0,
    **more: Any,
) -> float | None:
    """Return what Serve and the names of actors lead to."""
    deployments = {"Server": SimpleNamespace(replica_states={"RUNNING": running, "STARTING": 1})}
    app = SimpleNamespace(status=status, deployments=deployments)
    whole = SimpleNamespace(applications={} if status is None else {"app": app})
    boards = [{"name": name, "namespace": NAMESPACE} for name in more.get("boards", ())]
    monkeypatch.setattr(serve, "status", lambda: whole)
    monkeypatch.setattr(ray.util, "list_named_actors", lambda *, all_namespaces: boards)
    return patience_seconds(*MINE)


def test_a_replica_may_be_on_its_way(monkeypatch: pytest.MonkeyPatch) -> None:
    assert patience(monkeypatch, status="UNHEALTHY") is None
    assert patience(monkeypatch) is None
    # Serve says of a dead one for seconds that it runs; loading a large model takes minutes.
    seconds = patience(monkeypatch, running=1)
    assert seconds is not None and seconds > 100
    others = [board_name(*MINE), board_name("app-app", "1"), board_name("other", "2")]
    assert patience(monkeypatch, running=1, boards=others) == seconds


def test_a_service_that_is_gone_or_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    assert patience(monkeypatch, status=None) == GONE_SECONDS
    other = [board_name("app", "2")]
    assert patience(monkeypatch, running=1, boards=other) == GONE_SECONDS
    assert patience(monkeypatch, status="DEPLOYING", boards=other) is None


def test_a_controller_that_is_being_restarted(monkeypatch: pytest.MonkeyPatch) -> None:
    def status() -> Any:
        raise RayActorError

    monkeypatch.setattr(serve, "status", status)
    assert patience_seconds(*MINE) is None
