"""What every command shares: where results, news and errors go.

Results go to stdout (a table, or one JSON object under `--json`); progress and logs go to stderr,
so that a pipe never sees them.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Annotated, Any, TypeVar

import typer
from pydantic import BaseModel, ValidationError
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import (
    Progress as RichProgress,
)
from rich.table import Table
from rich.text import Text

from expo_ray.errors import ConfigError, ExpoError, InternalError, StoppedError
from expo_ray.progress import NullProgress, ProgressBar
from expo_ray.redaction import RedactingFormatter, redacted

SCHEMA_VERSION = 1
Settings = TypeVar("Settings", bound=BaseModel)

JsonFlag = Annotated[
    bool, typer.Option("--json", help="One JSON object on stdout; logs and progress on stderr.")
]
VerboseFlag = Annotated[bool, typer.Option("--verbose", "-v", help="Show what is being done.")]
QuietFlag = Annotated[bool, typer.Option("--quiet", "-q", help="No progress: result and errors.")]
AddressOption = Annotated[
    str | None,
    typer.Option(
        "--address",
        help="Ray cluster: local, auto, host:port. (default: RAY_ADDRESS, else local)",
        show_default=False,
    ),
]
InlineAddress = Annotated[
    str | None,
    typer.Option(
        "--address",
        help="Ray cluster: local, auto, host:port; inline = this process, without Ray. "
        "(default: RAY_ADDRESS, else local)",
        show_default=False,
    ),
]


class _AmountColumn(ProgressColumn):
    """Bytes as sizes, anything else as counts with its unit."""

    def __init__(self) -> None:
        super().__init__()
        self._bytes = DownloadColumn()

    def render(self, task: Task) -> Text:
        unit = task.fields.get("unit", "")
        if unit == "B":
            return self._bytes.render(task)
        total = "?" if task.total is None else f"{task.total:g}"
        return Text(f"{task.completed:g}/{total} {unit}", style="progress.download", no_wrap=True)


class _RichBar:
    def __init__(self, progress: RichProgress, task_id: TaskID) -> None:
        self._progress = progress
        self._task_id = task_id

    def advance(self, amount: float = 1) -> None:
        self._progress.advance(self._task_id, amount)

    def set_total(self, total: float) -> None:
        self._progress.update(self._task_id, total=total)

    def close(self) -> None:
        self._progress.stop_task(self._task_id)


class TerminalProgress:
    """A `Progress` drawn by Rich on stderr; lines of a finished stage stay visible."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            _AmountColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            # Without a terminal (CI, a pipe) the final state of each bar is printed once.
            refresh_per_second=4,
        )
        self._started = False

    def start(self, description: str, total: float | None = None, unit: str = "") -> ProgressBar:
        """Open a line; see `expo_ray.progress.Progress`."""
        if not self._started:
            self._progress.start()
            self._started = True
        return _RichBar(
            self._progress, self._progress.add_task(description, total=total, unit=unit)
        )

    def message(self, text: str) -> None:
        """Print one line of news above the bars."""
        self._console.print(text, highlight=False, markup=False)

    def stop(self) -> None:
        """Draw the final state and leave the terminal as it was."""
        if self._started:
            self._progress.stop()
            self._started = False


class _QuietProgress(NullProgress):
    def stop(self) -> None:
        pass


_AGAIN_SECONDS = 0.1
_SIGNALS = {130: "interrupted", 143: "stopped by SIGTERM"}


class Session:
    """The output side of one command; use as a context manager.

    Args:
        json_output: Print the result as one JSON object.
        verbose: Log at debug level.
        quiet: No progress and no warnings on stderr, errors only.
    """

    def __init__(self, *, json_output: bool, verbose: bool = False, quiet: bool = False) -> None:
        self.json_output = json_output
        self._received: int | None = None
        self.stdout = Console(file=sys.stdout)
        self.stderr = Console(file=sys.stderr)
        self.progress: TerminalProgress | _QuietProgress = (
            _QuietProgress() if quiet else TerminalProgress(self.stderr)
        )
        level = logging.DEBUG if verbose else logging.ERROR if quiet else logging.WARNING
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(RedactingFormatter("%(levelname)s %(name)s: %(message)s"))
        logging.basicConfig(level=level, handlers=[handler])
        logging.getLogger("expo_ray").setLevel(level)

    def __enter__(self) -> Session:
        # SIGTERM unwinds like an exception, so that Ray, Serve and temporary files are cleaned up.
        signal.signal(signal.SIGTERM, self._stop)
        self._tell_dropped, sys.unraisablehook = sys.unraisablehook, self._send_again
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        sys.unraisablehook = self._tell_dropped
        self.progress.stop()
        # A call of Ray that waits makes a SystemExit(1) of any other.
        if self._received is not None and isinstance(error, SystemExit):
            raise SystemExit(128 + self._received) from error

    def _stop(self, signum: int, frame: FrameType | None) -> None:
        self._received = signum
        raise SystemExit(128 + signum)

    def _send_again(self, dropped: sys.UnraisableHookArgs) -> None:
        # A signal that comes while garbage is collected raises in a finalizer, where Python drops
        # what is raised; from this hook too. So it is sent again when the finalizer is done.
        raised = {KeyboardInterrupt: signal.SIGINT, SystemExit: self._received}
        number = raised.get(dropped.exc_type)
        if number is None:
            self._tell_dropped(dropped)
            return
        again = threading.Timer(_AGAIN_SECONDS, os.kill, (os.getpid(), number))
        again.daemon = True
        again.start()

    def emit(
        self, payload: Mapping[str, Any], render: Callable[[Console], None] | None = None
    ) -> None:
        """Print the result: `payload` under `--json`, else what `render` draws."""
        self.progress.stop()
        if self.json_output:
            _print_json(payload)
        elif render is not None:
            render(self.stdout)


