"""Fixtures shared by all tests: one pico pair, one reward model, one Ray cluster per session."""

from __future__ import annotations

import gc
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

# Scores of one session are no use to the next, and none of a user's must be found.
_CACHE = tempfile.TemporaryDirectory(prefix="expo-ray-scores-")
os.environ["EXPO_RAY_SCORE_CACHE"] = str(Path(_CACHE.name) / "scores.sqlite")

ROOT = Path(__file__).resolve().parents[1]

# Workers look for modules of the tests; the folder of the driver is not on their path.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.getenv("PYTHONPATH")]))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Fast tests first: whatever needs Ray runs at the end, and in lanes at once."""
    for item in items:
        if "ray_cluster" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.ray)
    in_lanes = hasattr(config, "workerinput")
    items.sort(key=lambda item: item.get_closest_marker("ray") is not None, reverse=in_lanes)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `-n 2`: one process begins with the files of Ray, the other with the rest."""
    from tests.lanes import Lanes

    return Lanes(config, log)


def pytest_collection_finish() -> None:
    """What torch, transformers and the tests themselves are made of is no garbage: look no more."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def pico_pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(initial, aligned): two-layer bf16 Llamas, several shards, tied head, chat template."""
    from tests.pico import save_pair

    return save_pair(tmp_path_factory.mktemp("pico"))


@pytest.fixture(scope="session")
def pico_reward_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float32 sequence classifier with one label."""
    from tests.pico import save_reward_model

    return save_reward_model(tmp_path_factory.mktemp("pico-rm") / "reward-model")


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[str]:
    """One local Ray for the session, with more logical CPUs than the machine has cores."""
    from expo_ray.cluster import ray_session

    with ray_session("local", num_cpus=8):
        yield "local"


@pytest.fixture
def on_cluster(ray_cluster: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Point the commands at the session's Ray through the environment, as a job would."""
    import ray

    monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
    monkeypatch.setenv("RAY_AUTH_MODE", os.environ.get("RAY_AUTH_MODE", "token"))


@pytest.fixture(scope="session")
def published_data() -> Path:
    """Published prompts, responses and judgements; tests skip where they are absent."""
    from tests.published_data import find_data

    folder = find_data()
    if folder is None:
        pytest.skip("the published data is absent: `make data` fetches it")
    return folder


@pytest.fixture(scope="module")
def s3_url() -> Iterator[str]:
    """A server of the S3 protocol."""
    from tests.checkpoints.s3_server import s3_server

    with s3_server() as url:
        yield url


@pytest.fixture
def s3(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The same, set in the environment."""
    from tests.checkpoints.s3_server import use

    use(monkeypatch, s3_url)
    return s3_url
