"""--push-to against a server that speaks the writing half of the Hub's API."""

from __future__ import annotations

import json
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import huggingface_hub.constants
import pytest
import yaml
from rich.console import Console
from transformers import AutoModelForCausalLM

from expo_ray.checkpoints import open_checkpoint, weights_digest
from expo_ray.cli.checkpoint_results import render_extrapolation
from expo_ray.errors import ConfigError, WorkError
from expo_ray.extrapolation import extrapolate, extrapolate_trajectory
from expo_ray.extrapolation.outputs.model_card import public_name
from expo_ray.extrapolation.outputs.publishing import repo_name
from expo_ray.extrapolation.outputs.record import is_as_sealed
from tests.checkpoints.hub_server import HubServer, hub_server
from tests.checkpoints.hub_uploads import TOKEN

Pair = tuple[Path, Path]
OPTIONS = {"max_shard_size": "20KB", "address": "inline"}


@pytest.fixture
def hub(
    monkeypatch: pytest.MonkeyPatch, pico_pair: Pair, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[HubServer]:
    # Xet is a protocol of its own for the same upload; this server speaks LFS.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    with hub_server(monkeypatch) as running:
        running.uploads.root = tmp_path_factory.mktemp("hub")
        running.add("team/initial", pico_pair[0])
        running.add("team/aligned", pico_pair[1])
        yield running


def test_a_pushed_checkpoint_is_read_back_and_loads(
    hub: HubServer, pico_pair: Pair, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    pair = (str(pico_pair[0]), "team/aligned")
    result = extrapolate(*pair, out, alpha=0.3, push_to="owner/expo", private=True, **OPTIONS)
    address = result.outputs[0].pushed_to
    assert address == f"hf://owner/expo@{hub.commits['owner/expo']}"
    console = Console(file=StringIO())
    render_extrapolation(console, result.as_dict())
    assert f"pushed to {address}\n" in console.file.getvalue()
    assert (hub.uploads.num_commits, hub.uploads.private) == (1, {"owner/expo"})
    pushed = open_checkpoint(address)
    assert weights_digest(pushed) == result.outputs[0].weights_digest
    folder = hub.repos["owner/expo"]
    assert AutoModelForCausalLM.from_pretrained(folder).num_parameters()
    card = (folder / "README.md").read_text()
    # The folder of initial is no id of the Hub.
    assert yaml.safe_load(card.split("---")[1])["base_model"] == ["team/aligned"]
    assert "alpha = 0.3" in card
    published = (folder / "expo_ray.json").read_bytes()
    assert is_as_sealed(published, json.loads(published))
    everything = b"".join(p.read_bytes() for p in folder.rglob("*") if p.suffix in (".json", ".md"))
    assert str(pico_pair[0]).encode() not in everything
    assert TOKEN.encode() not in everything
    # Nothing is sent twice, and nothing is committed where nothing changed.
    sent = hub.uploads.num_sent
    assert sent == len(pushed.files)
    again = extrapolate(*pair, out, alpha=0.3, push_to="owner/expo", private=True, **OPTIONS)
    assert (again.outputs[0].status, again.outputs[0].pushed_to) == ("skipped", address)
    assert (hub.uploads.num_sent, hub.uploads.num_commits) == (sent, 1)


def test_a_pushed_trajectory_tells_no_place_of_its_checkpoints(
    hub: HubServer, pico_pair: Pair, tmp_path: Path
) -> None:
    places = [pico_pair[0], tmp_path / "secret" / "step_1", tmp_path / "secret" / "step_10"]
    extrapolate(*pico_pair, places[1], alpha=-0.5, **OPTIONS)
    extrapolate(*pico_pair, places[2], alpha=-0.3, **OPTIONS)
    places.append(pico_pair[1])
    points = [{"step": step, "checkpoint": str(p)} for step, p in enumerate(places)]
    extrapolate_trajectory(points, tmp_path / "out", alpha=1, push_to="owner/expo", **OPTIONS)
    folder = hub.repos["owner/expo"]
    record = json.loads((folder / "expo_ray.json").read_text())
    assert [point["uri"] for point in record["trajectory"]["checkpoints"]] == [
        place.name for place in places
    ]
    for file in folder.rglob("*"):
        if file.suffix in (".json", ".md"):
            assert str(tmp_path) not in file.read_text()
            assert str(pico_pair[0].parent) not in file.read_text()
    card = (folder / "README.md").read_text()
    assert "`step_1`" in card
    assert "`step_10`" in card


def test_the_name_of_a_bucket_is_nobody_elses_business() -> None:
    assert public_name("s3://private-bucket/") == "a bucket on s3"
    assert public_name("gs://private-bucket/team/dpo") == "dpo"


def test_an_interrupted_push_shows_nothing_and_sends_only_what_is_missing(
    hub: HubServer, pico_pair: Pair, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    hub.uploads.fail_commits = True
    with pytest.raises(WorkError, match="could not be pushed") as caught:
        extrapolate(*pico_pair, out, alpha=0.3, push_to="owner/expo", **OPTIONS)
    assert TOKEN not in str(caught.value)
    assert [p.name for p in hub.repos["owner/expo"].iterdir()] == [".gitattributes"]
    sent = hub.uploads.num_sent
    hub.uploads.fail_commits = False
    result = extrapolate(*pico_pair, out, alpha=0.3, push_to="owner/expo", **OPTIONS)
    assert hub.uploads.num_sent == sent == len(open_checkpoint(out).files)
    # Another layout in the same repository leaves no stale weights there, and no old tokenizer.
    (hub.repos["owner/expo"] / "tekken.json").write_text("{}")
    options = {**OPTIONS, "max_shard_size": "5GB", "overwrite": True}
    extrapolate(*pico_pair, out, alpha=0.3, push_to="owner/expo", **options)
    found = {p.name for p in hub.repos["owner/expo"].iterdir() if "model" in p.name}
    assert found == {"model.safetensors"}
    assert not (hub.repos["owner/expo"] / "tekken.json").exists()
    assert weights_digest(open_checkpoint("owner/expo")) == result.outputs[0].weights_digest


def test_every_alpha_has_a_repository(hub: HubServer, pico_pair: Pair, tmp_path: Path) -> None:
    result = extrapolate(
        *pico_pair, tmp_path / "out", alpha=[0.3, -0.5], push_to="owner/expo", **OPTIONS
    )
    pushed = [str(output.pushed_to).partition("@")[0] for output in result.outputs]
    assert pushed == ["hf://owner/expo-alpha-0.3", "hf://owner/expo-alpha-minus-0.5"]
    assert repo_name("a/b", 1e20, is_only=False) == "a/b-alpha-1e20"


@pytest.mark.parametrize(
    ("push_to", "words"),
    [
        ("expo", "not a name on the Hub"),
        ("owner/a--b", "not a name on the Hub"),
        ("stranger/expo", "no right to write"),
        ("team/aligned", "does not let this be written"),
    ],
)
def test_what_cannot_be_pushed_is_refused_before_any_work(
    hub: HubServer, pico_pair: Pair, tmp_path: Path, push_to: str, words: str
) -> None:
    hub.uploads.protected.add("team/aligned")
    with pytest.raises(ConfigError, match=words) as caught:
        extrapolate(*pico_pair, tmp_path / "out", alpha=0.3, push_to=push_to, **OPTIONS)
    assert TOKEN not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_tokens_and_visibility(
    hub: HubServer, pico_pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(words: str, **options: object) -> None:
        options = {"push_to": "owner/expo", **OPTIONS, **options}
        with pytest.raises(ConfigError, match=words):
            extrapolate(*pico_pair, tmp_path / "out", alpha=0.3, **options)
        assert not (tmp_path / "out").exists()

    hub.uploads.role = "read"
    refused("may only read")
    refused("public", push_to="team/initial", private=True)
    refused("nothing is pushed", push_to=None, private=True)
    monkeypatch.setenv("HF_TOKEN", "another")
    refused("does not let this be written")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    refused("no token")
