"""One rule for every HTTP client: ours are reached directly, others as the environment says.

`HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY`, in small letters too, mean here what they
mean to curl. A service on this machine, and one that expo_ray itself serves, has no proxy.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import (  # type: ignore[attr-defined]
    getproxies_environment,
    proxy_bypass_environment,
)

from expo_ray.errors import ConfigError
from expo_ray.redaction import redacted

if TYPE_CHECKING:
    import httpx

_HERE = ("localhost", "127.0.0.1", "::1", "169.254.169.254", "metadata.google.internal")
"""The last two are where clouds tell a machine about itself."""
_KINDS = ("http", "https", "all", "grpc")
_HINT = "give an http:// proxy, or name the host in NO_PROXY"


@dataclass(frozen=True, kw_only=True, slots=True)
class Proxy:
    """The proxy of one address."""

    url: str
    variable: str
    """The environment variable that names it."""


def is_loopback(host: str | None) -> bool:
    """Say whether only programs on the same machine reach this host."""
    if host is None:
        return False
    with suppress(ValueError):
        return ip_address(host).is_loopback
    return host == "localhost" or host.endswith(".localhost")


def find_proxy(url: str) -> Proxy | None:
    """Return the proxy of an address; None where it is reached directly.

    Raises:
        ConfigError: The environment names one that cannot be used.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    proxies = getproxies_environment()
    kind = parts.scheme if proxies.get(parts.scheme) else "all"
    value = proxies.get(kind)
    if not value or is_loopback(host) or _is_spared(host, parts.netloc, proxies):
        return None
    names = (f"{kind}_proxy", f"{kind}_proxy".upper())
    variable = next((name for name in names if os.environ.get(name)), names[1])
    address = value if "://" in value else f"http://{value}"
    try:
        usable = urlsplit(address).scheme in ("http", "https") and urlsplit(address).hostname
        urlsplit(address).port  # noqa: B018 - a wrong one raises here
    except ValueError:
        usable = None
    if not usable:
        raise ConfigError("this proxy cannot be used", where=variable, got=value, hint=_HINT)
    return Proxy(url=address, variable=variable)


def through_proxy(url: str) -> str:
    """Say through which proxy an address is reached, for the end of a message; empty without."""
    proxy = find_proxy(url)
    return "" if proxy is None else f" (through the proxy {proxy.variable}={redacted(proxy.url)})"


def http_client(url: str, *, is_ours: bool = False, **settings: Any) -> httpx.Client:
    """Return a client for one service.

    Args:
        url: Its address.
        is_ours: It is served by this process: reached directly, wherever it listens.
        settings: Of `httpx.Client`.
    """
    import httpx

    proxy = None if is_ours else find_proxy(url)
    # Certificates are read only where one has to be checked: that takes longer than a request.
    is_checked = "https" in (urlsplit(url).scheme, urlsplit(proxy.url).scheme if proxy else None)
    return httpx.Client(
        # Its own reading of the environment differs in details, and fails on a SOCKS proxy.
        trust_env=False,
        proxy=None if proxy is None else proxy.url,
        verify=httpx.create_ssl_context() if is_checked else False,
        **settings,
    )


def spare_this_machine(*addresses: str) -> None:
    """Tell the libraries beneath (Ray, the Hub's client, boto3), too: no proxy for this machine.

    Changes `NO_PROXY` of this process, which its children inherit, where a proxy is set.

    Args:
        addresses: Further names of it.
    """
    proxies = getproxies_environment()
    spared = [name.strip() for name in proxies.get("no", "").split(",") if name.strip()]
    if "*" in spared or not any(proxies.get(kind) for kind in _KINDS):
        return
    merged = ",".join(dict.fromkeys([*spared, *_HERE, *addresses]))
    os.environ.update({"no_proxy": merged, "NO_PROXY": merged})


def _is_spared(host: str, netloc: str, proxies: dict[str, str]) -> bool:
    address = netloc.rpartition("@")[2]
    if proxy_bypass_environment(host, proxies) or proxy_bypass_environment(address, proxies):
        return True
    with suppress(ValueError):
        here = ip_address(host)
        return any(here in network for network in _networks(proxies.get("no", "")))
    return False


def _networks(names: str) -> list[Any]:
    found = []
    for name in names.split(","):
        with suppress(ValueError):
            found.append(ip_network(name.strip(), strict=False))
    return found
