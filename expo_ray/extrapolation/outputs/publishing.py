"""Finished checkpoints to the Hub: one commit each, so that no half checkpoint is ever visible.

`upload_large_folder` would make many commits and leave a cache inside the checkpoint. One commit of
exactly the recorded files shows all or nothing, and is still continued after an interruption: what
the Hub holds by its sha256 is not sent again. Several alphas get a repository each, because the
Hub reads the metadata of a model card, and tools load weights, from the main branch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

from expo_ray.checkpoints.sidecars import is_found_by_name, is_weight_file
from expo_ray.checkpoints.storages.hub_storage import SCHEME, hub_call, hub_endpoint
from expo_ray.checkpoints.storages.remote_path import AnyPath
from expo_ray.checkpoints.storages.storage import RECORD_NAME
from expo_ray.errors import ConfigError, WorkError, argument
from expo_ray.extrapolation.outputs.model_card import public_name
from expo_ray.extrapolation.outputs.record import parse_record, read_record_bytes, sealed
from expo_ray.extrapolation.outputs.targets import Target
from expo_ray.extrapolation.planning.alpha import checkpoint_name
from expo_ray.extrapolation.planning.path import step_checkpoint_name
from expo_ray.proxies import through_proxy

FLAG = argument("push_to")
_READ_ONLY = "read"
_T = TypeVar("_T")


def repo_name(
    push_to: str, alpha: float | None, *, is_only: bool, at_step: float | None = None
) -> str:
    """Return the repository of one checkpoint: HUB_ID, or HUB_ID-alpha-0.3 where there are several.

    A name on the Hub has no double dash and no plus: alpha -0.5 is `-alpha-minus-0.5`.
    """
    if is_only or alpha is None:
        return push_to
    name = checkpoint_name(alpha) if at_step is None else step_checkpoint_name(at_step)
    name = name.replace("--", "-minus-").replace("+", "")
    return f"{push_to}-{name}"


def push_targets(targets: Sequence[Target], push_to: str | None, *, private: bool) -> list[str]:
    """Return the repository of every output, none where nothing is pushed.

    Raises:
        ConfigError: One of them cannot be written.
    """
    if push_to is None:
        if private:
            raise ConfigError(
                "nothing is pushed", where=argument("private"), expected=f"with {FLAG}"
            )
        return []
    is_only = len(targets) == 1
    repos = [repo_name(push_to, t.alpha, is_only=is_only, at_step=t.at_step) for t in targets]
    for target, repo in zip(targets, repos, strict=True):
        refuse_unpushable(target.folder, repo, private=private)
    return repos


def refuse_unpushable(folder: AnyPath, repo_id: str, *, private: bool) -> None:
    """Let a request pass whose checkpoint may be pushed; nothing is changed on the Hub.

    Args:
        folder: Where the checkpoint will lie.
        repo_id: Where it goes.
        private: Whether nobody else may see it.

    Raises:
        ConfigError: The name is none, there is no token or no right to write, the repository is
            public though a private one is asked for, or the checkpoint is in an object store.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise _refusal("not a name on the Hub", repo_id, error, "owner/name") from error
    owner, slash, _ = repo_id.partition("/")
    if not slash:
        raise _refusal("not a name on the Hub", repo_id, "no owner", "owner/name")
    if not isinstance(folder, Path):
        raise _refusal("only a checkpoint on a disk is pushed", repo_id, folder, "a local OUTPUT")
    if get_token() is None:
        raise _refusal("no token for the Hub is set", repo_id, None, "HF_TOKEN, or hf auth login")
    api = HfApi(endpoint=hub_endpoint())
    user = _asked(api.whoami, repo_id)
    try:
        info = _asked(lambda: api.model_info(repo_id), repo_id, passing=RepositoryNotFoundError)
    except RepositoryNotFoundError:
        _refuse_stranger(user, owner, repo_id)
        return
    _asked(lambda: api.auth_check(repo_id, write=True), repo_id)
    if private and not info.private:
        raise _refusal(
            "the repository is public", repo_id, argument("private", True), "a new or private one"
        )


