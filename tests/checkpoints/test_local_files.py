"""Config and tokenizer as local files, for checkpoints that are no plain folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoConfig, AutoTokenizer

from expo_ray.checkpoints import open_checkpoint
from expo_ray.checkpoints.local_files import local_folder
from expo_ray.errors import CheckpointError
from tests.checkpoints.hub_server import hub_server
from tests.checkpoints.s3_server import s3_server, upload, use

Pair = tuple[Path, Path]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def check(folder: Path, local: Path, cache: Path) -> None:
    assert cache in folder.parents
    assert not [p for p in folder.rglob("*") if p.suffix in (".safetensors", ".bin")]
    assert AutoConfig.from_pretrained(folder).to_dict() == {
        **AutoConfig.from_pretrained(local).to_dict(),
        "_name_or_path": str(folder),
    }
    tokenizers = [AutoTokenizer.from_pretrained(place) for place in (folder, local)]
    assert tokenizers[0].get_vocab() == tokenizers[1].get_vocab()
    assert tokenizers[0].chat_template == tokenizers[1].chat_template


def test_a_local_checkpoint_is_its_own_folder(pico_pair: Pair, cache: Path) -> None:
    assert local_folder(open_checkpoint(pico_pair[1])) == pico_pair[1]
    assert not cache.exists()


def test_a_bucket_and_the_hub_give_one_folder_which_heals(
    pico_pair: Pair, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3_server() as url, hub_server(monkeypatch) as hub:
        use(monkeypatch, url)
        uri = upload(url, pico_pair[1], "local-files/aligned")
        folder = local_folder(open_checkpoint(uri))
        check(folder, pico_pair[1], cache)
        hub.add("owner/aligned", pico_pair[1])
        assert local_folder(open_checkpoint("owner/aligned")) == folder
        for name in ("config.json", "tokenizer.json"):
            (folder / name).write_bytes((folder / name).read_bytes()[:10])
        (folder / "chat_template.jinja").unlink()
        assert local_folder(open_checkpoint(uri)) == folder
        check(folder, pico_pair[1], cache)


def test_a_cache_that_cannot_be_written_is_told(
    pico_pair: Pair, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.write_text("in the way")
    with hub_server(monkeypatch) as hub:
        hub.add("owner/aligned", pico_pair[1])
        with pytest.raises(CheckpointError, match="cache") as caught:
            local_folder(open_checkpoint("owner/aligned"))
    assert "XDG_CACHE_HOME" in str(caught.value.hint)
