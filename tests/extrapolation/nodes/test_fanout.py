from __future__ import annotations

import errno
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from expo_ray.checkpoints import open_checkpoint
from expo_ray.errors import ShardError, VerifyError
from expo_ray.extrapolation import diagnose, extrapolate, verify
from expo_ray.extrapolation.nodes import batches, fanout
from expo_ray.extrapolation.planning.plan import build_plan
from expo_ray.extrapolation.shards.tasks import MEASURE, shard_task
from tests.extrapolation.synthetic import file_digests, noise, write

Pair = tuple[Path, Path]


class Recorder:
    def __init__(self) -> None:
        self.total: float | None = None
        self.done = 0.0

    def start(self, description: str, total: float | None = None, unit: str = "") -> Recorder:
        self.total = total
        return self

    def message(self, text: str) -> None:
        pass

    def advance(self, amount: float = 1) -> None:
        self.done += amount

    def close(self) -> None:
        pass


def test_progress_ends_at_its_total_where_the_sides_have_one_layout(tmp_path: Path) -> None:
    sides = []
    for seed, name in enumerate(("initial", "aligned", "base")):
        tensors = {"a": noise((8, 4), torch.bfloat16, seed), "b": noise((3,), torch.bfloat16, seed)}
        sides.append(write(tmp_path / name, tensors))
    initial, aligned, base = sides
    for onto in (None, base):
        progress = Recorder()
        options = {"alpha": 0.3, "onto": onto, "address": "inline", "progress": progress}
        result = extrapolate(initial, aligned, tmp_path / f"out-{onto is None}", **options)
        assert progress.done == progress.total == result.bytes_read


@pytest.mark.parametrize("batch_bytes", [40_000, 128 * 1024 * 1024])
def test_ray_and_inline_write_the_same_bytes(
    pico_pair: Pair,
    tmp_path: Path,
    ray_cluster: str,
    monkeypatch: pytest.MonkeyPatch,
    batch_bytes: int,
) -> None:
    monkeypatch.setattr(batches, "MIN_BATCH_BYTES", batch_bytes)
    options = {"alpha": [0.3, 1.0], "max_shard_size": "10KB"}
    progress = Recorder()
    extrapolate(*pico_pair, tmp_path / "inline", address="inline", **options)
    result = extrapolate(
        *pico_pair, tmp_path / "ray", address=ray_cluster, progress=progress, **options
    )
    assert result.num_tasks > 3
    assert result.loading is not None
    assert result.loading.status == "loads"
    assert progress.done == progress.total == result.bytes_read
    for name in ("alpha-0.3", "alpha-1"):
        assert file_digests(tmp_path / "ray" / name) == file_digests(tmp_path / "inline" / name)


def test_progress_never_passes_its_total_whatever_the_files_seem_to_hold(
    pico_pair: Pair, ray_cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "MIN_BATCH_BYTES", 40_000)
    plan = build_plan(*pico_pair, max_shard_size="10KB")
    tasks = [shard_task(plan, shard, MEASURE, ()) for shard in plan.shards]
    bar = Recorder()
    fanout.run_tasks(
        tasks,
        address=ray_cluster,
        advance=bar.advance,
        running_bytes=lambda: 2 * plan.input_bytes,
    )
    assert bar.done == plan.input_bytes


def test_verify_and_diagnose_run_on_ray(pico_pair: Pair, tmp_path: Path, ray_cluster: str) -> None:
    out = tmp_path / "out"
    extrapolate(*pico_pair, out, alpha=0.3, max_shard_size="20KB", address=ray_cluster)
    assert verify(out, address=ray_cluster).recomputed
    ref = open_checkpoint(out).tensors["model.norm.weight"]
    data = bytearray((out / ref.file).read_bytes())
    data[ref.offset_bytes] ^= 1
    (out / ref.file).write_bytes(data)
    with pytest.raises(VerifyError, match=r"model\.norm\.weight"):
        verify(out, address=ray_cluster)
    on_ray = diagnose(*pico_pair, address=ray_cluster).as_dict()
    assert on_ray == diagnose(*pico_pair, address="inline").as_dict()


def test_errors_of_a_task_arrive_whole_and_a_rerun_continues(
    pico_pair: Pair, tmp_path: Path, ray_cluster: str
) -> None:
    bad = Path(shutil.copytree(pico_pair[1], tmp_path / "bad"))
    ref = open_checkpoint(bad).tensors["model.norm.weight"]
    tensors = load_file(bad / ref.file)
    tensors[ref.name][0] = torch.inf
    save_file(tensors, bad / ref.file, metadata={"format": "pt"})
    options = {"alpha": 0.3, "address": ray_cluster, "max_shard_size": "20KB"}
    with pytest.raises(ShardError, match="not finite") as caught:
        extrapolate(pico_pair[0], bad, tmp_path / "out", **options)
    assert "model.norm.weight" in str(caught.value.where)
    assert not (tmp_path / "out" / "expo_ray.json").exists()
    result = extrapolate(pico_pair[0], bad, tmp_path / "out", allow_nonfinite=True, **options)
    assert result.outputs[0].status in ("resumed", "written")


def test_batches_hold_every_task_once(pico_pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = build_plan(*pico_pair, max_shard_size="5KB")
    tasks = [shard_task(plan, shard, MEASURE, ()) for shard in plan.shards]
    monkeypatch.setattr(batches, "MIN_BATCH_BYTES", 25_000)
    found = batches.batch_tasks(tasks)
    assert [i for batch in found for i in batch] == list(range(len(tasks)))
    assert 1 < len(found) < len(tasks)
    assert batches.batch_tasks([]) == []


@pytest.mark.parametrize(
    ("code", "words"), [(errno.EDQUOT, "disk is full"), (errno.EIO, "could not be read or written")]
)
def test_a_full_disk_is_named_whatever_call_found_it(
    pico_pair: Pair, code: int, words: str
) -> None:
    plan = build_plan(*pico_pair)
    task = shard_task(plan, plan.shards[0], MEASURE, ())
    error = fanout._os_error(task, OSError(code, "of fsync, which names no file"))
    assert words in error.message
    assert plan.shards[0].name in str(error.where)
    assert ("free some space" in str(error.hint)) == (code == errno.EDQUOT)
