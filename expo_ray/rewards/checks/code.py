"""`check:code`: the program in a response passes the tests of its prompt, in a sandbox.

`tests` is Python that asserts (a text, or a list of texts as in MBPP), run after the program in the
same module, or an object of `inputs` and `outputs`: what the program reads, and has to write.
"""

from __future__ import annotations

import ast
import platform
import re
import secrets
import textwrap
from functools import cache
from typing import Any

from expo_ray.errors import ConfigError, argument
from expo_ray.json_text import parse_json
from expo_ray.rewards.checks.kind import (
    Arguments,
    BrokenCheckError,
    Check,
    Checked,
    CheckKind,
    Trial,
    no_argument,
)
from expo_ray.rewards.checks.sandbox import LIMITS, NoSandboxError, Ran, run_sandboxed

_FENCED = re.compile(r"^[ \t]*```([^\n]*)\n(.*?)^[ \t]*```", re.DOTALL | re.MULTILINE)
_PYTHON = ("python", "python3", "py")
# The program and its tests run in a child, which has neither the word nor where it was read: one
# that ends early, with whatever it wrote, has passed nothing. What it printed comes before.
_RUNNER = """
import os, sys
word = sys.stdin.readline()
told, tell = os.pipe()
if os.fork() == 0:
    os.close(told)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    del word
    write = os.write
    scope = {"__name__": "program"}
    for name in ("program.py", "tests.py"):
        with open(name, encoding="utf-8") as file:
            exec(compile(file.read(), name, "exec"), scope)
    write(tell, b"passed")
else:
    os.close(tell)
    said = os.read(told, 6)
    if os.wait()[1] == 0 and said == b"passed":
        os.write(1, b"\\n" + word.encode())
"""


class CodeCheck(Check):
    """Runs programs."""

    def reward(self, checked: Checked) -> float:
        """Return whether the program passes all tests."""
        tests = _read_tests(checked.columns["tests"])
        program = _program(checked.response)
        if isinstance(tests, str):
            word = secrets.token_hex(16)
            files = {"program.py": program, "tests.py": tests, "runner.py": _RUNNER}
            ran = _ran(files, "runner.py", word + "\n")
            return float(ran.exit_code == 0 and ran.output.endswith(f"\n{word}\n"))
        for given, wanted in tests:
            ran = _ran({"program.py": program}, "program.py", given)
            if ran.exit_code != 0 or _lines(ran.output) != _lines(wanted):
                return 0.0
        return 1.0

    def unreadable(self, checked: Checked) -> str | None:
        """Return that the response holds no Python."""
        program = _program(checked.response)
        return None if program.strip() and _is_python(program) else "no Python program"

    def target_fault(self, target: str) -> str | None:
        """Return why tests cannot be run."""
        try:
            _read_tests(target)
        except BrokenCheckError as error:
            return str(error)
        return None


def _ran(files: dict[str, str], script: str, standard_input: str) -> Ran:
    try:
        return run_sandboxed(files, script, standard_input=standard_input)
    except NoSandboxError as error:
        raise BrokenCheckError(f"no sandbox: {error}") from error
    except OSError as error:
        raise BrokenCheckError(f"the sandbox failed: {error}") from error


def _program(response: str) -> str:
    """Return the last fenced block that is named Python, else the last that is Python.

    Without fences it is the whole response; behind a program a fence often shows its output.
    """
    blocks = [(name.strip().lower(), textwrap.dedent(b)) for name, b in _FENCED.findall(response)]
    named = [block for name, block in blocks if name in _PYTHON]
    parsing = [block for name, block in blocks if not name and _is_python(block)]
    return next(iter(reversed(named or parsing or [block for _, block in blocks])), response)


def _is_python(text: str) -> bool:
    try:
        ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def _read_tests(target: str) -> str | list[tuple[str, str]]:
    """Return the source of tests, or pairs of input and output.

    Raises:
        BrokenCheckError: They are neither.
    """
    tests: Any = target
    if target.lstrip()[:1] in ("[", "{"):
        try:
            tests = parse_json(target)
        except ValueError:
            tests = target  # Python may begin so, too
    if isinstance(tests, dict):
        return _read_pairs(tests)
    if isinstance(tests, list) and tests and all(isinstance(test, str) for test in tests):
        tests = "\n".join(tests)
    if not isinstance(tests, str) or not tests.strip():
        raise BrokenCheckError("`tests` is neither Python nor an object of inputs and outputs")
    try:
        ast.parse(tests)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise BrokenCheckError(f"`tests` is no Python: {error}") from error
    return tests


def _read_pairs(tests: dict[str, Any]) -> list[tuple[str, str]]:
    inputs, outputs = _texts(tests.get("inputs")), _texts(tests.get("outputs"))
    if not inputs or len(inputs) != len(outputs):
        raise BrokenCheckError("`tests` has no lists of texts, `inputs` and `outputs`, of one size")
    return list(zip(inputs, outputs, strict=True))


def _texts(value: object) -> list[str]:
    texts = value if isinstance(value, list) else []
    return texts if all(isinstance(text, str) for text in texts) else []


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip().splitlines()]


@cache
def _sandbox_fault() -> str | None:
    try:
        ran = run_sandboxed({"program.py": "print(6 * 7)"}, "program.py")
    except NoSandboxError as error:
        return str(error)
    return None if ran.output == "42\n" else f"a program of one line ended with {ran.exit_code}"


def _pin(arguments: Arguments) -> Arguments:
    fault = _sandbox_fault()
    if fault is not None:
        raise ConfigError(
            "programs of a model run in a sandbox alone, and none can be had here",
            where=argument("reward_model", "check:code"),
            got=fault,
            expected="Linux with util-linux and user namespaces for users without privileges",
            hint="in a container they must be allowed (Docker: --security-opt seccomp=unconfined "
            "--security-opt systempaths=unconfined); on Ubuntu "
            "kernel.apparmor_restrict_unprivileged_userns=0",
        )
    # Another Python, or other limits, and the same program may pass or fail.
    return {**arguments, "python": platform.python_version(), "limits": list(LIMITS)}


def _open(arguments: Arguments) -> Check:
    return CodeCheck()


CODE = CheckKind(
    name="code",
    form="check:code",
    parse=lambda text: no_argument(text, "check:code"),
    pin=_pin,
    open=_open,
    column="tests",
    has_own_process=False,
    trials=(
        Trial(
            response="Here it is:\n```python\ndef twice(n):\n    return 2 * n\n```",
            target='["assert twice(21) == 42"]',
            is_right=True,
        ),
        Trial(
            response="print(2 * int(input()))",
            target='{"inputs": ["21"], "outputs": ["42"]}',
            is_right=True,
        ),
        Trial(
            response="def twice(n):\n    return n", target="assert twice(21) == 42", is_right=False
        ),
        Trial(
            response="def twice(n):\n    return 2 * n\nprint(twice(1))",
            target="assert twice(21) == 42",
            is_right=True,
        ),
        Trial(response="import os\nos._exit(0)", target="assert False", is_right=False),
    ),
)
