"""S3, and the many servers that speak its protocol."""

from __future__ import annotations

import os
from typing import Any

from expo_ray.checkpoints.storages.object_store import (
    CONNECT_TIMEOUT_SECONDS,
    REQUEST_TIMEOUT_SECONDS,
    Connection,
    ObjectStore,
)


def _region() -> str | None:
    """Return the region that the environment sets; a server of its own needs some name."""
    found = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    return found or ("us-east-1" if S3.endpoint_url() else None)


def _connect(connection: Connection) -> Any:
    import pyarrow.fs as fs

    return fs.S3FileSystem(
        region=connection.region,
        connect_timeout=CONNECT_TIMEOUT_SECONDS,
        request_timeout=REQUEST_TIMEOUT_SECONDS,
        # Parts that wait in the background would have no bound on their memory.
        background_writes=False,
        proxy_options=connection.proxy,
        **connection.place,
    )


S3 = ObjectStore(
    scheme="s3",
    endpoint_variables=("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
    address="https://s3.amazonaws.com",
    region=_region,
    connect=_connect,
)
