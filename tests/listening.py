"""Which processes of a command others than this machine can reach."""

from __future__ import annotations

import contextlib

import psutil


def family(pid: int) -> list[psutil.Process]:
    """Return a process and all that it has started."""
    command = psutil.Process(pid)
    return [command, *command.children(recursive=True)]


def open_to_others(pid: int) -> dict[int, str]:
    """Return the ports on which a command listens beyond the loopback address, and which process.

    Of a Serve replica that is its gRPC port, which Ray opens and which asks for Ray's token.
    """
    found = {}
    for process in family(pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            for one in process.net_connections("inet"):
                is_here = one.laddr.ip.removeprefix("::ffff:") in ("127.0.0.1", "::1")
                if one.status == psutil.CONN_LISTEN and not is_here:
                    found[one.laddr.port] = process.name().split(":expo-ray")[0]
    return found
