"""Killed runs continue to the same bytes, and memory stays bounded. Real processes, real kills."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from expo_ray.checkpoints.formats.header import build_header
from expo_ray.errors import ShardError
from expo_ray.extrapolation import extrapolate, verify, writing
from expo_ray.extrapolation.planning.plan import build_plan
from expo_ray.extrapolation.shards import engine, receipts
from expo_ray.extrapolation.shards.tasks import (
    BUFFER_BUDGET_BYTES,
    COMPARE,
    MIN_CHUNK_BYTES,
    TASK_MEMORY_BYTES,
    WRITE,
    ShardOutput,
    ShardReceipt,
    shard_task,
)
from tests.extrapolation.drivers import OPTIONS, start
from tests.extrapolation.synthetic import file_digests, noise, write


def synthetic_pair(folder: Path, num_tensors: int = 24) -> tuple[Path, Path]:
    before = {f"layers.{i}.w": noise((1000, 500), torch.bfloat16, i) for i in range(num_tensors)}
    after = {name: t + t / 64 for name, t in before.items()}
    return write(folder / "initial", before, num_shards=3), write(folder / "aligned", after)


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_run_continues_to_the_same_bytes(tmp_path: Path, sent: signal.Signals) -> None:
    pair = synthetic_pair(tmp_path)
    extrapolate(*pair, tmp_path / "whole", **OPTIONS)
    out = tmp_path / "out"
    process = start(pair, out)
    receipts = out / "alpha-0.3" / ".expo_ray" / "receipts"
    # After some shards are done and before all are: progress decides, not the clock.
    while process.is_running() and len(list(receipts.glob("*.json"))) < 3:
        time.sleep(0.002)
    process.send_signal(sent)
    assert process.wait() == -sent
    assert not (out / "alpha-0.3" / "expo_ray.json").exists()
    assert not (out / "alpha-0.3" / "config.json").exists()
    # A shard counts as done when its receipt is there, just after the file.
    found = [r.parents[2] / r.stem for r in out.rglob("receipts/*.json")]
    done = {path: path.stat().st_mtime_ns for path in found}
    result = extrapolate(*pair, out, **OPTIONS)
    assert sum(o.num_shards_resumed for o in result.outputs) >= 3
    assert {p: p.stat().st_mtime_ns for p in done} == done
    for name in ("alpha-0.3", "alpha-1"):
        assert file_digests(out / name) == file_digests(tmp_path / "whole" / name)
        verify(out / name, address="inline")


@pytest.mark.parametrize("is_hidden", [False, True])
def test_a_flipped_bit_in_a_finished_shard_is_not_resumed(
    pico_pair: tuple[Path, Path], tmp_path: Path, is_hidden: bool
) -> None:
    options = {"alpha": 0.3, "max_shard_size": "20KB", "address": "inline"}
    extrapolate(*pico_pair, tmp_path / "whole", **options)
    out = tmp_path / "out"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ShardError, match="the test"):
        patch.setattr(writing, "assemble", _stop)
        extrapolate(*pico_pair, out, **options)
    files = sorted(out.glob("*.safetensors"))
    for file in files:
        os.utime(file)  # as a copy of the folder would
    data = bytearray(files[1].read_bytes())
    data[-1] ^= 1
    files[1].write_bytes(data)
    if is_hidden:
        # Between claim and assembly: the receipts were read before.
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("expo_ray.extrapolation.outputs.targets.read_receipt", _trusting)
            with pytest.raises(ShardError, match="changed while others were written") as caught:
                extrapolate(*pico_pair, out, **options)
        assert str(caught.value.where) == str(files[1])
    result = extrapolate(*pico_pair, out, **options)
    assert result.outputs[0].num_shards_resumed == len(files) - 1
    assert file_digests(out) == file_digests(tmp_path / "whole")


def _stop(*_: object, **__: object) -> str:
    raise ShardError("stopped by the test")


def _trusting(folder: Path, name: str, plan_digest: str) -> ShardReceipt | None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(receipts, "is_as_written", lambda *_: True)
        return receipts.read_receipt(folder, name, plan_digest)


def test_an_unfinished_result_of_another_plan_is_refused(tmp_path: Path) -> None:
    from expo_ray.errors import ConfigError

    pair = synthetic_pair(tmp_path, num_tensors=8)
    out = tmp_path / "out" / "alpha-0.3"
    process = start(pair, tmp_path / "out")
    while process.is_running() and not list((out / ".expo_ray").glob("receipts/*")):
        time.sleep(0.002)
    process.kill()
    process.wait()
    with pytest.raises(ConfigError, match="unfinished result of another plan"):
        extrapolate(*pair, out, alpha=0.5, address="inline")
    extrapolate(*pair, out, alpha=0.5, address="inline", overwrite=True)
    verify(out, address="inline")


# numba brings 160 MiB of LLVM, of which the kernel maps as much as lies in large pages: all of it
# after an installation, half of it later. Imported before, that is no memory of the work.
MEMORY_SCRIPT = """
import json, sys
import torch
from expo_ray.extrapolation import extrapolate
import expo_ray.extrapolation.shards.attempts, expo_ray.extrapolation.job
import huggingface_hub.repocard, numba, transformers
from tests.peak_memory import peak_bytes
before = peak_bytes()
alphas = [0.1 * i for i in range(1, int(sys.argv[4]) + 1)]
result = extrapolate(*sys.argv[1:4], alpha=alphas, address="inline")
print(json.dumps({"above_imports": peak_bytes() - before, "bytes_read": result.bytes_read}))
"""


@pytest.mark.parametrize("num_outputs", [1, 16, 200, 500])
@pytest.mark.parametrize("mode", [WRITE, COMPARE])
def test_buffers_stay_in_their_budget_whatever_the_number_of_alphas(
    pico_pair: tuple[Path, Path], num_outputs: int, mode: str
) -> None:
    plan = build_plan(*pico_pair)
    outputs = (ShardOutput(alpha=1, folder="out", plan_digest=""),) * num_outputs
    task = shard_task(plan, plan.shards[0], mode, outputs)
    chunk_bytes, num_slots = engine._buffers(task)
    per_chunk = 2 + num_outputs * (2 if mode == COMPARE else 1)
    assert num_slots >= 1
    most = max(BUFFER_BUDGET_BYTES, MIN_CHUNK_BYTES * per_chunk)
    assert chunk_bytes * num_slots * per_chunk <= most


@pytest.mark.parametrize("num_alphas", [1, 3])
def test_memory_is_bounded_whatever_the_size_of_a_tensor(tmp_path: Path, num_alphas: int) -> None:
    num_rows, num_columns = 4000, 40_000
    size = num_rows * num_columns * 2
    assert size > 300_000_000 > TASK_MEMORY_BYTES
    block = noise((1 << 20,), torch.bfloat16, 1)
    for name, factor in (("initial", 1.0), ("aligned", 1.25)):
        folder = write(tmp_path / name, {"placeholder": torch.ones(1)})
        header = build_header([("w", "BF16", (num_rows, num_columns))])
        raw = (block * factor).view(torch.uint8).numpy().tobytes()
        with (folder / "model.safetensors").open("wb") as file:
            file.write(header)
            left = size
            while left:
                left -= file.write(raw[:left])
    command = [sys.executable, "-c", MEMORY_SCRIPT]
    command += [str(tmp_path / n) for n in ("initial", "aligned", "out")] + [str(num_alphas)]
    done = subprocess.run(command, capture_output=True, check=True, text=True, timeout=170)
    facts = json.loads(done.stdout.splitlines()[-1])
    assert facts["bytes_read"] == 2 * size
    # The buffers alone are more than the lower limit: the measurement sees them.
    assert BUFFER_BUDGET_BYTES // 2 < facts["above_imports"] < TASK_MEMORY_BYTES
    for path in tmp_path.rglob("*.safetensors"):
        path.unlink()
