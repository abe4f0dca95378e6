"""Handing a recipe to a cluster: the entry point as a Ray job, its log followed to its end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from expo_ray.errors import ConfigError, ExpoError, RequestError, WorkError, argument
from expo_ray.proxies import through_proxy
from expo_ray.ray_internals import uploaded_files
from expo_ray.workflow.recipe_file import load_recipe
from expo_ray.workflow.recipe_templates import RUNS_FOLDER

# Of a checkout.
ENTRY_POINT = "pipelines/run.py"
MAX_UPLOAD_BYTES = 10 * 1000 * 1000
# Of a folder that is no checkout: results, hidden files (keys lie there), what trackers leave.
# `.*` alone would take the folder itself, which Ray calls `.`.
_LEFT_BEHIND = (f"/{RUNS_FOLDER}/", ".?*", "/mlruns/", "/mlflow.db", "/wandb/")
_ADDRESS = "RAY_API_SERVER_ADDRESS"
SCHEMA_VERSION = 1
_PROBE_SECONDS = 10.0
_NUM_PROBES = 3


def submit(
    recipe: str | Path,
    *,
    overrides: Sequence[str] = (),
    working_dir: str | Path = ".",
    address: str | None = None,
    wait: bool = True,
    on_log: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Run a recipe as a job of a cluster; the same submission again continues the run.

    Args:
        recipe: YAML file inside `working_dir`.
        overrides: `key=value` pairs laid over the file, `output` on a shared disk among them.
        working_dir: What is uploaded, less what .gitignore names. A checkout of expo_ray brings its
            own code; from any other folder, the nodes run the expo_ray that is installed there.
        address: Job server, `http://HEAD:8265`; None means `RAY_API_SERVER_ADDRESS`, else
            `RAY_ADDRESS`, else the cluster of this machine.
        wait: Whether to follow the log until the job ends.
        on_log: Gets the log, piece by piece.

    Returns:
        `{"schema_version", "job_id", "status", "entrypoint", "output"}`.

    Raises:
        ConfigError: The recipe is wrong, or the job server cannot be reached; nothing was uploaded.
        RequestError: The job found its request wrong.
        WorkError: The job failed or was stopped.

    Example:
        From the folder that is uploaded; `shared` is one that every node sees:

        >>> job = expo_ray.submit("recipe.yaml", overrides=[f"output={shared}/mine"])
        >>> job["status"]
        'SUCCEEDED'
    """
    folder = Path(working_dir).resolve()
    parsed = load_recipe(recipe, overrides, in_job=True)
    file = Path(recipe).resolve()
    if not file.is_relative_to(folder):
        raise ConfigError(
            "the recipe lies outside of what is uploaded",
            where=argument("working_dir", working_dir),
            got=str(folder),
            expected=f"a folder that holds {file}",
        )
    is_checkout = all((folder / name).is_file() for name in (ENTRY_POINT, "expo_ray/__init__.py"))
    excludes = [] if is_checkout else list(_LEFT_BEHIND)
    inside = str(file.relative_to(folder))
    _check_upload(folder, inside, excludes)
    words = [inside]
    for override in overrides:
        words += ["--set", override]
    runtime_env: dict[str, Any] = {"working_dir": str(folder)}
    if is_checkout:
        words = ["python", ENTRY_POINT, *words]
    else:
        words = ["expo-ray", "run", *words, "--json", "--verbose"]
        runtime_env["excludes"] = excludes
    entrypoint = shlex.join(words)
    with _job_client(address) as client:
        job_id = client.submit_job(entrypoint=entrypoint, runtime_env=runtime_env)
        result = {
            "schema_version": SCHEMA_VERSION,
            "job_id": job_id,
            "status": str(client.get_job_status(job_id)),
            "entrypoint": entrypoint,
            "output": parsed.output,
        }
        if not wait:
            return result
        with _told_if_gone(client, job_id):
            asyncio.run(_follow(client, job_id, on_log))
            details = client.get_job_info(job_id)
    if str(details.status) != "SUCCEEDED":
        raise _failure(job_id, details)
    return {**result, "status": str(details.status)}


