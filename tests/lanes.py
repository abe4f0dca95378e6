"""Which tests run beside each other under `pytest -n 2`: two lanes that meet in the middle.

Tests of Ray and Serve wait for processes much of their time; meanwhile a second process of pytest
runs the rest, and whichever is done first takes on what is left of the other's. A file is never
split, so that its fixtures are made once. The handing out is that of pytest-xdist.
"""

from __future__ import annotations

from typing import Any

from xdist.scheduler import LoadScopeScheduling


class Lanes(LoadScopeScheduling):  # type: ignore[misc]
    """Hands out whole files: to the first process from the beginning, to others from the end."""

    def __init__(self, config: Any, log: Any) -> None:
        config.option.loadscopereorder = False
        super().__init__(config, log)

    def _split_scope(self, nodeid: str) -> str:
        return nodeid.partition("::")[0]

    def _assign_work_unit(self, node: Any) -> None:
        if node is not self.nodes[0]:
            self.workqueue.move_to_end(next(reversed(self.workqueue)), last=False)
        super()._assign_work_unit(node)
