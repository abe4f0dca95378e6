"""Whether a board is still needed where none of its replicas lives."""

from __future__ import annotations

import ray
from ray.exceptions import RayError

from expo_ray.serving.alpha_memory import NAMESPACE, board_name

GONE_SECONDS = 4.0
_STRANGERS_SECONDS = 300.0


def patience_seconds(app_name: str, version: str) -> float | None:
    """Return how long a board without living replicas shall wait before it ends itself.

    A dead replica is replaced, and the next one has to find its alpha here; Serve needs seconds
    to see that one is dead, and says until then that it is running.

    Args:
        app_name: The board's Serve application.
        version: The board's.

    Returns:
        None while its replicas may be on their way.
    """
    from ray import serve  # seconds to import: only here

    try:
        app = serve.status().applications.get(app_name)
        if app is None:
            return GONE_SECONDS
        if app.status != "RUNNING":
            return None
        if _has_other_board(app_name, version):
            return GONE_SECONDS
    except RayError:  # the controller is being restarted
        return None
    states = [deployment.replica_states for deployment in app.deployments.values()]
    # Those that run for so long without coming here serve a version that needs no board.
    return _STRANGERS_SECONDS if any(s.get("RUNNING") for s in states) else None


def _has_other_board(app_name: str, version: str) -> bool:
    mine = board_name(app_name, version)
    names = {
        str(actor["name"])
        for actor in ray.util.list_named_actors(all_namespaces=True)
        if actor["namespace"] == NAMESPACE
    }
    return any(name.rpartition("-")[0] == mine.rpartition("-")[0] for name in names - {mine})
