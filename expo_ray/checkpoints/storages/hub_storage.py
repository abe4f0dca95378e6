"""Checkpoints on the Hugging Face Hub: pinned to a commit, read by byte ranges, never downloaded.

A file is resolved once per reader; its ranges then come from the address that the Hub answered
with, so that a task of a thousand reads asks the Hub itself only once per file.
"""

from __future__ import annotations

import os
import re
import sys
import threading
from typing import Any, Self
from urllib.parse import urlsplit

from expo_ray.checkpoints.storages.retries import is_passing, retry_io
from expo_ray.checkpoints.storages.small_files import read_small_file
from expo_ray.checkpoints.storages.storage import FileFacts, hidden_or_deep
from expo_ray.errors import CheckpointError
from expo_ray.proxies import through_proxy

SCHEME = "hf://"
_NAME = r"[A-Za-z0-9_][\w.-]*"
_ADDRESS = re.compile(rf"(?P<id>{_NAME}/{_NAME})(?:@(?P<revision>[\w./-]+))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_NO_RANGES = "the server ignores byte ranges"
PARTIAL_CONTENT = 206
STATUS_EXPIRED = (401, 403, 404, 410)


def is_hub_address(uri: object) -> bool:
    """Tell whether text is `hf://owner/name[@revision]`, or looks like a bare Hub id."""
    text = str(uri)
    return text.startswith(SCHEME) or ("://" not in text and bool(_ADDRESS.fullmatch(text)))


def hub_endpoint() -> str:
    """Return the address of the Hub: `HF_ENDPOINT`, else the public one."""
    from huggingface_hub import constants

    return (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


class HubStorage:
    """One model repository at one commit."""

    def __init__(self, address: str) -> None:
        text = address.removeprefix(SCHEME).strip("/")
        match = _ADDRESS.fullmatch(text)
        if match is None or ".." in text:
            raise CheckpointError(
                "not an address on the Hub",
                where=address,
                expected="hf://owner/name or hf://owner/name@revision",
            )
        self._address = address
        self.repo_id = match["id"]
        self._sizes: dict[str, int] | None = None
        self.commit = match["revision"] or "main"
        if not _COMMIT.fullmatch(self.commit):
            self._look_up()
        self.uri = f"{SCHEME}{self.repo_id}@{self.commit}"

    def list_files(self) -> dict[str, FileFacts]:
        """Return the facts of every file, by name, sorted; hidden ones are left out."""
        if self._sizes is None:
            self._look_up()
        sizes = self._sizes or {}
        return {
            name: self.facts_of(name, sizes[name])
            for name in sorted(sizes)
            if not hidden_or_deep(name)
        }

    def read_bytes(self, name: str) -> bytes:
        """Return the content of a small file."""
        where = f"{self.uri}/{name}"
        with self.open(name) as reader:
            try:
                return read_small_file(reader, where=where)
            except (EOFError, OSError) as error:
                raise _failure(where, error) from error

    def open(self, name: str) -> HubReader:
        """Open a file for ranged reads."""
        try:
            return HubReader(self, name)
        except OSError as error:
            raise _failure(f"{self.uri}/{name}", error) from error

    def facts_of(self, name: str, num_bytes: int) -> FileFacts:
        """Return the facts of a file of this commit."""
        return FileFacts(name=name, num_bytes=num_bytes, version_kind="commit", version=self.commit)

    def _look_up(self) -> None:
        """Ask once for the commit and the sizes of all files."""
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HFValidationError

        api = HfApi(endpoint=hub_endpoint())
        try:
            info: Any = retry_io(
                lambda: hub_call(
                    lambda: api.model_info(
                        self.repo_id, revision=self.commit, files_metadata=True, timeout=30
                    )
                ),
                what=f"ask the Hub for {self.repo_id}",
                passing=_is_passing,
            )
        except (OSError, HFValidationError) as error:
            raise _failure(self._address, error) from error
        self.commit = str(info.sha)
        self._sizes = {
            file.rfilename: file.size for file in info.siblings or () if file.size is not None
        }


class HubReader:
    """Ranged reads of one file; safe to share between threads."""

    def __init__(self, storage: HubStorage, name: str) -> None:
        from huggingface_hub import hf_hub_url

        self._storage = storage
        self._name = name
        self._url = hf_hub_url(
            storage.repo_id, name, revision=storage.commit, endpoint=hub_endpoint()
        )
        self._lock = threading.Lock()
        self._location = ""
        self.facts = self._resolve()

    def read_into(self, offset_bytes: int, buffer: memoryview) -> None:
        """Fill the whole buffer from an absolute offset."""
        if offset_bytes + len(buffer) > self.facts.num_bytes:
            raise EOFError(f"{self._url} ends before byte {offset_bytes + len(buffer)}")
        if len(buffer):
            retry_io(
                lambda: hub_call(lambda: self._fetch(offset_bytes, buffer)),
                what=f"read {self._storage.uri}/{self._name}",
                passing=_is_passing,
            )

    def refresh(self) -> FileFacts:
        """Return the facts; a commit does not change."""
        return self.facts

    def close(self) -> None:
        """Release nothing: connections belong to the process."""

    def _resolve(self) -> FileFacts:
        from huggingface_hub import get_hf_file_metadata

        metadata = retry_io(
            lambda: hub_call(
                lambda: get_hf_file_metadata(self._url, endpoint=hub_endpoint(), timeout=30)
            ),
            what=f"find {self._storage.uri}/{self._name}",
            passing=_is_passing,
        )
        if metadata.size is None:
            raise OSError(f"the Hub does not tell the size of {self._url}")
        with self._lock:
            self._location = metadata.location
        return self._storage.facts_of(self._name, metadata.size)

    def _fetch(self, offset_bytes: int, buffer: memoryview) -> None:
        from huggingface_hub import get_session
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

        location = self._location
        # A signed address of a content network must not see the token of the Hub.
        at_home = urlsplit(location).netloc == urlsplit(self._url).netloc
        headers = build_hf_headers() if at_home else {}
        last = offset_bytes + len(buffer) - 1
        headers |= {"Range": f"bytes={offset_bytes}-{last}", "Accept-Encoding": "identity"}
        position = 0
        with get_session().stream("GET", location, headers=headers, timeout=60) as response:
            if response.status_code in STATUS_EXPIRED and not at_home:
                self._resolve()
                raise ConnectionError(f"the address of {self._name} expired")
            response.raise_for_status()
            if response.status_code != PARTIAL_CONTENT:
                raise PermissionError(_NO_RANGES)
            for part in response.iter_bytes():
                if position + len(part) > len(buffer):
                    raise ConnectionError(f"{self._url} sent more than asked for")
                buffer[position : position + len(part)] = part
                position += len(part)
        if position < len(buffer):
            raise ConnectionError(f"{self._url} sent {position} of {len(buffer)} bytes")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def hub_call(call: Any) -> Any:
    """Call, with failures of the HTTP library as ConnectionError.

    The library is httpx or its successor, whichever the Hub's client was built on.
    """
    from huggingface_hub import get_session

    library = sys.modules[type(get_session()).__module__.split(".")[0]]
    try:
        return call()
    except library.TransportError as error:
        raise ConnectionError(f"{type(error).__name__}: {error}") from error
    except library.HTTPStatusError as error:
        status = error.response.status_code
        kind = ConnectionError if status in (408, 429) or status >= 500 else PermissionError
        raise kind(f"the server answered with status {status}") from error


def _is_passing(error: BaseException) -> bool:
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if isinstance(error, OfflineModeIsEnabled):
        return False
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code if error.response is not None else 0
        return status in (408, 429) or status >= 500
    return is_passing(error)


def _failure(where: str, error: Exception) -> CheckpointError:
    from huggingface_hub import errors

    got = f"{type(error).__name__}: {error}{through_proxy(hub_endpoint())}"
    hint = "is HF_ENDPOINT right, is the network there?"
    is_bare = not where.startswith(SCHEME)
    if is_bare:
        hint = f"no local folder has this name; if it is meant as a Hub id: {hint}"
    if isinstance(error, errors.OfflineModeIsEnabled):
        got, hint = "HF_HUB_OFFLINE is set", "unset it, or give a local folder"
    elif isinstance(error, errors.GatedRepoError):
        got, hint = "the repository is gated", "accept its terms, then set HF_TOKEN on every node"
    elif isinstance(error, errors.RevisionNotFoundError):
        got, hint = "no such revision", "give a branch, a tag or a commit that exists"
    elif isinstance(error, errors.RepositoryNotFoundError):
        got = "no such model on the Hub, or a private one"
        hint = "check the name; for a private model set HF_TOKEN on every node"
        if is_bare:
            got = f"neither a local folder nor a model on the Hub ({hub_endpoint()})"
    elif isinstance(error, errors.EntryNotFoundError):
        got, hint = "no such file in this commit", "check the repository"
    return CheckpointError("the checkpoint cannot be read", where=where, got=got, hint=hint)
