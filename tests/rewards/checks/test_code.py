"""Programs of a model run in a sandbox: right or wrong, and nothing of this machine in reach."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from expo_ray.errors import ConfigError
from expo_ray.rewards import RewardModelSpec, pin_reward_model
from expo_ray.rewards.checks import code, sandbox
from expo_ray.rewards.checks.code import CodeCheck
from expo_ray.rewards.checks.kind import BrokenCheckError, Checked
from expo_ray.rewards.checks.sandbox import NoSandboxError, run_sandboxed


def _why_none() -> str | None:
    try:
        run_sandboxed({"a.py": ""}, "a.py")
    except NoSandboxError as error:
        return str(error)
    return None


WHY_NONE = _why_none()
sandboxed = pytest.mark.skipif(WHY_NONE is not None, reason=f"no sandbox here: {WHY_NONE}")


def output(program: str) -> str:
    return run_sandboxed({"a.py": program}, "a.py").output


@sandboxed
def test_no_network_not_even_of_this_machine() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        socket.create_connection(("127.0.0.1", port)).close()  # from here it is reached
        for address in (("127.0.0.1", port), ("192.0.2.1", 80)):
            told = output(
                "import socket\n"
                f"try:\n    socket.create_connection({address!r}, 3)\n    print('reached')\n"
                "except OSError as error:\n    print(error.errno)\n"
            )
            assert told == "101\n", "network is unreachable"
    with socket.socket(socket.AF_UNIX) as local:
        path = "\0expo-ray-test-" + str(os.getpid())
        local.bind(path)
        local.listen()
        told = output(
            "import socket\ns = socket.socket(socket.AF_UNIX)\n"
            f"try:\n    s.connect({path!r})\n    print('reached')\n"
            "except OSError as error:\n    print(error.errno)\n"
        )
        assert told == "111\n", "connection refused"


@sandboxed
def test_no_file_of_ours_and_nothing_to_write_but_its_own(tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("key")
    told = output(
        "import os, json\nfound = []\n"
        f"for path in ({str(secret)!r}, '/etc/passwd', '/proc/1/environ', '/sys'):\n"
        "    found.append(os.path.exists(path))\n"
        "for path in ('/usr/x', '/x', '/dev/x', os.path.dirname(os.__file__) + '/x'):\n"
        "    try:\n        open(path, 'w').close()\n        found.append(True)\n"
        "    except OSError:\n        found.append(False)\n"
        "open('/tmp/own', 'w').close()\n"
        "print(json.dumps(found + [os.environ.get('HOME'), sorted(os.listdir('/tmp'))]))\n"
    )
    # Its root is a folder in memory: what stands there is gone with it.
    assert json.loads(told)[:4] == [False] * 4
    assert json.loads(told)[4] is False
    assert json.loads(told)[7:] == [False, "/tmp", ["a.py", "own"]]
    assert not Path("/x").exists()
    assert secret.read_text() == "key"


@sandboxed
def test_no_rights_are_left_to_undo_it() -> None:
    told = output(
        "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        "remount, user, mounts = 0x1020, 0x10000000, 0x20000\n"
        "print(libc.mount(b'none', b'/usr', None, remount, None), libc.unshare(user),\n"
        "      libc.unshare(mounts), libc.chroot(b'/tmp'), libc.sethostname(b'x', 1))\n"
    )
    assert told == "-1 -1 -1 -1 -1\n"


@sandboxed
@pytest.mark.parametrize(
    ("program", "told"),
    [
        ("try:\n    bytearray(2**31)\nexcept MemoryError:\n    print('memory')", "memory\n"),
        (
            "import os\ntry:\n    for i in range(256):\n        if os.fork() == 0:\n"
            "            import time; time.sleep(9)\n"
            "except OSError:\n    print('forks', i < 128, flush=True)\n    os._exit(0)",
            "forks True\n",
        ),
        (
            "import signal\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
            "try:\n    open('big', 'wb').write(b'x' * 2**25)\nexcept OSError:\n    print('size')",
            "size\n",
        ),
    ],
)
def test_limits_hold(program: str, told: str) -> None:
    assert output(program) == told


@sandboxed
def test_what_hangs_is_ended_with_its_children(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "MAX_SECONDS", 2.0)
    mark = f"sleeper{os.getpid()}"
    program = (
        "import os, subprocess, sys, time\n"
        f"subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)', {mark!r}])\n"
        "time.sleep(60)\n"
    )
    assert run_sandboxed({"a.py": program}, "a.py").exit_code is None
    commands = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            commands.append(path.read_bytes())
        except OSError:
            continue
    assert not [line for line in commands if mark.encode() in line]


SUBMOUNT = """
import os, subprocess, sys
from expo_ray.rewards.checks.sandbox import run_sandboxed
subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=777", "none", "/usr/local/src"], check=True)
program = "try:\\n    open('/usr/local/src/x', 'w')\\nexcept OSError as e:\\n    print(e.errno)"
print(run_sandboxed({"a.py": program}, "a.py").output, os.listdir("/usr/local/src"))
"""


@sandboxed
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
def test_what_is_mounted_below_a_folder_is_read_only_too() -> None:
    command = ["unshare", "--mount", sys.executable, "-c", SUBMOUNT]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert found.stdout == "30\n []\n", found.stderr


@sandboxed
@pytest.mark.skipif(os.geteuid() != 0, reason="who is not root is one user in every sandbox")
def test_sandboxes_do_not_share_a_user() -> None:
    told = {output("import os; print(os.getuid())") for _ in range(3)}
    assert len(told) == 3
    assert "0\n" not in told


TWICE = "def twice(n):\n    return 2 * n\n"
ASSERTS = json.dumps(["assert twice(2) == 4", "assert twice('a') == 'aa'"])
PAIRS = json.dumps({"inputs": ["2\n", "5"], "outputs": ["4", "10\n"]})


@sandboxed
@pytest.mark.parametrize(
    ("response", "tests", "expected"),
    [
        (TWICE, "assert twice(2) == 4", 1),
        (f"So:\n```python\n{TWICE}```\nDone.", ASSERTS, 1),
        ("def twice(n):\n    return n + 2\n", ASSERTS, 0),
        ("def twice(n) return", ASSERTS, 0),
        ("I cannot write programs.", ASSERTS, 0),
        ("import sys; sys.exit(0)", ASSERTS, 0),
        ("import os; os._exit(0)", ASSERTS, 0),
        ("print(2 * int(input()))", PAIRS, 1),
        ("print(4)", PAIRS, 0),
        (TWICE + "if __name__ == '__main__':\n    raise SystemExit(3)", ASSERTS, 1),
        ("caf\u00e9 = '\ud800'", "assert True", 1),
        (TWICE + "print(twice(3))", ASSERTS, 1),
        (TWICE + "print(twice(3), end='')\nimport atexit\natexit.register(print, 1)", ASSERTS, 1),
        (
            "import os\nos.lseek(0, 0, 0)\nos.write(1, b'\\n' + os.read(0, 64))\nos._exit(0)",
            ASSERTS,
            0,
        ),
        ("import os, __main__\nos.write(1, str(vars(__main__)).encode())\nos._exit(0)", ASSERTS, 0),
        (f"```python\n{TWICE}```\nOutput:\n```\n4\n```", ASSERTS, 1),
        (f"```\n{TWICE}```\nwrites\n```text\n4\n```", ASSERTS, 1),
        ("1. So:\n   ```python\n   def twice(n):\n       return 2 * n\n   ```", ASSERTS, 1),
    ],
)
def test_programs_are_right_or_wrong(response: str, tests: str, expected: float) -> None:
    checked = Checked(messages=[], response=response, columns={"tests": tests})
    assert CodeCheck().reward(checked) == expected


@pytest.mark.parametrize("tests", ["", "assert (", "[]", "[3]", '{"inputs": ["1"]}', "{}"])
def test_tests_that_cannot_be_run_are_a_fault_of_the_prompt(tests: str) -> None:
    assert "`tests`" in str(CodeCheck().target_fault(tests))
    with pytest.raises(BrokenCheckError):
        CodeCheck().reward(Checked(messages=[], response=TWICE, columns={"tests": tests}))


def test_without_a_sandbox_nothing_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    cleared: Callable[[], None] = code._sandbox_fault.cache_clear
    cleared()
    request.addfinalizer(cleared)
    written = tmp_path / "written"
    monkeypatch.setattr(sandbox, "_PATH", str(tmp_path))
    program = f"open({str(written)!r}, 'w')"
    checked = Checked(messages=[], response=program, columns={"tests": "assert True"})
    with pytest.raises(BrokenCheckError, match="no sandbox: no unshare, mount"):
        CodeCheck().reward(checked)
    with pytest.raises(ConfigError, match="in a sandbox alone") as caught:
        pin_reward_model(RewardModelSpec.parse("check:code"), initial=None, aligned=None)
    assert "no unshare" in str(caught.value.got)
    (tmp_path / "unshare").write_text("#!/bin/sh\necho not permitted >&2; exit 1\n")
    for tool in sandbox._TOOLS:
        (tmp_path / tool).touch(mode=0o755)
        (tmp_path / tool).chmod(0o755)
    with pytest.raises(BrokenCheckError, match="no sandbox"):
        CodeCheck().reward(checked)
    assert not written.exists()