def push(folder: Path, repo_id: str, *, private: bool) -> str:
    """Upload one finished checkpoint in one commit.

    Args:
        folder: The checkpoint.
        repo_id: The repository; made where it does not exist.
        private: Whether it is made private.

    Returns:
        Its address, hf://owner/name@commit.

    Raises:
        WorkError: A file is a link that leaves the folder, or the upload failed; the next one sends
            only what is missing.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    data = read_record_bytes(folder)
    record = parse_record(data, where=str(folder / RECORD_NAME))
    names = [str(entry["name"]) for entry in record["files"]]
    for name in names:
        if not (folder / name).resolve().is_relative_to(folder.resolve()):
            raise WorkError(
                "a file of the checkpoint lies elsewhere: it is not given away",
                where=folder / name,
                got=(folder / name).resolve(),
                expected="a file inside the folder",
                hint=f"write the checkpoint again with {argument('overwrite', True)}",
            )
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        CommitOperationAdd(path_in_repo=name, path_or_fileobj=folder / name) for name in names
    ]
    public = sealed(_without_places(record))
    operations.append(CommitOperationAdd(path_in_repo=RECORD_NAME, path_or_fileobj=public))
    api = HfApi(endpoint=hub_endpoint())

    def upload() -> str:
        api.create_repo(repo_id, private=private or None, exist_ok=True)
        # Files of an earlier push beside the new ones are what a loader might pick up.
        stale = [
            f.rfilename for f in api.model_info(repo_id).siblings or () if f.rfilename not in names
        ]
        stale = [name for name in stale if is_weight_file(name) or is_found_by_name(name)]
        operations.extend(CommitOperationDelete(path_in_repo=file) for file in sorted(stale))
        digest = str(record["weights_digest"]).rpartition(":")[2]
        title = f"Extrapolated weights {digest[:12]}"
        return api.create_commit(repo_id, operations, commit_message=title).oid

    try:
        commit = cast(str, hub_call(upload))
    except (OSError, RuntimeError, ValueError) as error:
        raise WorkError(
            "the checkpoint is complete, but could not be pushed to the Hub",
            where=f"{folder} to {repo_id}",
            got=_words(error),
            hint="run the same command again: what the Hub has already is not sent again",
        ) from error
    return f"{SCHEME}{repo_id}@{commit}"


def _without_places(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record without paths and buckets of its inputs, which concern nobody elsewhere."""
    path = record.get("trajectory") or {}
    uris = [record[side]["uri"] for side in ("initial", "aligned", "onto") if side in record]
    uris += [point["uri"] for point in path.get("checkpoints", ())]
    parts = {part.removeprefix("base=") for uri in uris for part in uri.split("#")}
    # The longest first: step_100 lies beside step_1.
    places = [
        (place, public_name(place))
        for place in sorted(parts, key=lambda part: (-len(part), part))
        if "/" in place and not place.startswith(SCHEME)
    ]

    def public(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: public(item) for key, item in value.items()}
        if isinstance(value, list):
            return [public(item) for item in value]
        if isinstance(value, str):
            for place, name in places:
                value = value.replace(place, name)
        return value

    return {key: public(value) for key, value in record.items()}


def _refuse_stranger(user: Mapping[str, Any], owner: str, repo_id: str) -> None:
    token = user.get("auth", {}).get("accessToken", {})
    if token.get("role") == _READ_ONLY:
        raise _refusal("the token may only read", repo_id, "role read", "a token that may write")
    owners = [str(user.get("name"))]
    owners += [str(o["name"]) for o in user.get("orgs", []) if o.get("roleInOrg") != _READ_ONLY]
    if owner not in owners:
        raise _refusal("no right to write there", repo_id, owner, " or ".join(owners))


def _asked(call: Callable[[], _T], repo_id: str, passing: type[Exception] | None = None) -> _T:
    """Call; every failure is a refusal but one that the caller handles."""
    try:
        return cast(_T, hub_call(call))
    except OSError as error:
        if passing is not None and isinstance(error, passing):
            raise
        hint = "a token that may write there (HF_TOKEN), a Hub that can be reached (HF_ENDPOINT)"
        raise _refusal("the Hub does not let this be written", repo_id, _words(error), hint) from (
            error
        )


def _words(error: BaseException) -> str:
    cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
    response = getattr(cause, "response", None)
    status = f"status {response.status_code}: " if response is not None else ""
    words = str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause)
    return f"{status}{words}{through_proxy(hub_endpoint())}"


def _refusal(message: str, repo_id: str, got: object, expected: str) -> ConfigError:
    return ConfigError(message, where=argument("push_to", repo_id), got=got, expected=expected)
