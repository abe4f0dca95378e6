"""ray up, Slurm and the local cluster: checked by Ray's own parsers, run where that is cheap."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import start
from ray.scripts.symmetric_run import curate_and_validate_ray_start_args, symmetric_run

from tests.clusters.image import missing_packages

ROOT = Path(__file__).resolve().parents[2]
CLUSTERS = ROOT / "clusters"
LOCAL = CLUSTERS / "local" / "three_nodes.sh"
SLURM = CLUSTERS / "slurm" / "extrapolate.sbatch"
AWS = CLUSTERS / "ray-up" / "aws.yaml"
RAY_START_FLAGS = {flag for parameter in start.params for flag in parameter.opts}
# Long options of sbatch(1) that concern where and how a job runs.
SBATCH_OPTIONS = {
    "account", "constraint", "cpus-per-task", "error", "exclusive", "gpus-per-node", "job-name",
    "mem", "nodes", "ntasks-per-node", "output", "partition", "qos", "requeue", "signal", "time",
}  # fmt: skip


def launchers() -> list[Path]:
    return sorted(p for p in CLUSTERS.rglob("*") if p.is_file() and p.name != "README.md")


@pytest.mark.parametrize("path", launchers(), ids=lambda path: path.name)
def test_every_launcher_begins_with_what_one_must_know(path: Path) -> None:
    header = path.read_text(encoding="utf-8").split("\n\n")[0]
    for word in ("nodes ", "GPUs ", "image ", "edit ", "run "):
        assert re.search(rf"^# {word}", header, flags=re.MULTILINE), word
    assert path.suffix != ".py"
    assert f"`{path.relative_to(CLUSTERS)}`" in (CLUSTERS / "README.md").read_text()


@pytest.mark.parametrize("path", [LOCAL, SLURM], ids=lambda path: path.name)
def test_scripts_are_valid_bash(path: Path) -> None:
    subprocess.run(["bash", "-n", str(path)], check=True)


@pytest.mark.parametrize("path", [LOCAL, AWS], ids=lambda path: path.name)
def test_flags_of_ray_start_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8").replace("\\\n", " ").replace("\n    --", " --")
    calls = re.findall(r"^(?!#).*(?:ray start|start_node) (.*)$", text, flags=re.MULTILINE)
    flags = {flag for call in calls for flag in re.findall(r"--[a-z-]+", call)}
    assert len(flags) >= 3
    assert flags <= RAY_START_FLAGS


def test_ray_up_takes_the_aws_configuration() -> None:
    config = yaml.safe_load(AWS.read_text(encoding="utf-8"))
    validate_config(prepare_config(config))
    head = config["available_node_types"][config["head_node_type"]]
    assert head["resources"]["CPU"] == 0
    ray_pin = re.search(r"^ray==(\S+)", (ROOT / "constraints.txt").read_text(), flags=re.M)
    assert ray_pin and config["docker"]["image"] == f"rayproject/ray:{ray_pin[1]}-py311"


@pytest.mark.parametrize("change", [{"max_worker": 8}, {"head_node_type": "haed"}])
def test_ray_up_refuses_a_wrong_configuration(change: dict[str, object]) -> None:
    config = {**yaml.safe_load(AWS.read_text(encoding="utf-8")), **change}
    with pytest.raises(Exception, match=r"max_worker|head_node_type"):
        validate_config(prepare_config(config))


def test_packages_of_ray_up_are_pinned_as_in_the_constraints() -> None:
    config = yaml.safe_load(AWS.read_text(encoding="utf-8"))
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = {line.split("==")[0].lower(): line.split("==")[1] for line in lines if "==" in line}
    [install] = config["setup_commands"]
    for requirement in install.removeprefix("pip install ").split():
        package, version = requirement.split("==")
        assert pins[package.lower()].split("+")[0] == version
    assert missing_packages(install.removeprefix("pip install ").split(), "lab") == set()


def sbatch_directives() -> dict[str, str]:
    lines = SLURM.read_text(encoding="utf-8").splitlines()
    first_command = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    directives = {}
    for number, line in enumerate(lines):
        if line.startswith("#SBATCH"):
            assert number < first_command, "sbatch ignores directives after the first command"
            name, _, value = line.removeprefix("#SBATCH --").partition("=")
            directives[name] = value
    return directives


def test_sbatch_directives() -> None:
    directives = sbatch_directives()
    assert directives.keys() <= SBATCH_OPTIONS
    assert directives["ntasks-per-node"] == "1", "symmetric-run starts one Ray node per task"
    assert int(directives["nodes"]) > 1
    assert re.fullmatch(r"\d\d:\d\d:\d\d", directives["time"])


def test_the_slurm_job_calls_symmetric_run_as_ray_wants_it(tmp_path: Path) -> None:
    # Slurm itself is not here: stand-ins for its two commands show what it would be asked to run.
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "activate").touch()
    record = tmp_path / "arguments"
    stand_ins = {
        "srun": f'printf "%s\\n" "$RAY_AUTH_MODE" "${{#RAY_AUTH_TOKEN}}" "$@" > {record}',
        "scontrol": 'echo "node-a"; echo "node-b"',
    }
    for name, body in stand_ins.items():
        file = tmp_path / name
        file.write_text(f"#!/bin/sh\n{body}\n")
        file.chmod(file.stat().st_mode | stat.S_IXUSR)
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_SUBMIT_DIR": str(tmp_path),
        "SLURM_JOB_ID": "123456", "SLURM_JOB_NODELIST": "node-[a-b]", "SLURM_JOB_NUM_NODES": "2",
        "SLURM_CPUS_ON_NODE": "16",
    }  # fmt: skip
    subprocess.run(["bash", str(SLURM)], check=True, env=environment, timeout=30)
    mode, token_length, kill, *command = record.read_text().splitlines()
    assert (mode, token_length, kill) == ("token", "64", "--kill-on-bad-exit=1")
    assert command[:2] == ["ray", "symmetric-run"]
    separator = command.index("--")
    options = command[2:separator]
    context = symmetric_run.make_context("symmetric-run", list(options), resilient_parsing=True)
    assert context.params["address"] == "node-a:23456"
    assert context.params["min_nodes"] == 2
    rest = curate_and_validate_ray_start_args(options)
    assert {word for word in rest if word.startswith("--")} <= RAY_START_FLAGS
    entry = command[separator + 1 :]
    assert entry[:2] == ["python", "pipelines/run.py"]
    assert all((ROOT / word).is_file() for word in entry[1:3])
    assert entry[3:] == ["--set", f"output={tmp_path}/runs/slurm"]


def test_the_local_cluster_needs_a_command() -> None:
    finished = subprocess.run([str(LOCAL)], capture_output=True, text=True, timeout=30)
    assert finished.returncode == 2
    assert finished.stderr.startswith("usage:")


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_local_cluster_has_three_nodes_and_leaves_none(tmp_path: Path) -> None:
    code = (
        "import ray; ray.init(); print(sorted(n['Resources'].get('CPU', 0) for n in ray.nodes()))\n"
        "f = ray.remote(lambda: ray.get_runtime_context().get_node_id())\n"
        "head = ray.get_runtime_context().get_node_id()\n"
        "assert head not in ray.get([f.remote() for _ in range(8)])\n"
        "raise SystemExit(7)\n"
    )
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {
        **os.environ, "PATH": path, "PORT": "6517", "TMPDIR": "/tmp", "CPUS_PER_NODE": "1",
    }  # fmt: skip
    environment.pop("RAY_ADDRESS", None)
    finished = subprocess.run(
        [str(LOCAL), sys.executable, "-c", code],
        capture_output=True, text=True, env=environment, timeout=380,
    )  # fmt: skip
    assert finished.returncode == 7, finished.stderr
    assert "[0, 1.0, 1.0]" in finished.stdout
    listing = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    left = [line for line in listing.stdout.splitlines() if re.search(r"[:= ]6517\b", line)]
    assert left == []
