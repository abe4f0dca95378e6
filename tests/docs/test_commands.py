"""Every command of the documentation parses; every block that can run here is run.

A shell block is run as it stands, in a folder with ./sft, ./dpo, ./rm and p.jsonl, after the blocks
before it on the same page. One of class `service` begins with the service that the rest of it asks,
or asks one that was begun on the page. One that cannot run here says why by a class, `needs-gpu`
for instance (in the README, where GitHub would show classes as text, by a comment before it).
"""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer
import typer.main
from typer.core import TyperGroup

from expo_ray.cli.main import main
from expo_ray.cli.tree import app
from tests.docs.blocks import PAGES, ROOT, Block, blocks_of
from tests.docs.workbench import PORT, environment, make_workbench, serving

NEEDS = {
    "needs-bucket": "S3 or Google storage with credentials",
    "needs-checkout": "a fresh clone: it installs or tests the project",
    "needs-cluster": "a Ray cluster, Kubernetes, Slurm or a cloud",
    "needs-gpu": "a GPU",
    "needs-hub": "the Hub",
    "needs-minutes": "a quarter of an hour or more",
    "needs-service": "a service that expo_ray does not bring, such as a judge",
}
# What a service block asks if no block before it on its page serves.
SERVICE = "expo-ray serve ./dpo --initial ./sft --alpha 0.3 --allow-alpha-change"
# A page shows curl without its flags; here an answer that is an error must fail.
CURL = 'curl() { command curl --silent --show-error --fail-with-body "$@"; }'
# Commands that serve nothing: they share the session's Ray and take about a second each.
QUICK = {"extrapolate", "verify", "inspect", "diagnose"}

TREE: Any = typer.main.get_command(app)
BLOCKS = [block for page in PAGES for block in blocks_of(page)]
SHELL = [block for block in BLOCKS if block.is_shell]


def _is_quick(block: Block) -> bool:
    operators = set("|<>&$`") & set(block.text)
    return not (operators or block.is_service) and all(
        command[0] == "expo-ray" and ({"--help", "--version"} | QUICK) & set(command[1:])
        for command in block.commands()
    )


def _pages(*, quick: bool) -> list[object]:
    pages = {b.page for b in SHELL if not b.needs and (_is_quick(b) or not quick)}
    return [pytest.param(p, id=str(p.relative_to(ROOT))) for p in PAGES if p in pages]


@pytest.mark.parametrize("block", SHELL, ids=str)
def test_a_block_that_is_not_run_says_why(block: Block) -> None:
    assert block.language == "bash", "one name for shell blocks, so that none is overlooked"
    assert set(block.classes) <= {*NEEDS, "service"}, f"known reasons: {NEEDS}"


@pytest.mark.parametrize("block", SHELL, ids=str)
def test_commands_parse(block: Block) -> None:
    """Commands and flags exist, values have their types; nothing is called."""
    for command in block.commands():
        if command[0] == "expo-ray":
            _parse(command[1:])


def _parse(arguments: list[str]) -> None:
    command = TREE
    try:
        context = command.make_context("expo-ray", list(arguments) or ["--help"])
        while isinstance(context.command, TyperGroup):
            group, rest = context.command, [*context._protected_args, *context.args]
            name, command, rest = group.resolve_command(context, rest)
            assert command is not None
            context = command.make_context(name, rest, parent=context)
    except typer.Exit as end:
        assert end.exit_code == 0


def _write_files(folder: Path) -> None:
    """Write the files that the pages show."""
    for block in BLOCKS:
        if block.file_name is not None:
            (folder / block.file_name).write_text(block.text)


@pytest.mark.parametrize("page", _pages(quick=True))
def test_quick_blocks_run(
    page: Path, tmp_path: Path, ray_cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write_files(make_workbench(tmp_path))
    monkeypatch.chdir(tmp_path)
    for block in blocks_of(page):
        if block.is_shell and not block.needs and _is_quick(block):
            for command in block.commands():
                with pytest.raises(SystemExit) as end:
                    main(command[1:])
                assert end.value.code in (0, None), f"{block}: {command}"


@pytest.mark.slow
@pytest.mark.parametrize("page", _pages(quick=False))
def test_all_blocks_run(page: Path, tmp_path: Path) -> None:
    """Each block in a shell of its own, each command with the Ray that it starts."""
    _write_files(make_workbench(tmp_path))
    service = SERVICE
    for block in blocks_of(page):
        if not block.is_shell or block.needs:
            continue
        if not block.is_service:
            _run(block, block.text, tmp_path)
            continue
        lines = block.lines()
        if lines[0].startswith("expo-ray serve"):
            service = shlex.join(shlex.split(lines.pop(0), comments=True))
        with serving(service, tmp_path, environment()) as port:
            _run(block, "\n".join(lines).replace(f":{PORT}", f":{port}"), tmp_path)


def _run(block: Block, script: str, folder: Path) -> None:
    result = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", f"{CURL}\n{script}"],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, f"{block}\n{result.stdout}\n{result.stderr}"
