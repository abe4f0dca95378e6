"""What strangers named is shown on a terminal, and does nothing there."""

from __future__ import annotations

import io
import logging
import sys

import pytest
from rich.text import Text

from expo_ray.cli.session import Session, key_value_table, new_table, print_error
from expo_ray.cli.terminal import PlainConsole
from expo_ray.errors import ConfigError
from expo_ray.extrapolation.outputs.model_card import public_name
from expo_ray.printable import markdown_code, markdown_text, printable
from expo_ray.redaction import RedactingFormatter

NASTY = "a\x1b[2J\x1b]0;t\x07\x9b1m\r\u202eb[red]c[/blue]:smile:\udcff"
SHOWN = "a\\u001b[2J\\u001b]0;t\\u0007\\u009b1m\\u000d\\u202eb[red]c[/blue]:smile:\\udcff"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def written(*things: object, file: io.StringIO | None = None) -> str:
    file = file or io.StringIO()
    console = PlainConsole(file)
    console.width = 300
    for thing in things:
        console.print(thing, highlight=False)
    return file.getvalue()


def test_texts_cells_titles_and_styled_texts_are_shown_as_they_stand() -> None:
    table = new_table("name", title=NASTY)
    table.add_row(NASTY)
    for thing in (NASTY, Text(NASTY), table, key_value_table({"file": NASTY, NASTY: 1})):
        text = written(thing)
        assert not set(text) & set("\x1b\x07\x9b\r\u202e\udcff")
        assert "b[red]c[/blue]:smile:" in text
    assert written(NASTY) == SHOWN + "\n"


def test_our_own_colours_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert written(Text("fit", style="green"), file=Terminal()) == "\x1b[32mfit\x1b[0m\n"


def test_errors_notes_bars_and_the_log_have_the_same_way_out(
    capsys: pytest.CaptureFixture[str],
) -> None:
    session = Session(json_output=False)
    session.progress.message(NASTY)
    session.progress.start(NASTY, 1).advance()
    session.progress.stop()
    error = ConfigError(NASTY, where=NASTY, got=f"x\nhint: {NASTY}", hint="do it")
    print_error(error, json_output=False)
    record = logging.LogRecord("n", logging.WARNING, "p", 1, "%s", (NASTY,), None)
    sys.stderr.write(RedactingFormatter("%(message)s").format(record))
    err = capsys.readouterr().err
    assert not set(err) & set("\x1b\x07\x9b\r\u202e")
    assert [line for line in err.splitlines() if line.startswith("  hint")] == ["  hint: do it"]


def test_printable_leaves_what_is_written_in_any_language() -> None:
    text = "Gr\u00fc\u00dfe, \u0645\u0631\u062d\u0628\u0627, \U0001f600\n\tx"
    assert printable(text) == text


def test_a_folder_name_stays_in_its_cell_of_the_model_card() -> None:
    name = public_name("/data/x` | y |\n\n# owned <b>")
    assert markdown_code(name) == "`x' \\| y \\| # owned <b>`"
    assert markdown_text("a|b\n# [x](y) <b>") == r"a\|b \# \[x\](y) \<b\>"
