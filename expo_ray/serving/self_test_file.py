"""Where the self-test of a reward model is kept: beside the rewards that it speaks for."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from expo_ray.errors import TableError
from expo_ray.json_text import parse_json


def self_test_file(rewards: str | Path) -> Path:
    """Return the side file of a rewards table."""
    path = Path(rewards)
    return path.with_name(f"{path.name.removesuffix('.parquet')}.self_test.json")


def measured_spread(tables: Iterable[str | Path]) -> float | None:
    """Return how far batching alone moves a score in any of these tables; None if none was tested.

    Raises:
        TableError: A side file is malformed.
    """
    spreads = []
    for file in map(self_test_file, tables):
        if not file.exists():
            continue
        try:
            spreads.append(float(parse_json(file.read_bytes())["spread"]))
        except (ValueError, KeyError, TypeError) as error:
            raise TableError(
                "the side file of a rewards table is malformed", where=file, got=error
            ) from error
    return max(spreads, default=None)
