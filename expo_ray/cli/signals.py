"""SIGINT and SIGTERM as exceptions of the main thread that cannot get lost.

A handler of Python runs between two bytecodes: not while a system call waits that the signal came
just before, and what it raises is dropped in finalizers and changed by libraries. So a thread hears
of the signal from the C-level handler, which writes to a socket at once, and has the handler run
again until the main thread is on its way out. What a command does then is not decided here.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, ClassVar

ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Sent again by a signal of our own: libraries put handlers in place of ours, and by itself this
# one does nothing to a process.
_REMINDER = signal.SIGURG
_AGAIN_SECONDS = 0.1
_PATIENCE_SECONDS = 10.0
_LEAVING = (KeyboardInterrupt, SystemExit)


class SignalWatch:
    """Turns the first SIGINT or SIGTERM into KeyboardInterrupt or SystemExit, for a `with` block.

    Whatever comes while the main thread cleans up does not interrupt it; another signal ten
    seconds after the first calls `on_second` from another thread, which may end the process.
    Signals are held back from the beginning of the block until `listen` is called, and may raise
    from there until `leave`. In other threads than the main one nothing is changed.

    Args:
        on_second: Takes the number of the first signal.
    """

    def __init__(self, on_second: Callable[[int], None]) -> None:
        self.received: int | None = None
        self._on_second = on_second
        self._left = False
        self._caught_up = threading.Event()
        self._main = threading.main_thread().ident or 0
        self._restored: dict[int, Any] = {}

    def __enter__(self) -> SignalWatch:
        if threading.current_thread() is not threading.main_thread():
            return self
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING_SIGNALS)
        self._heard, self._wakeup = socket.socketpair()
        self._wakeup.setblocking(False)
        self._wakeup_before = signal.set_wakeup_fd(self._wakeup.fileno(), warn_on_full_buffer=False)
        for number in (*ENDING_SIGNALS, _REMINDER):
            # Whoever runs a command in the background (nohup, a shell's &) ignores interrupts.
            if number != signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:
                self._restored[number] = signal.signal(number, self._raise)
        self._tell_dropped, sys.unraisablehook = sys.unraisablehook, self._be_quiet
        _Watching.now = self
        self._thread = threading.Thread(target=self._watch, name="signals", daemon=True)
        self._thread.start()
        return self

    def listen(self) -> None:
        """Let signals in: from now on they raise."""
        if self._restored:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING_SIGNALS)

    def leave(self) -> None:
        """Raise no more: the command has ended. `received` then knows of all signals before."""
        self._left = True
        if self._restored:
            # The handler may not have been ours (Ray has one), and the thread not had its turn.
            self._wakeup.send(b"\0")
            self._caught_up.wait(_PATIENCE_SECONDS)

    def __exit__(self, *error: object) -> None:
        if not self._restored:
            return
        signal.pthread_sigmask(signal.SIG_BLOCK, ENDING_SIGNALS)
        _Watching.now = None
        for number, handler in self._restored.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        sys.unraisablehook = self._tell_dropped
        self._wakeup.close()
        self._thread.join()
        self._heard.close()
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)

    def forget(self) -> None:
        """Undo what a forked child inherits: its signals are not ours."""
        signal.set_wakeup_fd(-1)
        for number, handler in self._restored.items():
            signal.signal(number, handler)
        sys.unraisablehook = self._tell_dropped

    def _raise(self, number: int, frame: FrameType | None) -> None:
        if self.received is None and number in ENDING_SIGNALS:
            self.received = number
        if self.received is None or self._left or _is_leaving(sys.exc_info()[1]):
            return
        if self.received == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + self.received)

    def _watch(self) -> None:
        first: float | None = None
        while True:
            try:
                heard = self._heard.recv(1024)
            except TimeoutError:
                if not self._left:
                    signal.pthread_kill(self._main, _REMINDER)
                continue
            if not heard:
                return
            number = next((number for number in heard if number in ENDING_SIGNALS), None)
            if number is not None and first is None:
                self.received = self.received or number
                first = time.monotonic()
                self._heard.settimeout(_AGAIN_SECONDS)
            elif number is not None and time.monotonic() - (first or 0) > _PATIENCE_SECONDS:
                self._on_second(self.received or number)
            if 0 in heard:
                self._caught_up.set()

    def _be_quiet(self, dropped: sys.UnraisableHookArgs) -> None:
        # What a finalizer drops is raised again, and no news for a user.
        if self.received is None or not issubclass(dropped.exc_type, _LEAVING):
            self._tell_dropped(dropped)


class _Watching(threading.local):
    """The watch of this process, and what a thread lets through outside a fork."""

    now: ClassVar[SignalWatch | None] = None
    mask: set[int | signal.Signals] | None = None


_watching = _Watching()


def _before_fork() -> None:
    # A signal for the child that came before `forget` would reach the socket of its parent.
    if _Watching.now is not None:
        _watching.mask = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING_SIGNALS)


def _after_fork() -> None:
    if _watching.mask is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, _watching.mask)
        _watching.mask = None


def _after_fork_in_child() -> None:
    if _Watching.now is not None:
        _Watching.now.forget()
        _Watching.now = None
    _after_fork()


os.register_at_fork(
    before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child
)


def _is_leaving(error: BaseException | None) -> bool:
    """Whether an exception that is being handled came of a signal, whatever it was made into."""
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        if isinstance(one, _LEAVING):
            return True
        seen.add(id(one))
        waiting += [one.__cause__, one.__context__]
    return False
