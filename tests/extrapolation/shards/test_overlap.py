"""A task of an old run that was let pass, and publishes its shard when a newer run owns the folder.

The old task stops after its last look at the token, before it moves its file into place. Meanwhile
another run, with another alpha, takes the folder over; the old task goes on before that one's first
shard, or when all is done. Real tasks, on a disk and in a bucket.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from expo_ray.checkpoints.storages import s3_client
from expo_ray.checkpoints.storages.remote_path import any_path
from expo_ray.errors import ExpoError
from expo_ray.extrapolation import extrapolate, verify
from expo_ray.extrapolation.outputs import targets, work_folder
from expo_ray.extrapolation.outputs.work_folder import begin_output
from expo_ray.extrapolation.planning.plan import build_plan
from expo_ray.extrapolation.shards import remote_shard, shard_files
from expo_ray.extrapolation.shards.engine import run_shard
from expo_ray.extrapolation.shards.tasks import WRITE, ShardOutput, shard_task
from tests.checkpoints.s3_server import BUCKET, use

Pair = tuple[Path, Path]
MODULES = {"disk": shard_files, "s3": remote_shard, "s3, in parts": remote_shard}


@pytest.fixture(params=MODULES)
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param != "disk":
        use(monkeypatch, request.getfixturevalue("s3_url"))
    if request.param == "s3, in parts":
        monkeypatch.setattr(s3_client, "MAX_COPY_BYTES", 1)
    return str(request.param)


class OldTask:
    """A task of an older run, halted between its last look at the token and its publication."""

    def __init__(self, pair: Pair, out: str, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self._seen, self._go = threading.Event(), threading.Event()
        self.error: BaseException | None = None
        begin_output(any_path(out), "old", "old token", overwrite=False)
        plan = build_plan(*pair, max_shard_size="20KB")
        output = ShardOutput(alpha=9, folder=out, plan_digest="old", run_token="old token")
        self._task = shard_task(plan, plan.shards[0], WRITE, (output,))
        self.name = plan.shards[0].name
        check, looks = shard_files.check_token, iter((False, True))

        def halting(folder: Any, token: str) -> None:
            check(folder, token)
            if token == "old token" and next(looks, False):
                self._seen.set()
                assert self._go.wait(120)

        monkeypatch.setattr(MODULES[place], "check_token", halting)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        assert self._seen.wait(60)

    def _run(self) -> None:
        try:
            run_shard(self._task)
        except (ExpoError, OSError) as error:
            self.error = error

    def release(self) -> None:
        self._go.set()

    def go_on(self) -> None:
        self.release()
        self._thread.join(60)
        assert not self._thread.is_alive()


@pytest.mark.parametrize("moment", ["before the first shard", "after the last"])
@pytest.mark.parametrize("size", ["20KB", "1GB"])
def test_what_an_old_task_publishes_late_is_in_no_complete_checkpoint(
    pico_pair: Pair,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    moment: str,
    size: str,
) -> None:
    out = str(tmp_path / "out")
    if place != "disk":
        out = f"s3://{BUCKET}/{abs(hash((place, moment, size)))}"
    (tmp_path / "out" / ".expo_ray").mkdir(parents=True)
    old = OldTask(pico_pair, out, place, monkeypatch)
    begin: Callable[..., None] = targets.begin_output

    def begin_then(*args: Any, **kwargs: Any) -> None:
        begin(*args, **kwargs)
        if moment == "before the first shard":
            old.go_on()

    monkeypatch.setattr(targets, "begin_output", begin_then)
    options: dict[str, Any] = {"max_shard_size": size, "address": "inline", "overwrite": True}
    result = extrapolate(*pico_pair, out, alpha=0.3, **options)
    old.go_on()
    assert old.error is not None  # it is told, too
    assert result.outputs[0].status == "written"
    verify(out, address="inline")
    extrapolate(*pico_pair, tmp_path / "alone", alpha=0.3, **options)
    alone = {path.name: path.read_bytes() for path in (tmp_path / "alone").glob("*.safetensors")}
    assert weights(out) == alone


@pytest.mark.parametrize("place", ["disk", "s3"], indirect=True)
def test_what_it_publishes_while_the_new_run_cleans_up_does_not_stay(
    pico_pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    out = str(tmp_path / "out") if place == "disk" else f"s3://{BUCKET}/cleaning"
    (tmp_path / "out" / ".expo_ray").mkdir(parents=True)
    old = OldTask(pico_pair, out, place, monkeypatch)
    remove = work_folder._remove_old_result

    def remove_then(folder: Any) -> None:
        remove(folder)
        old.go_on()

    monkeypatch.setattr(work_folder, "_remove_old_result", remove_then)
    # One shard, which has another name than those of the old run.
    options: dict[str, Any] = {"max_shard_size": "1GB", "address": "inline", "overwrite": True}
    extrapolate(*pico_pair, out, alpha=0.3, **options)
    assert list(weights(out)) == ["model.safetensors"]
    assert old.error is not None
    verify(out, address="inline")


@pytest.mark.parametrize("place", ["s3, in parts"], indirect=True)
def test_a_copy_in_parts_that_ends_after_the_new_run_publishes_nothing(
    pico_pair: Pair, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """All parts are copied just before the new run's token stands; the last request comes late."""
    out = f"s3://{BUCKET}/parts-late"
    old = OldTask(pico_pair, out, place, monkeypatch)
    client = s3_client.s3_client()
    complete, copied, late = client.complete_multipart_upload, threading.Event(), threading.Event()

    def complete_late(**request: Any) -> Any:
        if threading.current_thread() is not threading.main_thread() and not copied.is_set():
            copied.set()
            assert late.wait(120)
        return complete(**request)

    monkeypatch.setattr(client, "complete_multipart_upload", complete_late)
    write = work_folder.atomic_write_json

    def write_late(*args: Any) -> None:
        old.release()
        assert copied.wait(60)
        monkeypatch.setattr(s3_client, "MAX_COPY_BYTES", 1 << 40)  # the new run copies at once
        write(*args)

    monkeypatch.setattr(work_folder, "atomic_write_json", write_late)
    options: dict[str, Any] = {"max_shard_size": "20KB", "address": "inline", "overwrite": True}
    extrapolate(*pico_pair, out, alpha=0.3, **options)
    before = weights(out)
    late.set()
    old.go_on()
    assert old.error is not None
    assert weights(out) == before
    verify(out, address="inline")


def weights(out: str) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in any_path(out).glob("*.safetensors")}
