"""The contract of the command line: exit codes, `--json`, errors."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray
import torch
import typer
from typer.testing import CliRunner

from expo_ray import extrapolation
from expo_ray.cli import main
from tests.extrapolation.synthetic import noise, write

EXPO_RAY = Path(sys.executable).with_name("expo-ray")


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [str(EXPO_RAY), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=150)


def called(
    capsys: pytest.CaptureFixture[str], *arguments: str | Path
) -> subprocess.CompletedProcess[str]:
    """The same in this process, which has imported already what takes a command seconds."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main.main([*map(str, arguments)])
    assert isinstance(stop.value.code, int)
    return subprocess.CompletedProcess(arguments, stop.value.code, *capsys.readouterr())


def interruptible() -> None:
    """Whoever runs the tests in the background ignores interrupts, and so would a child."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def json_of(result: subprocess.CompletedProcess[str]) -> dict[str, object]:
    lines = result.stdout.strip().splitlines()
    assert len(lines) == 1, result.stdout + result.stderr
    body = json.loads(lines[0])
    assert body["schema_version"] == 1
    return dict(body)


@pytest.mark.parametrize(
    "arguments",
    [
        ("no-such-command",),
        ("extrapolate", "a", "b"),
        ("extrapolate", "a", "b", "c", "--alpha", "many"),
        ("loadtest", "m", "--prompts", "p", "--output", "o"),
        ("loadtest", "m", "--prompts", "p", "--output", "o", "--concurrency", "0"),
        ("evaluate", "alpaca-eval"),
        ("generate", "m", "--prompts", "p", "--output", "o", "--preset", "none"),
        ("run", "absent.yaml"),
    ],
)
def test_a_wrong_request_exits_with_2_and_one_error_object(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    result = run(*arguments, "--json")
    assert result.returncode == 2, result.stderr
    error = json_of(result)["error"]
    assert isinstance(error, dict)
    assert set(error) == {"kind", "message", "where", "got", "expected", "hint"}
    plain = called(capsys, *arguments)
    assert plain.returncode == 2
    assert plain.stderr.startswith("error: ")
    assert plain.stdout == ""
    assert "Traceback" not in plain.stderr


def test_the_hint_names_the_command_and_how_to_give_a_negative_number() -> None:
    hints = {}
    for arguments in (("extrapolate", "a", "b"), ("alpha", "set", "-0.5", "--url", "http://x")):
        error = json_of(run(*arguments, "--json"))["error"]
        assert isinstance(error, dict)
        hints[arguments[0]] = error["hint"]
    assert hints == {
        "extrapolate": "see `expo-ray extrapolate --help`",
        "alpha": "put -- before a negative number; see `expo-ray alpha set --help`",
    }


@pytest.mark.parametrize(
    ("arguments", "where"),
    [
        (("extrapolate", "a", "b"), "OUTPUT"),
        (("extrapolate", "a", "b", "c", "-a", "many"), "--alpha"),
        (("serve", "m", "--port", "0"), "--port"),
        (("generate", "m", "--prompt", "p"), "--prompt"),
    ],
)
def test_a_wrong_flag_is_named(
    arguments: tuple[str, ...], where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main.main([*arguments, "--json"])
    assert stop.value.code == 2
    assert json.loads(capsys.readouterr().out)["error"]["where"] == where


@pytest.mark.parametrize("flags", [(), ("--json",), ("-v",), ("--json", "-v")])
def test_a_failure_that_nobody_foresaw_is_told_like_any_other(
    flags: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: str) -> None:
        raise KeyError("lost")

    monkeypatch.setattr(extrapolation, "inspect_checkpoint", fail)
    with pytest.raises(SystemExit) as stop:
        main.main(["inspect", "m", *flags])
    assert stop.value.code == 1
    said = capsys.readouterr()
    if "--json" in flags:
        error = json.loads(said.out)["error"]
        assert (error["kind"], error["got"]) == ("internal", "KeyError: 'lost'")
        assert "-v" in error["hint"] and error["where"]
    else:
        assert said.out == ""
        assert "error: an unexpected error" in said.err
    assert ("Traceback" in said.err) == ("-v" in flags)


def every_command() -> list[tuple[str, ...]]:
    """Return the words of each command, those of groups as well."""
    tree = typer.main.get_command(main.app)
    words = []
    for name, command in tree.commands.items():  # type: ignore[attr-defined]
        inner = getattr(command, "commands", None)
        words += [(name, each) for each in inner] if inner else [(name,)]
    return words


def test_the_tree_of_commands_is_walked() -> None:
    assert {("extrapolate",), ("doctor",), ("alpha", "set"), ("evaluate", "self-test")} <= set(
        every_command()
    )


@pytest.mark.parametrize("command", every_command(), ids=" ".join)
def test_every_command_explains_itself_with_an_example(command: tuple[str, ...]) -> None:
    result = CliRunner().invoke(main.app, [*command, "--help"])
    assert result.exit_code == 0
    assert "Example" in result.stdout
    for flag in ("--json", "--verbose", "--quiet"):
        assert flag in result.stdout


def test_extrapolate_verify_inspect_diagnose(
    pico_pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    initial, aligned = pico_pair
    output = tmp_path / "out"
    inline = ("--address", "inline", "--json")
    planned = json_of(
        called(capsys, "extrapolate", initial, aligned, output, "-a", "0.5", "--dry-run", *inline)
    )
    plan = planned["plan"]
    assert isinstance(plan, dict)
    assert plan["bytes_in"] > plan["bytes_out"] > 0
    assert not output.exists()
    written = json_of(run("extrapolate", initial, aligned, output, "-a", "0.5", *inline))
    assert (output / "expo_ray.json").exists()
    [checkpoint] = written["outputs"]  # type: ignore[misc]
    verified = json_of(called(capsys, "verify", output, *inline))
    assert verified["weights_digest"] == checkpoint["weights_digest"]
    assert json_of(called(capsys, "inspect", output, "--json"))["num_parameters"]
    assert json_of(called(capsys, "diagnose", initial, aligned, *inline))["fit"] is True
    human = run("inspect", output)
    assert human.returncode == 0
    assert "parameters" in human.stdout


def test_a_flipped_bit_is_found(pico_pair: tuple[Path, Path], tmp_path: Path) -> None:
    initial, aligned = pico_pair
    output = tmp_path / "out"
    extrapolation.extrapolate(initial, aligned, output, alpha=0.5, address="inline")
    shard = sorted(output.glob("*.safetensors"))[0]
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    result = run("verify", output, "--address", "inline", "--json")
    assert result.returncode == 1
    assert shard.name in json.dumps(json_of(result))


def test_a_wrong_pair_leaves_nothing_behind(pico_pair: tuple[Path, Path], tmp_path: Path) -> None:
    output = tmp_path / "out"
    result = run(
        "extrapolate", tmp_path / "absent", pico_pair[1], output, "--alpha", "0.5", "--json"
    )
    assert result.returncode == 2
    assert not output.exists()


@pytest.mark.parametrize(
    ("number", "code", "words", "flags"),
    [
        (signal.SIGINT, 130, "interrupted", ()),
        (signal.SIGTERM, 143, "stopped by SIGTERM", ("--json",)),
    ],
)
def test_a_stopped_command_says_how_to_go_on(
    number: int, code: int, words: str, flags: tuple[str, ...]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60)
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        command = [str(EXPO_RAY), "alpha", "show", "--url", url, *flags]
        with subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=interruptible,
        ) as process:
            connection, _ = server.accept()  # the command waits for an answer from now on
            with connection:
                process.send_signal(number)
                stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == code
    hint = "`expo-ray alpha show` tells what is served now"
    assert stderr == f"{words}; {hint}\n"
    told = [json.loads(line)["error"] for line in stdout.splitlines()]
    assert [(error["kind"], error["message"]) for error in told] == [("stopped", words)] * len(
        flags
    )


def test_sigterm_while_ray_works_exits_with_143(tmp_path: Path, ray_cluster: str) -> None:
    before = {f"layers.{i}.w": noise((1000, 500), torch.bfloat16, i) for i in range(60)}
    pair = (
        write(tmp_path / "i", before),
        write(tmp_path / "a", {n: 2 * t for n, t in before.items()}),
    )
    out = tmp_path / "out"
    command = [str(EXPO_RAY), "extrapolate", *map(str, pair), str(out), "--alpha", "0.3"]
    command += ["--max-shard-size", "1MB", "--address", ray.get_runtime_context().gcs_address]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        # Progress decides, not the clock: some shards are done, not all.
        while process.poll() is None and not list(out.glob("*.safetensors")):
            time.sleep(0.005)
        process.send_signal(signal.SIGTERM)
        stderr = process.communicate(timeout=120)[1]
    assert process.returncode == 143, stderr
    assert stderr.endswith("stopped by SIGTERM; run the same command again to continue\n")
    assert not (out / "expo_ray.json").exists()
