"""The object stores that checkpoints are read from and written to; a new one is registered here."""

from __future__ import annotations

from expo_ray.checkpoints.storages.amazon_s3 import S3
from expo_ray.checkpoints.storages.google_storage import GOOGLE
from expo_ray.checkpoints.storages.object_store import ObjectStore

OBJECT_STORES: dict[str, ObjectStore] = {store.scheme: store for store in (S3, GOOGLE)}
"""By the scheme of their addresses."""


def scheme_of(address: str) -> str:
    """Return what stands before `://` in an address; empty for a path or a bare Hub id."""
    scheme, separator, _ = address.partition("://")
    return scheme if separator else ""


def object_addresses(suffix: str = "") -> str:
    """Return how addresses in object stores begin, as messages name them: `s3:// or gs://`."""
    return " or ".join(f"{scheme}://{suffix}" for scheme in OBJECT_STORES)