def exit_code_of(command: Callable[[], int | None], arguments: Sequence[str]) -> int:
    """Run a command; whatever it ends in is told in the way of the contract.

    Args:
        command: Returns an exit code; None is 0.
        arguments: What stands on the command line: whether `--json` and `-v` are there.

    Returns:
        0 done; 1 the work failed; 2 the request was wrong; 130 and 143 on signals.
    """
    json_output = "--json" in arguments
    _Answer.given = False
    try:
        code: object = command()
    except ExpoError as error:
        print_error(error, json_output=json_output)
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except SystemExit as stop:  # how a session leaves at SIGTERM
        code = stop.code
    except Exception as error:  # noqa: BLE001 - the last one: nobody else would tell it
        if {"-v", "--verbose"} & set(arguments):
            sys.stderr.write(redacted(traceback.format_exc()))
        print_error(_unforeseen(error), json_output=json_output)
        return InternalError.exit_code
    # typer itself makes 130 of an interrupt inside a command.
    if code in _SIGNALS:
        stopped = StoppedError(_SIGNALS[code], hint="run the same command again to continue")
        if json_output and not _Answer.given:
            print_error(stopped, json_output=True)
        sys.stderr.write(f"{stopped.message}; {stopped.hint}\n")
    return code if isinstance(code, int) else 0 if code is None else 1


def _unforeseen(error: Exception) -> InternalError:
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "expo_ray" in frame.filename] or frames
    return InternalError(
        "an unexpected error",
        where=f"{ours[-1].filename}:{ours[-1].lineno}" if ours else None,
        got=f"{type(error).__name__}: {error}",
        hint="run it again with -v to see the traceback; it may be a defect of expo_ray",
    )


class _Answer:
    """Whether stdout has had an object: whoever reads one is not to get a second."""

    given = False


def _print_json(payload: Mapping[str, Any]) -> None:
    body = {"schema_version": SCHEMA_VERSION, **payload}
    sys.stdout.write(json.dumps(body, default=str, allow_nan=False) + "\n")
    sys.stdout.flush()
    _Answer.given = True


def print_error(error: ExpoError, *, json_output: bool) -> None:
    """Print an error the way the contract says: an object under `--json`, else plain lines."""
    if json_output:
        _print_json({"error": error.as_dict()})
        return
    console = Console(file=sys.stderr)
    console.print(Text.assemble(("error: ", "bold red"), error.message), soft_wrap=True)
    for label in ("where", "got", "expected", "hint"):
        value = getattr(error, label)
        if value is not None:
            console.print(Text.assemble((f"  {label}: ", "dim"), value), soft_wrap=True)


def from_flags(settings: type[Settings], values: Mapping[str, Any]) -> Settings:
    """Build settings from flags of the same names.

    Raises:
        ConfigError: Names the first flag whose value is out of range.
    """
    try:
        return settings(**values)
    except ValidationError as error:
        first = error.errors()[0]
        flag = f"--{str(first['loc'][0]).replace('_', '-')}" if first["loc"] else None
        raise ConfigError(first["msg"], where=flag, got=first["input"]) from error


def key_value_table(rows: Mapping[str, object], *, title: str | None = None) -> Table:
    """Return a two-column table of facts; what is unknown is left out."""
    table = Table(title=title, show_header=False, box=None, title_justify="left", pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in rows.items():
        if value is not None and key != "schema_version":
            shown = f"{value:.4g}" if isinstance(value, float) else str(value)
            table.add_row(key.replace("_", " "), Text(shown))
    return table


def new_table(*headings: str, title: str | None = None) -> Table:
    """Return an empty table whose first column is text and whose others align right."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for number, heading in enumerate(headings):
        # A number that breaks over two lines reads as two numbers.
        first = number == 0
        table.add_column(
            heading, justify="left" if first else "right", overflow="fold", no_wrap=not first
        )
    return table


def format_bytes(num_bytes: float) -> str:
    """Format a size with decimal units: `1.5 GB`."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(num_bytes) < 1000 or unit == "TB":
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    raise AssertionError("unreachable")
