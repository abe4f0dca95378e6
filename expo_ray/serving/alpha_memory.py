"""What outlives the board and all replicas of a service: its current alpha, in Ray's own store."""

from __future__ import annotations

import json

from expo_ray.ray_internals import forget, recall, remember
from expo_ray.serving.alpha_setting import AlphaSetting, require_setting, setting_fields

NAMESPACE = "expo-ray"


def board_name(app_name: str, version: str) -> str:
    """Return the name of a service's board."""
    return f"expo-ray-alpha-{app_name}-{version}"


class AlphaMemory:
    """Remembers alpha as long as the cluster's head node lives, or its Redis.

    Args:
        name: Of the board: another version of the application remembers for itself.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def recall(self) -> tuple[int, AlphaSetting] | None:
        """Return what was kept last: the generation and its alpha."""
        kept = recall(self._name, namespace=NAMESPACE)
        if kept is None:
            return None
        fields = json.loads(kept)
        return fields["generation"], require_setting(fields["alpha"], fields["alpha_rules"])

    def keep(self, generation: int, alpha: AlphaSetting) -> None:
        """Remember this instead."""
        fields = {"generation": generation, **setting_fields(alpha)}
        remember(self._name, json.dumps(fields), namespace=NAMESPACE)

    def forget(self) -> None:
        """Let a service that starts later begin with the alpha that it is given."""
        forget(self._name, namespace=NAMESPACE)
