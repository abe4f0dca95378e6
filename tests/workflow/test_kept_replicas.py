"""Replicas that stay: made once, and taken down together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from expo_ray.workflow.kept_replicas import KeptReplicas


def test_what_is_kept_is_made_once_and_goes_with_all_others() -> None:
    kept, events = KeptReplicas(), list[str]()

    @contextmanager
    def replicas(name: str) -> Iterator[str]:
        events.append(f"{name} starts")
        yield name
        events.append(f"{name} ends")

    def use(name: str, *, keep: bool) -> None:
        with kept.use(name, lambda: replicas(name), keep=keep) as used:
            assert used == name

    use("a", keep=False)
    assert events == ["a starts", "a ends"] and len(kept) == 0
    use("a", keep=True)
    use("b", keep=True)
    use("a", keep=False)  # stays: it is there already
    assert events[2:] == ["a starts", "b starts"] and len(kept) == 2
    kept.close()
    kept.close()
    assert events[4:] == ["b ends", "a ends"] and len(kept) == 0
    use("a", keep=True)
    assert events[6:] == ["a starts"]
    kept.close()
