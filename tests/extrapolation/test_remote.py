"""Inputs and outputs away from the disk: an object store, the Hub. Real servers, real protocols."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from expo_ray.checkpoints import open_checkpoint
from expo_ray.checkpoints.storages import s3_client
from expo_ray.checkpoints.storages.part_upload import MAX_STREAMS, MIN_PART_BYTES
from expo_ray.checkpoints.storages.remote_path import RemotePath
from expo_ray.errors import CheckpointError, ConfigError, ShardError, VerifyError
from expo_ray.extrapolation import extrapolate, inspect_checkpoint, job, verify, writing
from expo_ray.extrapolation.outputs import assembly, work_folder
from expo_ray.extrapolation.planning.plan import build_plan
from expo_ray.extrapolation.shards import engine
from expo_ray.extrapolation.shards.tasks import TASK_MEMORY_BYTES, ShardReport, ShardTask
from tests.checkpoints.hub_server import HubServer, hub_server
from tests.checkpoints.s3_server import (
    BUCKET,
    FailingProxy,
    client,
    objects,
    settings,
    upload,
    use,
)
from tests.extrapolation.synthetic import IDENTITY_FILES, noise, write
from tests.extrapolation.test_faults import MEMORY_SCRIPT

Pair = tuple[Path, Path]
MAIN = "from expo_ray.cli.main import main; main()"
OPTIONS = {"max_shard_size": "20KB", "address": "inline"}


@pytest.fixture(scope="module")
def reference(pico_pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run from disk to disk writes."""
    folder = tmp_path_factory.mktemp("reference") / "out"
    extrapolate(*pico_pair, folder, alpha=0.3, **OPTIONS)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in IDENTITY_FILES
    }


def stored(url: str, prefix: str) -> dict[str, bytes]:
    found = objects(url, prefix)
    return {name: data for name, data in found.items() if name not in IDENTITY_FILES}


def test_from_bucket_to_bucket_gives_the_bytes_of_a_disk(
    pico_pair: Pair, reference: Path, s3: str
) -> None:
    pair = [upload(s3, folder, f"e2e/{folder.name}") for folder in pico_pair]
    out = f"s3://{BUCKET}/e2e/out"
    result = extrapolate(*pair, out, alpha=0.3, **OPTIONS)
    assert result.loading is not None
    assert result.loading.status == "loads"
    assert result.outputs[0].path == out
    assert result.bytes_read == build_plan(*pico_pair).input_bytes
    assert stored(s3, "e2e/out") == contents(reference)
    assert client(s3).list_multipart_uploads(Bucket=BUCKET).get("Uploads", []) == []
    record = json.loads(objects(s3, "e2e/out")["expo_ray.json"])
    assert record["aligned"]["uri"] == pair[1]
    assert all(entry["etag"] for entry in record["aligned"]["files"])
    for secret in ("key-of-tests", "secret-of-tests"):
        assert secret not in json.dumps(record)
    assert verify(out, address="inline").recomputed
    assert verify(out, recompute=False).weights_digest == record["weights_digest"]
    assert inspect_checkpoint(out).as_dict()["extrapolated"]["alpha"] == 0.3
    again = extrapolate(*pair, out, alpha=0.3, **OPTIONS)
    assert (again.outputs[0].status, again.bytes_read) == ("skipped", 0)
    with pytest.raises(ConfigError, match="another plan"):
        extrapolate(*pair, out, alpha=0.4, **OPTIONS)
    with pytest.raises(ConfigError, match="lies in aligned"):
        extrapolate(*pair, pair[1] + "/out", alpha=0.3, **OPTIONS)
    replaced = extrapolate(*pair, out, alpha=0.4, overwrite=True, **OPTIONS)
    assert replaced.outputs[0].status == "written"
    name = open_checkpoint(out).files[0]
    data = bytearray(objects(s3, "e2e/out")[name])
    data[-1] ^= 1
    client(s3).put_object(Bucket=BUCKET, Key=f"e2e/out/{name}", Body=bytes(data))
    with pytest.raises(VerifyError, match=name):
        verify(out, address="inline")


