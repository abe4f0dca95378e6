"""hf:// and bare Hub ids against a local server that speaks the Hub's API."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from expo_ray.checkpoints import open_checkpoint, weights_digest
from expo_ray.checkpoints.opening import open_storage
from expo_ray.checkpoints.storages import retries
from expo_ray.errors import CheckpointError
from tests.checkpoints.hub_server import HubServer, hub_server

Pair = tuple[Path, Path]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, pico_pair: Pair) -> Iterator[HubServer]:
    with hub_server(monkeypatch) as server:
        server.add("owner/aligned", pico_pair[1])
        yield server


@pytest.mark.parametrize(
    "address", ["owner/aligned", "hf://owner/aligned", "hf://owner/aligned@main"]
)
def test_a_model_is_pinned_and_read_by_ranges(
    hub: HubServer, pico_pair: Pair, address: str
) -> None:
    commit = hub.commits["owner/aligned"]
    remote, local = open_checkpoint(address), open_checkpoint(pico_pair[1])
    assert remote.uri == f"hf://owner/aligned@{commit}"
    assert remote.tensors == local.tensors
    assert remote.sidecars == local.sidecars
    assert {entry["commit"] for entry in remote.identity()} == {commit}
    sent_for_headers = hub.bytes_sent
    assert sent_for_headers < local.num_bytes
    assert weights_digest(remote) == weights_digest(local)
    assert hub.bytes_sent - sent_for_headers == local.num_bytes
    # No file was fetched whole; every request for weights named its range.
    gets = [(path, wanted) for method, path, wanted in hub.log if method == "GET"]
    assert all(wanted for path, wanted in gets if "/api/" not in path)
    assert hub.count("GET", "/api/models/") == 1
    # The token of the Hub stays on the Hub.
    assert set(hub.tokens_at_cdn) == {None}


def test_a_pinned_checkpoint_is_opened_again_without_asking_the_hub(hub: HubServer) -> None:
    uri = open_checkpoint("owner/aligned").uri
    hub.log.clear()
    name = "model.safetensors.index.json"
    assert open_storage(uri).read_bytes(name) == (hub.repos["owner/aligned"] / name).read_bytes()
    assert [(method, "/api/" in path) for method, path, _ in hub.log] == [
        ("HEAD", False),
        ("GET", False),
    ]


def test_a_hub_that_fails_every_third_request_is_read_all_the_same(
    hub: HubServer, pico_pair: Pair
) -> None:
    hub.fail_every = 3
    assert weights_digest(open_checkpoint("owner/aligned")) == weights_digest(
        open_checkpoint(pico_pair[1])
    )


def test_a_hub_that_limits_requests_is_left_alone_as_long_as_it_asks(
    hub: HubServer, pico_pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(retries, "time", SimpleNamespace(sleep=waits.append))
    name = open_checkpoint("owner/aligned").files[0]
    with open_storage("owner/aligned").open(name) as reader:
        hub.limits = [
            {"Retry-After": "40"},
            {"RateLimit": '"resolvers";r=0;t=55'},
            {"Retry-After": "100000"},
            {},
        ]
        buffer = bytearray(reader.facts.num_bytes)
        reader.read_into(0, memoryview(buffer))
    assert buffer == (pico_pair[1] / name).read_bytes()
    asked = [40, 55, retries.LONGEST_LIMIT_SECONDS, retries.UNTOLD_LIMIT_SECONDS]
    assert len(waits) == len(asked)
    assert all(0 < wait - limit < 8 for wait, limit in zip(waits, asked, strict=True))


def test_a_server_without_ranges_is_refused_before_a_file_is_fetched(hub: HubServer) -> None:
    hub.ignore_ranges = True
    with pytest.raises(CheckpointError, match="ignores byte ranges"):
        open_checkpoint("owner/aligned")


def test_what_is_not_there_says_so(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="neither a local folder nor a model"):
        open_checkpoint("owner/missing")
    with pytest.raises(CheckpointError, match="no such revision"):
        open_checkpoint("hf://owner/aligned@missing")
    with pytest.raises(CheckpointError, match="not an address on the Hub"):
        open_checkpoint("hf://owner")
    with pytest.raises(CheckpointError, match="no such checkpoint folder"):
        open_checkpoint("./owner/missing")
    with pytest.raises(CheckpointError, match="no such file in this commit") as caught:
        open_storage("hf://owner/aligned").read_bytes("missing.json")
    assert "token_of_tests" not in str(caught.value)


def test_a_path_that_is_no_folder_is_not_only_blamed_on_the_network(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.close()
    monkeypatch.setattr(retries, "FIRST_DELAY_SECONDS", 0.0)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint("runs/missing")
    assert "no local folder has this name" in str(caught.value.hint)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint("hf://runs/missing")
    assert "local" not in str(caught.value.hint)


def test_a_local_folder_wins_over_a_hub_id(
    hub: HubServer, pico_pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "owner").mkdir()
    (tmp_path / "owner" / "aligned").symlink_to(pico_pair[0])
    monkeypatch.chdir(tmp_path)
    assert open_checkpoint("owner/aligned").uri == str(tmp_path / "owner" / "aligned")
    assert hub.log == []


def test_offline_is_said(pico_pair: Pair) -> None:
    with pytest.raises(CheckpointError, match="HF_HUB_OFFLINE is set"):
        open_checkpoint("owner/aligned")
