"""What every command shares: where results, news and errors go.

Results go to stdout (a table, or one JSON object under `--json`); progress and logs go to stderr,
so that a pipe never sees them.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer
from pydantic import BaseModel, Field
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

from expo_ray.cli.model_options import COMMON, FlagsOf, Given
from expo_ray.cli.terminal import PlainConsole
from expo_ray.cli.told import Told
from expo_ray.errors import ExpoError
from expo_ray.flags import Flag
from expo_ray.progress import NullProgress, ProgressBar
from expo_ray.redaction import RedactingFormatter

SCHEMA_VERSION = 1


class _Output(BaseModel):
    json_output: Annotated[bool, Flag(name="--json", panel=COMMON)] = Field(
        False, description="One JSON object on stdout; logs and progress on stderr."
    )
    verbose: Annotated[bool, Flag(short="-v", panel=COMMON)] = Field(
        False, description="Show what is being done."
    )
    quiet: Annotated[bool, Flag(short="-q", panel=COMMON)] = Field(
        False, description="No progress: result and errors."
    )


OutputFlags = Annotated[Given, FlagsOf(_Output)]
"""What a `Session` takes."""
AddressOption = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="RAY",
        help="Ray cluster: local, auto or host:port; by default RAY_ADDRESS, else local.",
        rich_help_panel=COMMON,
    ),
]
InlineAddress = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="RAY",
        help="Ray cluster: local, auto or host:port; inline: no Ray. By default RAY_ADDRESS, else "
        "what is sooner done.",
        rich_help_panel=COMMON,
    ),
]
NodesAddress = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="RAY",
        help="Ray cluster: local, auto or host:port; inline: this machine alone. By default "
        "RAY_ADDRESS, else local.",
        rich_help_panel=COMMON,
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
            TextColumn("{task.description}", markup=False),
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


class Session:
    """The output side of one command; use as a context manager.

    Args:
        json_output: Print the result as one JSON object.
        verbose: Log at debug level.
        quiet: No progress and no warnings on stderr, errors only.
    """

    def __init__(
        self, *, json_output: bool = False, verbose: bool = False, quiet: bool = False
    ) -> None:
        self.json_output = json_output
        self.stdout = PlainConsole(sys.stdout)
        self.stderr = PlainConsole(sys.stderr)
        self.progress: TerminalProgress | _QuietProgress = (
            _QuietProgress() if quiet else TerminalProgress(self.stderr)
        )
        level = logging.DEBUG if verbose else logging.ERROR if quiet else logging.WARNING
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(RedactingFormatter("%(levelname)s %(name)s: %(message)s"))
        logging.basicConfig(level=level, handlers=[handler])
        logging.getLogger("expo_ray").setLevel(level)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.progress.stop()

    def emit(
        self, payload: Mapping[str, Any], render: Callable[[Console], None] | None = None
    ) -> None:
        """Print the result: `payload` under `--json`, else what `render` draws."""
        self.progress.stop()
        if self.json_output:
            _print_json(payload)
        elif render is not None:
            render(self.stdout)


def _print_json(payload: Mapping[str, Any]) -> None:
    body = {"schema_version": SCHEMA_VERSION, **payload}
    sys.stdout.write(json.dumps(body, default=str, allow_nan=False) + "\n")
    sys.stdout.flush()
    Told.answer()


def print_error(error: ExpoError, *, json_output: bool) -> None:
    """Print an error the way the contract says: an object under `--json`, else plain lines."""
    if json_output:
        _print_json({"error": error.as_dict()})
        return
    console = PlainConsole(sys.stderr)
    console.print(Text.assemble(("error: ", "bold red"), error.message), soft_wrap=True)
    for label in ("where", "got", "expected", "hint"):
        value = getattr(error, label)
        if value is not None:
            # What goes on in a second line must not look like a line of ours.
            shown = value.replace("\n", "\n    ")
            console.print(Text.assemble((f"  {label}: ", "dim"), shown), soft_wrap=True)


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