def test_a_failed_run_leaves_no_upload_and_continues(
    pico_pair: Pair, reference: Path, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = f"s3://{BUCKET}/resume/out"
    finish = engine.RemoteShardWriter.finish
    num_finished = 0

    def break_third(self: engine.RemoteShardWriter, tensors: dict[str, Any]) -> object:
        nonlocal num_finished
        num_finished += 1
        if num_finished == 3:
            raise ShardError("stopped by the test")
        return finish(self, tensors)

    with monkeypatch.context() as patch:
        patch.setattr(engine.RemoteShardWriter, "finish", break_third)
        with pytest.raises(ShardError, match="stopped by the test"):
            extrapolate(*pico_pair, out, alpha=0.3, **OPTIONS)
    left = objects(s3, "resume/out")
    assert client(s3).list_multipart_uploads(Bucket=BUCKET).get("Uploads", []) == []
    assert not [name for name in left if name.endswith(".tmp")]
    assert "config.json" not in left
    assert "expo_ray.json" not in left
    with pytest.raises(CheckpointError, match="unfinished"):
        open_checkpoint(out)
    result = extrapolate(*pico_pair, out, alpha=0.3, **OPTIONS)
    assert (result.outputs[0].status, result.outputs[0].num_shards_resumed) == ("resumed", 2)
    assert stored(s3, "resume/out") == contents(reference)


@pytest.mark.parametrize("num_alphas", [1, MAX_STREAMS + 1])
def test_the_upload_of_a_shard_that_fails_is_aborted_and_never_completed(
    pico_pair: Pair, s3_url: str, monkeypatch: pytest.MonkeyPatch, num_alphas: int
) -> None:
    def break_off(self: engine.RemoteShardWriter, tensors: dict[str, Any]) -> object:
        raise ShardError("stopped by the test")

    monkeypatch.setattr(engine.RemoteShardWriter, "finish", break_off)
    proxy = FailingProxy(s3_url, every=0)
    try:
        use(monkeypatch, proxy.url)
        with pytest.raises(ShardError, match="stopped by the test"):
            alphas = [0.3, *range(1, num_alphas)]
            extrapolate(*pico_pair, f"s3://{BUCKET}/aborted/out", alpha=alphas, **OPTIONS)
    finally:
        proxy.close()
    ends = [line for line in proxy.log if ".tmp?" in line and "uploadId=" in line]
    ended = [line.split()[0] for line in ends if not line.startswith("PUT")]
    assert ended == ["DELETE"] * num_alphas
    assert client(s3_url).list_multipart_uploads(Bucket=BUCKET).get("Uploads", []) == []
    assert not [name for name in objects(s3_url, "aborted/out") if name.endswith(".tmp")]


def test_many_alphas_into_a_bucket_stay_inside_the_memory_of_a_worker(
    tmp_path: Path, s3: str
) -> None:
    before = {"w": noise((3000, 2000), torch.bfloat16, 1)}
    pair = [write(tmp_path / "initial", before)]
    pair.append(write(tmp_path / "aligned", {"w": before["w"] * 1.25}))
    out = f"s3://{BUCKET}/memory/out"
    command = [sys.executable, "-c", MEMORY_SCRIPT, *map(str, pair), out, "16"]
    environment = {**os.environ, **settings(s3)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=170, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    used = json.loads(done.stdout.splitlines()[-1])["above_imports"]
    alphas = [0.1 * i for i in range(1, 17)]
    planned = extrapolate(*pair, out + "2", alpha=alphas, dry_run=True, **OPTIONS)
    assert planned.plan["task_memory_bytes"] == TASK_MEMORY_BYTES
    assert 16 * MIN_PART_BYTES < used < TASK_MEMORY_BYTES
    first = client(s3).head_object(Bucket=BUCKET, Key="memory/out/alpha-0.1/model.safetensors")
    assert first["ContentLength"] > 2 * MIN_PART_BYTES


def test_without_boto3_the_plan_declares_what_pyarrow_takes(
    pico_pair: Pair, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("expo_ray.checkpoints.storages.part_upload.s3_client", lambda: None)
    alphas = [0.1 * i for i in range(1, 17)]
    out = f"s3://{BUCKET}/plain/out"
    planned = extrapolate(*pico_pair, out, alpha=alphas, dry_run=True, **OPTIONS)
    assert TASK_MEMORY_BYTES < planned.plan["task_memory_bytes"] < 2 * TASK_MEMORY_BYTES


def test_many_alphas_into_a_bucket_give_the_bytes_of_a_disk(
    pico_pair: Pair, reference: Path, s3: str
) -> None:
    out = f"s3://{BUCKET}/many/out"
    extrapolate(*pico_pair, out, alpha=[0.3, *range(1, MAX_STREAMS + 1)], **OPTIONS)
    assert stored(s3, "many/out/alpha-0.3") == contents(reference)


def test_a_run_that_was_taken_over_publishes_nothing(
    pico_pair: Pair, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = f"s3://{BUCKET}/fence/out"
    run_shard = engine.run_shard

    def take_over(task: ShardTask, on_bytes: object = None) -> ShardReport:
        run = {"plan_digest": "other", "run_token": "other"}
        key = "fence/out/.expo_ray/run.json"
        client(s3).put_object(Bucket=BUCKET, Key=key, Body=json.dumps(run))
        return run_shard(task)

    monkeypatch.setattr("expo_ray.extrapolation.shards.attempts.run_shard", take_over)
    with pytest.raises(ShardError, match="another run has taken over"):
        extrapolate(*pico_pair, out, alpha=0.3, **OPTIONS)
    assert not [name for name in objects(s3, "fence/out") if name.endswith("safetensors")]


@pytest.mark.parametrize(
    ("module", "step"),
    [
        (writing, "assemble"),
        (assembly, "_write"),
        (assembly, "_check_shards"),
        (assembly, "atomic_write_parts"),
        (writing, "remove_work_folder"),
    ],
)
def test_a_run_that_begins_while_another_completes_the_folder_keeps_it(
    pico_pair: Pair, s3: str, monkeypatch: pytest.MonkeyPatch, module: Any, step: str
) -> None:
    """There is no lock on a bucket: the token decides who may go on at every step."""
    out = f"s3://{BUCKET}/two-runs-{step}/out"
    real = getattr(module, step)
    is_other = False

    def begin_another(*args: Any, **kwargs: Any) -> Any:
        nonlocal is_other
        if not is_other:
            is_other = True
            extrapolate(*pico_pair, out, alpha=0.4, overwrite=True, **OPTIONS)
        return real(*args, **kwargs)

    monkeypatch.setattr(module, step, begin_another)
    if step == "remove_work_folder":
        # The first run was done, and the second replaced its result.
        extrapolate(*pico_pair, out, alpha=0.3, **OPTIONS)
    else:
        with pytest.raises(ShardError, match="another run has taken over"):
            extrapolate(*pico_pair, out, alpha=0.3, **OPTIONS)
    assert is_other
    if step == "atomic_write_parts":
        # The older record came to lie over the newer one: rather none than that of other weights.
        assert "expo_ray.json" not in objects(s3, f"two-runs-{step}/out")
        extrapolate(*pico_pair, out, alpha=0.4, overwrite=True, **OPTIONS)
    assert json.loads(objects(s3, f"two-runs-{step}/out")["expo_ray.json"])["alpha"] == 0.4
    assert verify(out, address="inline").recomputed


KILLED = """
import os, signal, sys
from expo_ray.extrapolation import extrapolate
from expo_ray.extrapolation.shards import engine

finish, num_finished = engine.RemoteShardWriter.finish, 0

def kill_third(self, tensors):
    global num_finished
    num_finished += 1
    if num_finished == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return finish(self, tensors)

engine.RemoteShardWriter.finish = kill_third
extrapolate(*sys.argv[1:], alpha=0.3, max_shard_size="20KB", address="inline")
"""


@pytest.fixture
def uploads(s3: str) -> Iterator[Callable[[], set[str]]]:
    """The keys of uploads that nobody ended; those that a test leaves are ended after it."""

    def unfinished() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = (
            client(s3).list_multipart_uploads(Bucket=BUCKET).get("Uploads", [])
        )
        return found

    yield lambda: {upload["Key"] for upload in unfinished()}
    for left in unfinished():
        client(s3).abort_multipart_upload(Bucket=BUCKET, Key=left["Key"], UploadId=left["UploadId"])


def test_the_upload_of_a_killed_process_is_aborted_by_the_rerun_and_no_other(
    pico_pair: Pair, reference: Path, s3: str, uploads: Callable[[], set[str]]
) -> None:
    out = f"s3://{BUCKET}/killed/out"
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, *map(str, pico_pair), out],
        timeout=120,
        env={**os.environ, **settings(s3)},
    )
    assert killed.returncode == -signal.SIGKILL
    (left,) = uploads()
    assert left.startswith("killed/out/.expo_ray/model-00003-of-")
    # No half object under any name: two whole shards, and nothing that reads as a checkpoint.
    found = stored(s3, "killed/out")
    weights = {name for name in found if name.endswith(".safetensors")}
    assert len(weights) == 2
    assert all(found[name] == contents(reference)[name] for name in weights)
    assert not [name for name in found if name.endswith(".tmp")]
    with pytest.raises(CheckpointError, match="unfinished"):
        open_checkpoint(out)
    others = {
        "killed/out2/model.safetensors",
        "killed/out/nested/.expo_ray/model.safetensors.1.tmp",
        "killed/config.json",
    }
    stale = {"killed/out/config.json", "killed/out/.expo_ray/receipts/a.json"}
    for key in others | stale:
        client(s3).create_multipart_upload(Bucket=BUCKET, Key=key)
    result = extrapolate(*pico_pair, out, alpha=0.3, **OPTIONS)
    assert (result.outputs[0].status, result.outputs[0].num_shards_resumed) == ("resumed", 2)
    assert stored(s3, "killed/out") == contents(reference)
    assert uploads() == others


def test_uploads_that_begin_once_the_folder_is_taken_over_are_left(
    pico_pair: Pair, s3: str, uploads: Callable[[], set[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RemotePath(f"s3://{BUCKET}/living/out")
    write_json = work_folder.atomic_write_json

    def newer_run(path: RemotePath, data: object) -> None:
        write_json(path, data)
        write_json(path, {"plan_digest": "digest", "run_token": "newer"})
        key = "living/out/.expo_ray/model.safetensors.1.tmp"
        client(s3).create_multipart_upload(Bucket=BUCKET, Key=key)

    monkeypatch.setattr(work_folder, "atomic_write_json", newer_run)
    with pytest.raises(ShardError, match="taken over"):
        work_folder.begin_output(folder, "digest", "token", overwrite=False)
    assert uploads() == {"living/out/.expo_ray/model.safetensors.1.tmp"}
    monkeypatch.undo()
    use(monkeypatch, s3)
    work_folder.begin_output(folder, "digest", "another", overwrite=False)
    assert uploads() == set()


def test_every_29th_request_may_fail(
    pico_pair: Pair, reference: Path, s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = [upload(s3_url, folder, f"flaky/{folder.name}") for folder in pico_pair]
    proxy = FailingProxy(s3_url, every=29)
    try:
        use(monkeypatch, proxy.url)
        extrapolate(*pair, f"s3://{BUCKET}/flaky/out", alpha=0.3, **OPTIONS)
    finally:
        proxy.close()
    assert proxy.num_failed > 5
    assert stored(s3_url, "flaky/out") == contents(reference)


def test_a_shard_that_s3_cannot_move_at_once_is_copied_in_parts(
    pico_pair: Pair, reference: Path, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_client, "MAX_COPY_BYTES", 10_000)
    copied: list[str] = []
    unlink = RemotePath.unlink

    def seen(self: RemotePath, missing_ok: bool = False) -> None:
        copied.append(self.name)
        unlink(self, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(RemotePath, "unlink", seen)
        patch.setattr(RemotePath, "replace", None)
        extrapolate(*pico_pair, f"s3://{BUCKET}/parts/out", alpha=0.3, **OPTIONS)
    assert any(name.startswith("model-00001") for name in copied)
    assert stored(s3, "parts/out") == contents(reference)
    assert client(s3).list_multipart_uploads(Bucket=BUCKET).get("Uploads", []) == []
    # Without boto3 it is refused, before any work.
    monkeypatch.setattr(s3_client, "_client_of", lambda *_: None)
    with pytest.raises(ConfigError, match=r"(?s)bigger than what S3 moves.*expo-ray\[s3\]"):
        extrapolate(*pico_pair, f"s3://{BUCKET}/big/out", alpha=0.3, **OPTIONS)
    with pytest.raises(ConfigError, match="kind of output is not supported"):
        extrapolate(*pico_pair, "hf://owner/model", alpha=0.3, **OPTIONS)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, pico_pair: Pair) -> Iterator[HubServer]:
    with hub_server(monkeypatch) as running:
        running.add("owner/initial", pico_pair[0])
        running.add("owner/aligned", pico_pair[1])
        yield running


def test_hub_ids_are_pinned_at_planning_and_nothing_is_fetched_whole(
    hub: HubServer, reference: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    result = extrapolate("owner/initial", "hf://owner/aligned", out, alpha=0.3, **OPTIONS)
    assert contents(out) == contents(reference)
    assert result.loading is not None
    assert result.loading.status == "loads"
    record = json.loads((out / "expo_ray.json").read_text())
    commits = hub.commits
    assert record["initial"]["uri"] == f"hf://owner/initial@{commits['owner/initial']}"
    assert {entry["commit"] for entry in record["aligned"]["files"]} == {commits["owner/aligned"]}
    card = (out / "README.md").read_text()
    assert "- owner/aligned\n- owner/initial\n" in card
    assert "token_of_tests" not in json.dumps(record) + card
    weights = [wanted for method, path, wanted in hub.log if path.endswith(".safetensors")]
    assert all(w for (m, p, w) in hub.log if m == "GET" and p.endswith(".safetensors"))
    assert weights
    # The branch moves on; the recorded commit is what verify reads.
    hub.commits["owner/aligned"] = "f" * 40
    with pytest.raises(CheckpointError):
        verify(out, address="inline")
    hub.commits["owner/aligned"] = commits["owner/aligned"]


def test_a_missing_bucket_is_told(s3: str, pico_pair: Pair) -> None:
    with pytest.raises(CheckpointError, match="no such checkpoint folder"):
        job.extrapolate(pico_pair[0], "s3://no-such-bucket/x", "s3://b/out", alpha=1, **OPTIONS)
    with pytest.raises(ConfigError, match="output cannot be used"):
        job.extrapolate(*pico_pair, "s3://no-such-bucket/out", alpha=1, **OPTIONS)


@pytest.mark.slow
def test_the_command_runs_from_bucket_to_bucket_on_ray(
    pico_pair: Pair, reference: Path, s3_url: str
) -> None:
    pair = [upload(s3_url, folder, f"ray/{folder.name}") for folder in pico_pair]
    out = f"s3://{BUCKET}/ray/out"
    command = [sys.executable, "-c", MAIN, "extrapolate", *pair, out]
    command += ["--alpha", "0.3", "--max-shard-size", "20KB", "--address", "local", "--json"]
    environment = {**os.environ, **settings(s3_url)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=170, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout)["outputs"][0]["path"] == out
    assert stored(s3_url, "ray/out") == contents(reference)
    assert "of-tests" not in done.stdout + done.stderr
