"""The driver of very many tensors: what it computes, and what it holds in memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from expo_ray.extrapolation import extrapolate, inspect_checkpoint
from expo_ray.extrapolation.planning import plan
from tests.extrapolation.synthetic import write_experts

MIB = 1 << 20
NUM_TENSORS, NUM_FILES = 18_065, 62  # a fifth of the published checkpoint of 671B parameters


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("experts")
    size = {"num_tensors": NUM_TENSORS, "num_files": NUM_FILES}
    return write_experts(folder / "initial", **size), write_experts(folder / "aligned", **size)


def test_planning_looks_at_every_tensor_a_few_times_however_many_shards_there_are(
    experts: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = {"used_bytes": 0, "build_header": 0}
    for name in counts:
        real = getattr(plan, name)

        def counted(argument: object, *, name: str = name, real: object = real) -> object:
            counts[name] += 1
            return real(argument)  # type: ignore[operator]

        monkeypatch.setattr(plan, name, counted)
    options = {"alpha": 0.3, "max_shard_size": "75KB", "address": "inline"}
    result = extrapolate(*experts, tmp_path / "out", dry_run=True, **options)
    assert result.outputs[0].num_shards > 60
    assert counts["used_bytes"] <= 2 * NUM_TENSORS
    assert counts["build_header"] <= 2 * result.outputs[0].num_shards


DRIVER = """
import json, random, sys
from pathlib import Path

from expo_ray.extrapolation import job, writing
from expo_ray.extrapolation.shards.receipts import version_of
from expo_ray.extrapolation.shards.tasks import ShardReceipt, ShardReport, pack_tensors
from tests.peak_memory import peak_bytes

NUMBERS = ("initial_norm", "aligned_norm", "delta_norm", "cosine", "max_abs_delta",
           "max_abs_output", "share_lost_to_rounding", "num_elements")

def work(tasks, *, begin, **_):
    "What nodes do: files appear, and facts of all tensors come back."
    begin()
    reports = []
    for task in tasks:
        shard, output = task.shard, task.outputs[0]
        with open(f"{output.folder}/{shard.name}", "wb") as file:
            file.write(shard.header)
            file.truncate(shard.file_bytes)
        facts = {}
        for pair in shard.tensors:
            for name, dtype, shape in pair.outputs:
                statistics = {key: random.random() for key in NUMBERS}
                statistics |= {"identical": False, "num_moved": 1, "num_nonfinite": 0}
                facts[name] = {"dtype": dtype, "shape": list(shape), "statistics": statistics,
                               "digest": f"blake3:{random.getrandbits(256):064x}"}
        receipt = ShardReceipt(name=shard.name, plan_digest="", num_bytes=shard.file_bytes,
                               digest="blake3:" + "0" * 64, packed_tensors=pack_tensors(facts),
                               version=version_of(Path(output.folder), shard.name))
        reports.append(ShardReport(shard_name=shard.name, bytes_read=0, bytes_written=0,
                                   seconds=0.0, receipts=(receipt,)))
    return reports, None

writing.run_tasks = work
job.refuse_equal_weights = lambda pair: None
before = peak_bytes()
job.extrapolate(*sys.argv[1:4], alpha=0.3, max_shard_size="75KB")
added = peak_bytes() - before
print(json.dumps({"before": before, "added": added, "torch": "torch" in sys.modules}))
"""


def test_a_driver_holds_little_of_very_many_tensors(
    experts: tuple[Path, Path], tmp_path: Path
) -> None:
    command = [sys.executable, "-c", DRIVER, *map(str, experts), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    # Ray adds about 130 MiB: with all 90,325 tensors the driver stays below 500 MiB.
    assert found["before"] < 120 * MIB
    assert found["added"] * 5 < 250 * MIB
    assert not found["torch"]
    record = json.loads((tmp_path / "out" / "expo_ray.json").read_text())
    assert len(record["tensors"]) == NUM_TENSORS


WHOLE = """
import sys
from expo_ray.extrapolation import extrapolate
from tests.peak_memory import peak_bytes

if __name__ == "__main__":
    extrapolate(*sys.argv[1:4], alpha=0.3, max_shard_size="75KB", address="local")
    print(peak_bytes())
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_whole_run_of_90_000_tensors_on_ray_takes_a_driver_of_less_than_500_mib(
    tmp_path: Path,
) -> None:
    size = {"num_tensors": 90_325, "num_files": 311}
    pair = [
        write_experts(tmp_path / side, element=element, **size)
        for side, element in (("initial", b"\x00\x3f"), ("aligned", b"\x80\x3f"))
    ]
    script = tmp_path / "whole.py"
    script.write_text(WHOLE)
    command = [sys.executable, str(script), *map(str, pair), str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run(command, capture_output=True, text=True, timeout=850, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout.split()[-1]) < 500 * MIB
    assert inspect_checkpoint(tmp_path / "out").as_dict()["num_tensors"] == 90_325
