"""Google Cloud Storage. Its client looks for a proxy by itself."""

from __future__ import annotations

from typing import Any

from expo_ray.checkpoints.storages.object_store import Connection, ObjectStore


def _connect(connection: Connection) -> Any:
    import pyarrow.fs as fs

    return fs.GcsFileSystem(anonymous=bool(connection.endpoint), **connection.place)


GOOGLE = ObjectStore(
    scheme="gs",
    endpoint_variables=("STORAGE_EMULATOR_HOST",),
    # Google's own clients take an emulator without a scheme for a plain one.
    endpoint_scheme="http",
    has_folder_objects=True,
    connect=_connect,
    upload_bytes=8 * 1024**2,
)
