"""The help of every command, as a terminal of 80 or 120 columns shows it: nothing is cut."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import typer
from rich.text import Text
from typer import rich_utils
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption
from typer.testing import CliRunner

from expo_ray.cli.main import app

NARROWEST_TEXT = 30
TREE = typer.main.get_command(app)


def every_command(group: TyperGroup, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the words of each command and group, the root's too."""
    yield words
    for name, command in group.commands.items():
        if isinstance(command, TyperGroup):
            yield from every_command(command, (*words, name))
        else:
            yield (*words, name)


def command_at(words: tuple[str, ...]) -> TyperCommand | TyperGroup:
    command = TREE
    for word in words:
        command = command.commands[word]  # type: ignore[attr-defined]
    return command  # type: ignore[return-value]


@dataclass
class Panel:
    title: str
    rows: list[str]


def panels_of(shown: str) -> list[Panel]:
    found: list[Panel] = []
    for line in shown.splitlines():
        if line.startswith("\u256d"):
            found.append(Panel(line.strip("\u256d\u2500\u256e "), []))
        elif line.startswith("\u2502"):
            found[-1].rows.append(line[1:-1])
    return found


COMMANDS = list(every_command(TREE))  # type: ignore[arg-type]


@pytest.fixture(params=[80, 120])
def width(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(rich_utils, "MAX_WIDTH", request.param)
    return int(request.param)


def test_groups_are_walked() -> None:
    assert {(), ("alpha",), ("alpha", "set"), ("evaluate", "self-test"), ("run",)} <= set(COMMANDS)


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: " ".join(words) or "expo-ray")
def test_nothing_is_cut(words: tuple[str, ...], width: int) -> None:
    result = CliRunner().invoke(app, [*words, "--help"])
    assert result.exit_code == 0
    shown = result.output
    assert max(map(len, shown.splitlines())) <= width
    assert "\u2026" not in shown
    text = " ".join(" ".join(panel.rows) for panel in panels_of(shown))
    for word in expected_words(words):
        assert word in text.split(), word
    for panel in panels_of(shown):
        assert text_width(panel, words) >= NARROWEST_TEXT, panel.title


def expected_words(words: tuple[str, ...]) -> set[str]:
    """Flags, arguments and signs of values, each of which must stand there whole."""
    command = command_at(words)
    found = set(getattr(command, "commands", {}))
    for each in command.params:
        if isinstance(each, TyperArgument):
            found.add(each.name.upper())
        elif isinstance(each, TyperOption):
            found |= {*each.opts, *each.secondary_opts}
            found |= {each.metavar} if each.metavar else set()
    return found


def text_width(panel: Panel, words: tuple[str, ...]) -> int:
    """Return how wide the column of the texts is: from where the first words of each begin."""
    command = command_at(words)
    texts = [getattr(each, "help", None) for each in command.params]
    texts += [each.help for each in getattr(command, "commands", {}).values()]
    first_words = [" ".join(Text.from_markup(text).plain.split()[:2]) for text in texts if text]
    starts = {row.find(words) for row in panel.rows for words in first_words if words in row}
    return max(len(row) for row in panel.rows) - min(starts, default=0) - 1


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: " ".join(words) or "expo-ray")
def test_every_option_has_a_text_and_a_heading(words: tuple[str, ...]) -> None:
    command = command_at(words)
    assert command.help
    if isinstance(command, TyperGroup):
        return
    for each in command.params:
        assert isinstance(each, TyperOption | TyperArgument)
        assert each.help and re.search(r"\w", each.help), each.name
        if isinstance(each, TyperOption):
            assert each.rich_help_panel, each.name
            assert len(Text.from_markup(each.help).plain) <= 120, each.help
