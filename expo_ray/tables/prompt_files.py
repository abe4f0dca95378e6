"""Where prompts lie: a local file, an object in a bucket, or the files of a dataset on the Hub.

A dataset on the Hub is read as the files it consists of, at one commit; scripts in it never run.

    hf://datasets/OWNER/NAME[@REVISION][/FILE or /FOLDER][#split=NAME]
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from expo_ray.checkpoints.storages.hub_storage import hub_call, hub_endpoint
from expo_ray.checkpoints.storages.remote_path import RemotePath, is_remote
from expo_ray.errors import TableError
from expo_ray.proxies import through_proxy

DATASETS = "hf://datasets/"
SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet", ".csv")
_NAME = r"[A-Za-z0-9_][\w.-]*"
_ADDRESS = re.compile(
    rf"{re.escape(DATASETS)}(?P<repo>{_NAME}/{_NAME})(?:@(?P<revision>[\w.-]+))?"
    r"(?:/(?P<path>[^#]*?))?/?(?:#split=(?P<split>[\w.-]+))?"
)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHARD = re.compile(r"-\d+-of-\d+(-[0-9a-f]+)?$")


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptFile:
    """One file of prompts."""

    where: str
    """What errors call it."""
    place: Path | RemotePath

    @property
    def suffix(self) -> str:
        """Its format, in lower case."""
        return Path(self.where).suffix.lower()

    def read_bytes(self) -> bytes:
        """Return its content.

        Raises:
            TableError: It does not exist or cannot be read.
        """
        try:
            return self.place.read_bytes()
        except FileNotFoundError as error:
            is_local = isinstance(self.place, Path)
            raise TableError(
                "the prompts file does not exist",
                where=Path(self.where).absolute() if is_local else self.where,
                hint="check the path",
            ) from error
        except OSError as error:
            raise TableError("cannot read the prompts", where=self.where, got=error) from error


def prompt_files(address: str | Path) -> list[PromptFile]:
    """Return the files behind an address, in order.

    Args:
        address: A path, `s3://`, `gs://`, or `hf://datasets/...`.

    Raises:
        TableError: The format is unknown, or the Hub has no such dataset, revision, file or split.
    """
    text = str(address)
    if text.startswith("hf://"):
        return _hub_files(text)
    place = RemotePath(text) if is_remote(text) else Path(text)
    file = PromptFile(where=text, place=place)
    if file.suffix not in SUFFIXES:
        raise TableError(
            "the prompts file has an unknown format",
            where=text,
            got=file.suffix or "no suffix",
            expected=".jsonl, .json, .parquet or .csv",
        )
    return [file]


def pin_prompts(address: str | Path) -> str:
    """Return the address with the commit that it stands for now; others are returned as they are.

    Raises:
        TableError: The Hub has no such dataset or revision.
    """
    text = str(address)
    if not text.startswith("hf://"):
        return text
    parts = _parse(text)
    if parts["revision"] and _COMMIT.fullmatch(parts["revision"]):
        return text
    pinned = f"{DATASETS}{parts['repo']}@{_dataset(text, parts).sha}"
    pinned += f"/{parts['path']}" if parts["path"] else ""
    return pinned + (f"#split={parts['split']}" if parts["split"] else "")


def _parse(address: str) -> dict[str, str | None]:
    match = _ADDRESS.fullmatch(address)
    if match is None or ".." in address:
        raise TableError(
            "not the address of a dataset on the Hub",
            where=address,
            expected="hf://datasets/OWNER/NAME[@REVISION][/FILE][#split=NAME]",
        )
    return match.groupdict()


def _hub_files(address: str) -> list[PromptFile]:
    from huggingface_hub import hf_hub_download

    parts = _parse(address)
    info = _dataset(address, parts)
    names = _chosen(address, [file.rfilename for file in info.siblings or ()], parts)
    found = []
    for name in names:
        try:
            path = hub_call(
                partial(
                    hf_hub_download,
                    str(parts["repo"]),
                    name,
                    repo_type="dataset",
                    revision=info.sha,
                    endpoint=hub_endpoint(),
                )
            )
        except OSError as error:
            raise _failure(f"{address}, file {name}", error) from error
        found.append(
            PromptFile(where=f"{DATASETS}{parts['repo']}@{info.sha}/{name}", place=Path(path))
        )
    return found


def _dataset(address: str, parts: dict[str, str | None]) -> Any:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError

    api = HfApi(endpoint=hub_endpoint())
    try:
        return hub_call(
            lambda: api.dataset_info(str(parts["repo"]), revision=parts["revision"], timeout=30)
        )
    except (OSError, HFValidationError) as error:
        raise _failure(address, error) from error


def _chosen(address: str, names: list[str], parts: dict[str, str | None]) -> list[str]:
    """Return the files that the address means; Parquet where the dataset has it."""
    path, split = parts["path"], parts["split"]
    readable = sorted(name for name in names if Path(name).suffix.lower() in SUFFIXES)
    if path in readable:
        return [str(path)]
    inside = [name for name in readable if path is None or name.startswith(f"{path}/")]
    parquet = [name for name in inside if name.endswith(".parquet")]
    by_split: dict[str, list[str]] = {}
    for name in parquet or inside:
        by_split.setdefault(_split_of(name), []).append(name)
    wanted = split if split is not None else (next(iter(by_split)) if len(by_split) == 1 else None)
    if wanted not in by_split:
        raise TableError(
            "the dataset has no such split" if split else "the dataset has several splits",
            where=address,
            got=split or ", ".join(sorted(by_split)) or "no file that can be read",
            expected=f"one of {', '.join(sorted(by_split))}" if by_split else None,
            hint="name one with #split=NAME, or one file with /FILE",
        )
    found = by_split[str(wanted)]
    folders = {str(Path(name).parent) for name in found}
    if len(folders) > 1:
        raise TableError(
            "the split stands in several folders of the dataset",
            where=address,
            got=", ".join(sorted(folders)),
            expected="one of them after the name: hf://datasets/OWNER/NAME/FOLDER",
        )
    return found


def _split_of(name: str) -> str:
    """`data/test-00000-of-00001.parquet` and `default/test/0000.parquet` are the split `test`."""
    path = Path(name)
    return path.parent.name if path.stem.isdigit() else _SHARD.sub("", path.stem)


def _failure(where: str, error: Exception) -> TableError:
    from huggingface_hub import errors

    got = f"{type(error).__name__}: {error}{through_proxy(hub_endpoint())}"
    hint = "is HF_ENDPOINT right, is the network there?"
    if isinstance(error, errors.OfflineModeIsEnabled):
        got, hint = "HF_HUB_OFFLINE is set", "unset it, or give a local file"
    elif isinstance(error, errors.GatedRepoError):
        got, hint = "the dataset is gated", "accept its terms, then set HF_TOKEN"
    elif isinstance(error, errors.RevisionNotFoundError):
        got, hint = "no such revision", "give a branch, a tag or a commit that exists"
    elif isinstance(error, errors.RepositoryNotFoundError):
        got, hint = "no such dataset on the Hub, or a private one", "check the name; set HF_TOKEN"
    return TableError("the dataset cannot be read", where=where, got=got, hint=hint)
