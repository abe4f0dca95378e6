"""A million responses are scored in the memory of a hundred thousand."""

from __future__ import annotations

import contextlib
import sys
import threading
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from expo_ray.tables import REWARDS_SCHEMA
from tests.serving.test_reward_replicas import response_rows, write

EXPO_RAY = Path(sys.executable).with_name("expo-ray")
MIB = 2**20
NUM_TEXTS = 500
WORKERS = ("ReadParquet", "MapBatches", "Rewarder")


def write_responses(folder: Path, num_rows: int, tmp_path: Path) -> Path:
    """Write a folder of tables whose rows repeat some texts under prompt ids of their own."""
    texts = pq.read_table(write(tmp_path / "texts.parquet", response_rows(NUM_TEXTS, text="t ")))
    folder.mkdir()
    per_file = 50_000
    for start in range(0, num_rows, per_file):
        rows = pa.concat_tables([texts] * (per_file // NUM_TEXTS))
        ids = pa.array([f"p{i}" for i in range(start, start + per_file)])
        rows = rows.set_column(rows.schema.get_field_index("prompt_id"), "prompt_id", ids)
        pq.write_table(rows.cast(texts.schema), folder / f"{start}.parquet", row_group_size=10_000)
    return folder


class Peaks(threading.Thread):
    """Watches the command, and the largest process that reads blocks or scores them."""

    def __init__(self, driver: psutil.Process) -> None:
        super().__init__(daemon=True)
        self._ended = threading.Event()
        self._driver = driver
        self.driver_bytes = 0
        self.peak_bytes = 0

    def run(self) -> None:
        while not self._ended.wait(0.5):
            with contextlib.suppress(psutil.Error):
                # What wait4 tells of a process counts the one that started it, too.
                self.driver_bytes = max(self.driver_bytes, self._driver.memory_info().rss)
            for process in psutil.process_iter(["cmdline", "memory_full_info"]):
                title = " ".join(process.info["cmdline"] or ())
                memory = process.info["memory_full_info"]
                if memory and any(name in title for name in WORKERS):
                    self.peak_bytes = max(self.peak_bytes, memory.uss)

    def __enter__(self) -> Peaks:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.join()


@pytest.mark.slow
def test_a_million_rows_in_bounded_memory(pico_reward_model: Path, tmp_path: Path) -> None:
    peaks = []
    for num_rows in (100_000, 1_000_000):
        responses = write_responses(tmp_path / f"{num_rows}", num_rows, tmp_path)
        output = tmp_path / f"{num_rows}.parquet"
        command = [str(EXPO_RAY), "score", str(responses), "--json"]
        command += ["--reward-model", str(pico_reward_model), "--output", str(output)]
        process = psutil.Popen([*command, "--address", "local"])
        with Peaks(process) as found:
            assert process.wait() == 0
        assert pq.read_schema(output) == REWARDS_SCHEMA
        rewards = pq.read_table(output, columns=["prompt_id", "reward"])
        assert rewards.num_rows == num_rows
        assert len(rewards["prompt_id"].unique()) == num_rows
        assert rewards["reward"].null_count == 0
        peaks.append((found.driver_bytes, found.peak_bytes))
    (driver, worker), (driver_of_many, worker_of_many) = peaks
    assert driver > 0 and worker > 0
    assert driver_of_many - driver < 100 * MIB
    assert worker_of_many - worker < 100 * MIB
