"""How a command's process ends: at once, but after everything that waits for its end."""

from __future__ import annotations

import subprocess
import sys

COMMAND = """
import atexit, sys
from expo_ray.cli.endings import exit_code_of
from expo_ray.cli.supervisor import supervised

def command():
    atexit.register(lambda: print("handler ran", file=sys.stderr))
    print("x" * {length})
    return {code}

sys.exit(supervised(lambda: exit_code_of(command, []), []))
"""


def run(stdout: str = "", *, length: int = 5, code: int = 0) -> subprocess.CompletedProcess[bytes]:
    script = COMMAND.format(length=length, code=code)
    line = [sys.executable, "-c", script]
    shell = ["bash", "-c", f'set -o pipefail; "$@" {stdout}', "bash", *line]
    return subprocess.run(shell, capture_output=True, check=False, timeout=60)


def test_handlers_run_output_is_whole_and_the_code_arrives() -> None:
    done = run(length=1_000_000, code=2)
    assert done.returncode == 2
    assert len(done.stdout) == 1_000_001
    assert done.stderr == b"handler ran\n"


def test_a_closed_output_is_no_fault() -> None:
    done = run(">&-")
    assert done.returncode == 0
    assert done.stderr == b"handler ran\n"


def test_a_reader_that_leaves_is_told_as_python_tells_it() -> None:
    done = run("| true", length=1_000_000)
    assert b"handler ran" in done.stderr
    assert b"Traceback" not in done.stderr or b"BrokenPipeError" in done.stderr
