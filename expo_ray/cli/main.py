"""Entry point of `expo-ray`: runs a command line and ends with the code of the contract.

Nothing is imported before signals are heard; nothing heavy before a command runs: `expo-ray --help`
answers at once.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from expo_ray.cli.endings import exit_code_of
from expo_ray.cli.supervisor import supervised
from expo_ray.lazy import lazy_exports

if TYPE_CHECKING:
    from expo_ray.cli.tree import app as app

__getattr__ = lazy_exports("expo_ray.cli", {"app": "tree"})


def main(argv: list[str] | None = None) -> None:
    """Run the command line and exit with the code of the contract.

    Exit codes: 0 done; 1 the work failed; 2 the request was wrong; 130 and 143 on signals.

    Args:
        argv: Arguments of a call within this process; None takes those of the command line, which
            gets a process of its own.
    """
    arguments = sys.argv[1:] if argv is None else argv
    # Nothing here needs the usage reports of Ray or the Hub's telemetry.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

    def command() -> int:
        return exit_code_of(lambda: _call(arguments), arguments)

    sys.exit(supervised(command, arguments) if argv is None else command())


def _call(arguments: list[str]) -> int | None:
    from expo_ray.cli.tree import call
    from expo_ray.proxies import spare_this_machine

    spare_this_machine()
    return call(arguments)
