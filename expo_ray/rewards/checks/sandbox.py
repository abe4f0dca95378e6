"""Where a stranger's program runs: without network, without files of ours, with limits, once.

Namespaces of Linux, entered by the tools of util-linux: no network, processes of its own, a root
folder in memory that shows the system's programs read-only and nothing else of the machine. Who is
root becomes nobody there; who is not is root of that namespace alone. No privilege is left when the
program begins. It is no defence against faults of the kernel itself. Where this cannot be had
nothing runs.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

MAX_SECONDS = 30.0
"""For one run of a program, by the clock: three times its 10 seconds of a processor, so that others
who work beside it do not end it."""
_MAX_OUTPUT_BYTES = 2**20
_TOOLS = ("unshare", "mount", "chroot", "setpriv", "prlimit", "sh")
_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
_NAMESPACES = ("--net", "--ipc", "--uts", "--mount", "--pid")
_OWN_USERS = ("--user", "--map-root-user")
# Root has no limit on processes: it becomes a user of no name, another one in every sandbox, since
# the processes of one user are counted together.
_FIRST_USER, _NUM_USERS = 20_000, 40_000
_MAX_PROCESSES = 16
_PLACES = ("/usr", "/bin", "/lib", "/lib64", "/etc/ld.so.cache", "/dev/null", "/dev/urandom")
LIMITS = ("--core=0", "--cpu=10", "--as=1073741824", "--fsize=16777216")
_NO_RIGHTS = ("--no-new-privs", "--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all")
_ENTER = f"""
set -e
umask 022
work=$1 python=$2 script=$3 processes=$4 user=$5 root=$1/root; shift 5
mkdir "$root"
mount -t tmpfs -o size=64m,mode=755,nosuid,nodev none "$root"
for place in "$@"; do
  if [ -L "$place" ]; then
    mkdir -p "$root${{place%/*}}"; cp -P "$place" "$root$place"
  elif [ -d "$place" ]; then
    mkdir -p "$root$place"; mount --rbind "$place" "$root$place"
    while read -r _ _ _ _ point _; do
      case "$point" in
        "$root$place"|"$root$place"/*) mount -o remount,bind,ro,nosuid,nodev "$point";;
      esac
    done < /proc/self/mountinfo
  elif [ -e "$place" ]; then
    mkdir -p "$root${{place%/*}}"; touch "$root$place"; mount --bind "$place" "$root$place"
  fi
done
mkdir -m 1777 "$root/tmp"
cp "$work"/files/* "$root/tmp/"
touch "$work/entered"
exec chroot "$root" prlimit {" ".join(LIMITS)} --nproc="$processes" \\
  setpriv $user {" ".join(_NO_RIGHTS)} \\
  sh -c 'cd /tmp; "$1" -I "$2"; exit $?' sh "$python" "$script"
"""


class NoSandboxError(Exception):
    """No sandbox can be had here; the text is why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ran:
    """How a program ended."""

    exit_code: int | None
    """None where it did not end in time."""
    output: str
    """What it wrote to its standard output, the beginning of it."""


def run_sandboxed(files: Mapping[str, str], script: str, *, standard_input: str = "") -> Ran:
    """Run a Python script in a throw-away sandbox, with the standard library alone.

    Args:
        files: Texts by name, in the folder that the script finds itself in.
        script: The name of the one that is run.
        standard_input: What it can read.

    Raises:
        NoSandboxError: None can be had; the program did not run.
    """
    missing = [tool for tool in _TOOLS if shutil.which(tool, path=_PATH) is None]
    if missing or sys.platform != "linux":
        raise NoSandboxError(f"no {', '.join(missing)}" if missing else f"{sys.platform}, no Linux")
    with tempfile.TemporaryDirectory(prefix="expo-ray-sandbox-") as folder:
        work = Path(folder)
        (work / "files").mkdir()
        for name, text in files.items():
            (work / "files" / name).write_bytes(text.encode(errors="replace"))
        (work / "input").write_bytes(standard_input.encode(errors="replace"))
        python = str(Path(sys.executable).resolve())
        is_root = os.geteuid() == 0
        command = ["unshare", *(() if is_root else _OWN_USERS), *_NAMESPACES, "--fork"]
        command += ["--kill-child", "sh", "-c", _ENTER, "sh", folder, python, script]
        user = _FIRST_USER + secrets.randbelow(_NUM_USERS)
        becomes = f"--reuid={user} --regid={user} --clear-groups" if is_root else ""
        command += [str(_MAX_PROCESSES), becomes]
        command += [*_PLACES, str(Path(sys.base_prefix).resolve())]
        exit_code = _run(command, work)
        if not (work / "entered").exists():
            told = (work / "errors").read_bytes()[-300:].decode(errors="replace").strip()
            raise NoSandboxError(told or "it could not be entered")
        with (work / "output").open("rb") as output:
            text = output.read(_MAX_OUTPUT_BYTES).decode(errors="replace")
        return Ran(exit_code=exit_code, output=text)


def _run(command: list[str], work: Path) -> int | None:
    with (
        (work / "input").open("rb") as given,
        (work / "output").open("wb") as output,
        (work / "errors").open("wb") as errors,
    ):
        process = subprocess.Popen(
            command,
            stdin=given,
            stdout=output,
            stderr=errors,
            env={"PATH": _PATH, "HOME": "/tmp", "LANG": "C.UTF-8"},  # noqa: S108 - its own
            start_new_session=True,
        )
        try:
            return process.wait(MAX_SECONDS)
        except subprocess.TimeoutExpired:
            return None
        finally:
            # All of the group at once: a child that outlived `unshare` would go on.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
