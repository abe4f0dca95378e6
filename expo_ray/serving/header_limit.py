"""A limit on connections that do not say what they want, in Serve's own HTTP servers.

These, uvicorn's, wait without end for the first byte of a connection and for the end of a header:
whoever opens many and sends little holds them all. Serve calls `limit_headers` when its proxy or a
replica starts one, because `cluster` names it in the environment. HAProxy has the same limit from
`expo_ray.haproxy`, and bodies that of `front_door`.
"""

from __future__ import annotations

from typing import Any

from expo_ray.haproxy import HEADER_SECONDS


def limit_headers() -> list[Any]:
    """Set the limit in this process; returns no middlewares, which Serve asks for."""
    from uvicorn.protocols.http.h11_impl import H11Protocol
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

    for protocol in (H11Protocol, HttpToolsProtocol):
        close_without_header(protocol, HEADER_SECONDS)
    return []


def close_without_header(protocol: Any, seconds: float) -> None:
    """Have a protocol of uvicorn close a connection that sends no whole header for so long.

    The time runs from the first byte of a header, of the first one from the connection. Between
    requests uvicorn's own limit of idle connections holds.
    """
    made, received, lost = (
        protocol.connection_made,
        protocol.data_received,
        protocol.connection_lost,
    )

    def waits(self: Any) -> bool:
        return self.cycle is None or bool(self.cycle.response_complete)

    def disarm(self: Any) -> None:
        timer, self.header_timer = getattr(self, "header_timer", None), None
        if timer is not None:
            timer.cancel()

    def arm(self: Any) -> None:
        if getattr(self, "header_timer", None) is None:
            self.header_timer = self.loop.call_later(seconds, close, self)

    def close(self: Any) -> None:
        self.header_timer = None
        if waits(self):
            self.transport.close()

    def connection_made(self: Any, transport: Any) -> None:
        made(self, transport)
        arm(self)

    def data_received(self: Any, data: bytes) -> None:
        received(self, data)
        (arm if waits(self) else disarm)(self)

    def connection_lost(self: Any, error: Exception | None) -> None:
        disarm(self)
        lost(self, error)

    protocol.connection_made = connection_made
    protocol.data_received = data_received
    protocol.connection_lost = connection_lost
