"""How a command ends: its exit code, and the error object or lines that tell why.

Light on purpose: signals are heard from the first moments of a command, before what it needs is
imported.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence

from expo_ray.cli.signals import SignalWatch
from expo_ray.cli.told import Told
from expo_ray.errors import ExpoError, InternalError, StoppedError
from expo_ray.printable import printable
from expo_ray.redaction import redacted
from expo_ray.remote_errors import our_error

_SIGNALS = {130: "interrupted", 143: "stopped by SIGTERM"}
AGAIN = "run the same command again to continue"
# Where a command does not continue what it began.
_HINTS = {
    "serve": None,
    "alpha": "`expo-ray alpha show` tells what is served now",
    "submit": "a job that was handed over goes on: `ray job list` shows it, `ray job stop` ends it",
    **dict.fromkeys(
        (
            *("compare", "diagnose", "doctor", "evaluate", "inspect", "loadtest", "plan-prompts"),
            *("report", "verify"),
        ),
        "run the same command again",
    ),
}


def exit_code_of(command: Callable[[], int | None], arguments: Sequence[str]) -> int:
    """Run a command; whatever it ends in is told in the way of the contract.

    The first SIGINT or SIGTERM ends it in order. Another one does not disturb the end, unless that
    has taken ten seconds: then the process ends at once.

    Args:
        command: Returns an exit code; None is 0.
        arguments: What stands on the command line: whether `--json` and `-v` are there.

    Returns:
        0 done; 1 the work failed; 2 the request was wrong; 130 and 143 on signals.
    """
    Told.answered = False

    def end_at_once(number: int) -> None:
        _tell_stopped(128 + number, arguments)
        Told.end(128 + number)
        os._exit(128 + number)

    with SignalWatch(on_second=end_at_once) as watch:
        code, error = _run(command, watch)
        if watch.received is not None:
            code, error = 128 + watch.received, None
        try:
            if error is not None:
                code = _tell_error(error, arguments)
            if code in _SIGNALS:
                _tell_stopped(code, arguments)
        finally:
            Told.end(code)  # also where nobody reads what is told
    return code


def _run(command: Callable[[], int | None], watch: SignalWatch) -> tuple[int, BaseException | None]:
    """Run a command to its end; from then on no signal raises."""
    try:
        try:
            watch.listen()
            code = command()
            watch.leave()
        except BaseException as error:  # noqa: BLE001 - the last one: nobody else would tell it
            watch.leave()
            return 1, error
    except (KeyboardInterrupt, SystemExit) as stop:  # a signal in the handler above, before it left
        watch.leave()
        return 1, stop
    return code or 0, None


def _tell_error(error: BaseException, arguments: Sequence[str]) -> int:
    """Print what a command ended in; return its exit code."""
    from expo_ray.cli.session import print_error

    if isinstance(error, KeyboardInterrupt):
        return 130
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    if not isinstance(error, ExpoError):
        if {"-v", "--verbose"} & set(arguments):
            sys.stderr.write(printable(redacted("".join(traceback.format_exception(error)))))
        error = our_error(error) or _unforeseen(error)
    print_error(error, json_output="--json" in arguments)
    return error.exit_code


def _tell_stopped(code: int, arguments: Sequence[str]) -> None:
    hint = _HINTS.get(next(iter(arguments), ""), AGAIN)
    stopped = StoppedError(_SIGNALS[code], hint=hint)
    if "--json" in arguments and not Told.answered:
        from expo_ray.cli.session import print_error

        print_error(stopped, json_output=True)
    sys.stderr.write("; ".join(filter(None, (stopped.message, hint))) + "\n")
    sys.stderr.flush()


def _unforeseen(error: BaseException) -> InternalError:
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "expo_ray" in frame.filename] or frames
    return InternalError(
        "an unexpected error",
        where=f"{ours[-1].filename}:{ours[-1].lineno}" if ours else None,
        got=f"{type(error).__name__}: {error}",
        hint="run it again with -v to see the traceback; it may be a defect of expo_ray",
    )
