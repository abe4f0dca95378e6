"""What tells one object store from another: a record per store, registered in `object_stores`."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from expo_ray.proxies import find_proxy, through_proxy

CONNECT_TIMEOUT_SECONDS = 10
REQUEST_TIMEOUT_SECONDS = 60


@dataclass(frozen=True, kw_only=True, slots=True)
class Connection:
    """What the environment says about a store; two that are equal share a file system."""

    endpoint: str | None
    """URL of a server in place of the provider's."""
    region: str | None
    proxy: str | None
    """URL of the proxy, for clients that find none by themselves."""

    @property
    def place(self) -> dict[str, str]:
        """The endpoint, as pyarrow takes it; empty for the provider's."""
        parts = urlsplit(self.endpoint or "")
        return {"endpoint_override": parts.netloc, "scheme": parts.scheme} if self.endpoint else {}


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectStore:
    """A kind of store, reached through pyarrow."""

    scheme: str
    """Of its addresses, without `://`."""
    endpoint_variables: tuple[str, ...]
    """Environment variables that name another server, the first that is set counts."""
    connect: Callable[[Connection], Any]
    """Returns the pyarrow file system."""
    upload_bytes: int = 12 * 1024**2
    """Memory that pyarrow takes for every upload at a time; on S3 it gathers parts of 10 MiB."""
    endpoint_scheme: str = "https"
    """Of an endpoint that names none."""
    address: str | None = None
    """The provider's URL, where pyarrow's client does not look for a proxy by itself."""
    region: Callable[[], str | None] = lambda: None
    """What the environment sets."""
    has_folder_objects: bool = False
    """Whether removing a prefix as a whole asks for an object of its own that nobody made."""

    def endpoint_url(self) -> str | None:
        """Return the URL that the environment sets in place of the provider's."""
        found = (os.environ.get(name) for name in self.endpoint_variables)
        endpoint = next((value for value in found if value), None)
        if endpoint is None or "://" in endpoint:
            return endpoint
        return f"{self.endpoint_scheme}://{endpoint}"

    def filesystem(self) -> Any:
        """Return the pyarrow file system, as the environment sets it up."""
        endpoint = self.endpoint_url()
        proxy = find_proxy(endpoint or self.address) if self.address else None
        connection = Connection(
            endpoint=endpoint, region=self.region(), proxy=proxy.url if proxy else None
        )
        return _connect(self, connection, os.getpid())

    def through_proxy(self) -> str:
        """Say through which proxy it is reached, for the end of a message; empty without."""
        return through_proxy(self.endpoint_url() or self.address) if self.address else ""


@lru_cache(maxsize=8)
def _connect(store: ObjectStore, connection: Connection, process: int) -> Any:
    # The process is a key because a connection does not survive a fork.
    return store.connect(connection)