def _check_upload(folder: Path, recipe: str, excludes: Sequence[str]) -> None:
    """Let a folder pass that holds a recipe and what belongs to it, not weights or a whole home.

    Raises:
        ConfigError: It is too large, or the recipe would stay here.
    """
    where = argument("working_dir", folder)
    sizes = uploaded_files(folder, excludes, most_bytes=MAX_UPLOAD_BYTES)
    if sum(sizes.values()) > MAX_UPLOAD_BYTES:
        largest = sorted(sizes, key=lambda name: -sizes[name])[:3]
        raise ConfigError(
            "the folder is too large to be uploaded",
            where=where,
            got=f"more than {MAX_UPLOAD_BYTES} bytes, the largest in {', '.join(largest)}",
            expected="a recipe and what it needs; models lie where every node sees them",
            hint="put the recipe into a folder of its own, or name the rest in .gitignore",
        )
    if recipe not in sizes:
        raise ConfigError(
            "the recipe lies among what is not uploaded",
            where=where,
            got=recipe,
            expected=f"a file outside of {', '.join(excludes)} and of what .gitignore names",
            hint="copy it to another place in the folder",
        )


@contextlib.contextmanager
def _job_client(address: str | None) -> Iterator[Any]:
    """Connect to the job server; the variable that Ray would prefer gives way to the flag."""
    from ray.job_submission import JobSubmissionClient

    before = os.environ.get(_ADDRESS)
    if address is not None:
        os.environ[_ADDRESS] = address
    try:
        client = JobSubmissionClient()
    except (ConnectionError, RuntimeError, ValueError) as error:
        asked = address or before or os.environ.get("RAY_ADDRESS") or "auto"
        raise ConfigError(
            "cannot reach the job server of the cluster",
            where=argument("address"),
            got=f"{asked} ({error}){through_proxy(asked)}",
            expected="http://HEAD:8265",
            hint="is the dashboard running there, and its port open?",
        ) from error
    finally:
        if address is not None:
            os.environ.pop(_ADDRESS)
            os.environ.update({} if before is None else {_ADDRESS: before})
    yield client


@contextlib.contextmanager
def _told_if_gone(client: Any, job_id: str) -> Iterator[None]:
    import aiohttp

    try:
        yield
    except (OSError, RuntimeError, aiohttp.ClientError) as error:
        raise WorkError(
            "the job server is gone, or cannot be reached any more",
            where=client.get_address(),
            got=f"{type(error).__name__}: {error}",
            hint=f"the job may go on: `ray job status {job_id}` tells once the server answers; if "
            "the cluster was lost, submit again to continue the run",
        ) from error


async def _follow(client: Any, job_id: str, on_log: Callable[[str], None]) -> None:
    async def tail() -> None:
        async for text in client.tail_job_logs(job_id):
            on_log(text)

    # A host that is cut off closes no connection: the log would be waited for without end.
    both = [asyncio.ensure_future(tail()), asyncio.ensure_future(_lose(client.get_address()))]
    try:
        done, _ = await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in both:
            task.cancel()
        await asyncio.gather(*both, return_exceptions=True)


async def _lose(address: str) -> None:
    """Return never; raise once a server has taken no connection for a minute."""
    parts = urlsplit(address)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    num_failures = 0
    while True:
        await asyncio.sleep(_PROBE_SECONDS)
        try:
            async with asyncio.timeout(_PROBE_SECONDS):
                _, writer = await asyncio.open_connection(parts.hostname, port)
            writer.close()
            num_failures = 0
        except OSError:
            num_failures += 1
            if num_failures == _NUM_PROBES:
                raise


def _failure(job_id: str, details: Any) -> ExpoError:
    kind = RequestError if details.driver_exit_code == RequestError.exit_code else WorkError
    return kind(
        "the job did not succeed",
        where=job_id,
        got=f"{details.status}: {details.message or ''}".strip(": \n"),
        hint="its log says why; submitting it again continues the run",
    )
