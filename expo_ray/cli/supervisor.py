"""A small parent of every command, which tells how it ended where the command itself cannot.

Ray ends a driver at once when its cluster is lost, the kernel when memory is: no code of the
command runs then. The parent passes signals on, and takes the command with it when it is killed.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence

from expo_ray.cli.endings import AGAIN
from expo_ray.cli.signals import ENDING_SIGNALS
from expo_ray.cli.told import Told
from expo_ray.errors import WorkError


def supervised(command: Callable[[], int], arguments: Sequence[str]) -> int:
    """Run a command in a child process; return the exit code of the contract.

    Args:
        command: Tells its own end, as `exit_code_of` does, and returns the exit code.
        arguments: What stands on the command line.
    """
    # Held back, not handled: nothing can get lost between here and whoever waits for it.
    waited_for = {*ENDING_SIGNALS, signal.SIGCHLD}
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.pthread_sigmask(signal.SIG_BLOCK, waited_for)
    from_child, to_parent = os.pipe()
    alive, parent_alive = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(parent_alive)
        _die_with_parent(alive)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        Told.to_supervisor = to_parent
        # A thread that imports keeps the interpreter for a whole interval, and those that compute
        # beside it want it hundreds of times.
        sys.setswitchinterval(0.0005)
        ended: list[int] = []
        atexit.register(_leave, ended)  # the first in is the last out
        code = command()
        ended.append(code)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING_SIGNALS)
        return code
    os.close(to_parent)
    status, passed_on = _wait(child, waited_for)
    told = _read(from_child)
    ended = [int(line.split()[1]) for line in told if line.startswith("ended")]
    if ended:
        return ended[-1]
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) in passed_on:
        return 128 + os.WTERMSIG(status)
    return _tell_lost(status, arguments, answered="answered" in told)


def _leave(ended: list[int]) -> None:
    """Leave a process in which everything has ended; to take torch apart takes over a second."""
    if not ended:
        return
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:  # closed before the command began
                stream.flush()
    except (OSError, ValueError):
        return  # the interpreter tells it in its way
    os._exit(ended[0])


def _die_with_parent(alive: int) -> None:
    def wait() -> None:
        os.read(alive, 1)  # the other end is the parent's alone, and never written to
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait, name="parent", daemon=True).start()


def _wait(child: int, signals: set[signal.Signals]) -> tuple[int, set[int]]:
    """Pass signals on until a child has ended; return its status and what was passed on."""
    passed_on: set[int] = set()
    while True:
        number = signal.sigwait(signals)
        if number == signal.SIGCHLD:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                return status, passed_on
        else:
            os.kill(child, number)
            passed_on.add(number)


def _read(from_child: int) -> list[str]:
    os.set_blocking(from_child, False)  # a process that the command left may hold the other end
    with contextlib.suppress(BlockingIOError):
        return os.read(from_child, 65536).decode().splitlines()
    return []


def _tell_lost(status: int, arguments: Sequence[str], *, answered: bool) -> int:
    from expo_ray.cli.session import print_error

    error = _lost(status)
    print_error(error, json_output=False)
    if "--json" in arguments and not answered:
        print_error(error, json_output=True)
    return error.exit_code


def _lost(status: int) -> WorkError:
    """Return what can be said of a command that ended without a word."""
    if os.WIFEXITED(status) or os.WTERMSIG(status) == signal.SIGABRT:
        # Ray leaves with status 1 when the node is lost, and aborts when the head stays away.
        return WorkError(
            "the Ray cluster was lost: Ray ends a command whose head or node is gone",
            got=_in_words(status),
            hint=f"see that the cluster is up again, then {AGAIN}",
        )
    killed = os.WTERMSIG(status) == signal.SIGKILL
    return WorkError(
        "the command was killed" if killed else "the command crashed",
        got=_in_words(status),
        hint=f"{'the kernel does so when memory runs out (see dmesg); ' if killed else ''}{AGAIN}",
    )


def _in_words(status: int) -> str:
    if os.WIFEXITED(status):
        return f"exit status {os.WEXITSTATUS(status)}"
    return signal.Signals(os.WTERMSIG(status)).name
