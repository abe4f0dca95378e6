"""Signals and sudden ends: none is lost, whatever a command does, and each is told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from benchmarks.signals import trial_codes
from expo_ray.cli.endings import exit_code_of

ENDINGS = [(signal.SIGINT, 130), (signal.SIGTERM, 143)]
# An entry point that does something else instead of the command.
ENTRY = """
import os, signal, sys, time
from expo_ray.cli import main, tree
from expo_ray.cli.session import Session

def command(arguments):
{body}

tree.call = command
main.main()
"""


def interruptible() -> None:
    """Whoever runs the tests in the background ignores interrupts, and so would a child."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def started(body: str, *flags: str) -> subprocess.Popen[str]:
    script = ENTRY.format(body="\n".join(f"    {line}" for line in body.strip().splitlines()))
    return subprocess.Popen(
        [sys.executable, "-c", script, *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=interruptible,
    )


@pytest.mark.parametrize(("number", "code"), ENDINGS)
def test_no_signal_is_lost(number: int, code: int) -> None:
    assert trial_codes(number, 49) == {str(code): 49}


@pytest.mark.parametrize(("number", "code"), ENDINGS)
def test_a_second_signal_does_not_break_the_cleanup(number: int, code: int) -> None:
    body = """
try:
    print("works", flush=True)
    time.sleep(60)
finally:
    print("cleans", flush=True)
    time.sleep(1)
    print("clean", flush=True)
"""
    with started(body) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "works\n"
        process.send_signal(number)
        assert process.stdout.readline() == "cleans\n"
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)
        stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (code, "clean\n"), stderr
    assert stderr.endswith("; run the same command again to continue\n")


def test_a_cleanup_that_hangs_is_ended_by_a_later_signal() -> None:
    body = f"""
from expo_ray.cli import signals
signals._PATIENCE_SECONDS = 0.5
try:
    os.kill(os.getpid(), {int(signal.SIGTERM)})
    time.sleep(60)
finally:
    print("hangs", flush=True)
    time.sleep(60)
"""
    with started(body, "--json") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "hangs\n"
        time.sleep(0.6)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=50)
    assert process.returncode == 143, stderr
    assert json.loads(stdout)["error"]["message"] == "stopped by SIGTERM"


def test_a_forked_child_has_signals_of_its_own() -> None:
    def command() -> int:
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
        os.kill(child, signal.SIGTERM)
        status = os.waitpid(child, 0)[1]
        time.sleep(0.3)
        return os.waitstatus_to_exitcode(status)

    before = signal.getsignal(signal.SIGTERM)
    assert exit_code_of(command, []) == -signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before
    assert signal.set_wakeup_fd(-1) == -1


@pytest.mark.parametrize(
    ("body", "message", "got"),
    [
        ("os._exit(1)", "the Ray cluster was lost", "exit status 1"),
        ("os.abort()", "the Ray cluster was lost", "SIGABRT"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "the command was killed", "SIGKILL"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "the command crashed", "SIGSEGV"),
    ],
)
def test_whatever_ends_a_command_is_told(body: str, message: str, got: str) -> None:
    with started(body, "--json") as process:
        stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    (line,) = stdout.splitlines()
    error = json.loads(line)["error"]
    assert error["message"].startswith(message)
    assert error["got"] == got
    assert error["hint"].endswith("run the same command again to continue")
    assert error["message"] in stderr


def test_an_answer_stays_the_only_object() -> None:
    body = "\n".join(
        ["with Session(json_output=True) as session:", "    session.emit({'a': 1})", "os._exit(1)"]
    )
    with started(body, "--json") as process:
        stdout, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert [json.loads(line) for line in stdout.splitlines()] == [{"schema_version": 1, "a": 1}]


def test_a_killed_command_leaves_no_process() -> None:
    with started("print(os.getpid(), flush=True)\ntime.sleep(60)") as process:
        assert process.stdout is not None
        worker = int(process.stdout.readline())
        assert psutil.Process(worker).ppid() == process.pid
        process.kill()
        process.communicate(timeout=60)
    with pytest.raises(psutil.NoSuchProcess):
        psutil.Process(worker).wait(timeout=30)
        psutil.Process(worker)


def test_the_hint_fits_the_command() -> None:
    def hint(*arguments: str) -> str:
        with started("print('works', flush=True)\ntime.sleep(60)", *arguments) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "works\n"
            process.send_signal(signal.SIGTERM)
            stdout, stderr = process.communicate(timeout=60)
        assert (process.returncode, stdout) == (143, "")
        return stderr

    assert hint("serve", "m") == "stopped by SIGTERM\n"
    assert "a job that was handed over goes on" in hint("submit", "r.yaml")
    assert hint("run", "r.yaml").endswith("; run the same command again to continue\n")
