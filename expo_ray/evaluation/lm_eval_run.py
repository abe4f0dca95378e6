"""Tasks of lm-evaluation-harness on a model, by its package: one Ray task for each of them.

A checkpoint is measured by the harness's `hf` or `vllm` backend, a service behind an
OpenAI-compatible URL by its chat requests, which cannot ask how likely a given answer is: tasks of
choices need the checkpoint. The files that come out are the harness's own.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from expo_ray.checkpoints import atomic_write_json
from expo_ray.checkpoints.storages.local_output import require_writable_folder
from expo_ray.cluster import cancel_unfinished, get_within, ray_session
from expo_ray.errors import ConfigError, EvaluationError, argument
from expo_ray.evaluation.harness_results import read_harness_results
from expo_ray.evaluation.identity import template_digest
from expo_ray.evaluation.open_llm import VERSION_1, VERSION_2
from expo_ray.extras import require_extra
from expo_ray.json_text import parse_json
from expo_ray.loadtests.stream import Endpoint
from expo_ray.loadtests.target import is_url, resolve_endpoint
from expo_ray.progress import NullProgress, Progress
from expo_ray.remote_errors import brought_home
from expo_ray.serving.engines.devices import has_gpu
from expo_ray.serving.source import ModelSource

SCHEMA_VERSION = 1
SETTINGS_FILE = "settings.json"
BACKENDS = ("hf", "vllm")
BOARDS = {"open-llm-v1": VERSION_1, "open-llm-v2": VERSION_2}
_POLL_SECONDS = 5.0
_ANSWER_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class HarnessJob:
    """One task for the harness; plain values that travel to another node."""

    task: str
    num_shots: int | None
    """None takes the task's own."""
    backend: str
    model_args: Mapping[str, Any]
    limit: int | None
    batch_size: int
    include_path: str | None
    use_chat_template: bool


def lm_eval_results(
    model: str,
    *,
    output: str | Path,
    tasks: Sequence[str] = ("open-llm-v1",),
    num_shots: int | None = None,
    limit: int | None = None,
    include_path: str | Path | None = None,
    use_chat_template: bool = False,
    backend: str = "hf",
    batch_size: int = 1,
    address: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure a model by tasks of lm-evaluation-harness.

    Each task is one Ray task, with a GPU where the cluster has any. What is measured stays: the
    same command goes on after an interruption, and other weights or settings in the same folder are
    refused.

    Args:
        model: A checkpoint: path or Hub id; or `http://HOST:PORT/v1[#MODEL]`, a service that is
            asked by chat.
        output: Folder of result files and samples, one folder in it per task: what `open-llm` and
            `compare` read.
        tasks: Names of tasks or groups; `open-llm-v1` and `open-llm-v2` are the six of each
            leaderboard, those of version 1 with its number of examples.
        num_shots: Examples in the prompt of the other tasks; None takes the task's own.
        limit: Only so many questions of each task.
        include_path: Folder with the definitions of further tasks.
        use_chat_template: Whether prompts go through the model's chat template; a service always
            does so.
        backend: `hf` or `vllm`, for a checkpoint; the latter needs the package of that name.
        batch_size: Questions at a time.
        address: Ray cluster.
        progress: Where to report.

    Returns:
        `{"schema_version", "output", "model", "weights_digest", "tasks"}`: of each task and group
        `name`, `scores` by name with `value` and `standard_error`, and `num_shots`.

    Raises:
        MissingExtraError: The harness is not installed.
        RequestError: Model, folder or settings are wrong; nothing was written.
        EvaluationError: The harness failed.

    Example:
        >>> made = expo_ray.lm_eval_results(
        ...     "dpo", output="harness-dpo", tasks=["fruit"], include_path="tasks"
        ... )
        >>> [row["name"] for row in made["tasks"]]
        ['fruit']
    """
    require_extra("lm-eval", where=argument("tasks"))
    if backend not in BACKENDS:
        raise ConfigError(
            "unknown backend",
            where=argument("backend"),
            got=backend,
            expected=" or ".join(BACKENDS),
        )
    folder = require_writable_folder(output)
    wanted = _expand(tasks, num_shots)
    include_path = None if include_path is None else str(Path(include_path).absolute())
    backend, args, about = _model(model, backend, use_chat_template)
    settings = {
        **about,
        "limit": limit,
        "include_path": include_path,
        "lm_eval": version("lm_eval"),
        # Of a task that is asked for again, with another number of examples, nothing is kept.
        "num_shots": wanted,
    }
    _require_same_settings(folder / SETTINGS_FILE, settings)
    jobs = [
        HarnessJob(
            task=task,
            num_shots=shots,
            backend=backend,
            model_args=args,
            limit=limit,
            batch_size=batch_size,
            include_path=include_path,
            use_chat_template=about["chat_template"] != "not applied",
        )
        for task, shots in wanted.items()
        if not (folder / task).is_dir()
    ]
    if jobs:
        _measure_all(jobs, folder, settings, address, progress or NullProgress())
    found = read_harness_results(folder)
    return {
        "schema_version": SCHEMA_VERSION,
        "output": str(folder),
        "model": about["model"],
        "weights_digest": about["weights_digest"],
        "tasks": [
            {
                "name": task.name,
                "num_shots": task.num_shots,
                "scores": {
                    name: {"value": score.value, "standard_error": score.standard_error}
                    for name, score in task.scores.items()
                },
            }
            for task in found.values()
        ],
    }


def _expand(tasks: Sequence[str], num_shots: int | None) -> dict[str, int | None]:
    """Return the harness's names with the number of examples of each."""
    wanted: dict[str, int | None] = {}
    for name in tasks:
        if name not in BOARDS:
            wanted[name] = num_shots
        for task in BOARDS.get(name, ()):
            # Version 2 carries its number in its tasks.
            wanted[task.names[-1]] = task.num_shots if name == "open-llm-v1" else None
    if not wanted or any(not name or "/" in name or "." in name for name in wanted):
        raise ConfigError(
            "not the name of a task",
            where=argument("tasks"),
            got=", ".join(tasks) or "none",
            expected="names as `lm_eval ls tasks` lists them",
        )
    return wanted


def _model(
    model: str, backend: str, use_chat_template: bool
) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Return the backend, its arguments, and what the results say of the model."""
    if is_url(model):
        url, _, name = model.partition("#")
        # The harness takes its key from there too.
        key = os.environ.get("OPENAI_API_KEY")
        endpoint = resolve_endpoint(Endpoint(url=url, model=name, api_key=key))
        args = {"model": endpoint.model, "base_url": f"{endpoint.api_url}/chat/completions"}
        about = {"model": endpoint.model, "weights_digest": endpoint.weights_digest}
        about |= {"backend": "local-chat-completions", "chat_template": "the service's"}
        return "local-chat-completions", args, about
    source = ModelSource(model=model).pinned()
    checkpoint = source.open()
    if "://" in source.model and not source.model.startswith("hf://"):
        raise ConfigError(
            "the harness reads a local checkpoint, or one of the Hub",
            where=argument("model"),
            got=model,
            hint="copy it to a folder that every node sees, or serve it and give the URL",
        )
    owner, _, revision = source.model.removeprefix("hf://").partition("@")
    args = {"pretrained": owner, **({"revision": revision} if revision else {})}
    about = {
        "model": source.name,
        "weights_digest": source.known_digest(read_weights=True),
        "backend": backend,
        "chat_template": template_digest(checkpoint) if use_chat_template else "not applied",
    }
    return backend, args, about


def _require_same_settings(file: Path, settings: Mapping[str, Any]) -> None:
    """Let a folder pass whose results were measured alike, the tasks apart.

    Raises:
        ConfigError: They were measured on other weights, or under other settings.
    """
    if not _has_results(file):
        return
    before = parse_json(file.read_bytes())
    shots = before.get("num_shots") or {}
    differ = [k for k in settings if k != "num_shots" and settings[k] != before.get(k)]
    differ += [
        f"num_shots of {k}" for k, n in settings["num_shots"].items() if shots.get(k, n) != n
    ]
    if differ:
        raise ConfigError(
            "results measured under other settings are in the way",
            where=file,
            got=", ".join(differ),
            hint="give another output, or remove the old folder",
        )


def _has_results(file: Path) -> bool:
    """Whether something was measured under the settings of a file."""
    return file.is_file() and any(each.is_dir() for each in file.parent.glob("[!.]*"))


def _measure_all(
    jobs: Sequence[HarnessJob],
    folder: Path,
    settings: dict[str, Any],
    address: str | None,
    progress: Progress,
) -> None:
    """Run the harness once per task; the files of one lie there whole, or not at all."""
    import ray
    from ray.exceptions import RayError

    folder.mkdir(parents=True, exist_ok=True)
    file = folder / SETTINGS_FILE
    before = parse_json(file.read_bytes())["num_shots"] if _has_results(file) else {}
    atomic_write_json(file, {**settings, "num_shots": {**before, **settings["num_shots"]}})
    with ray_session(address), ExitStack() as stack:
        remote = ray.remote(num_cpus=1, num_gpus=int(has_gpu()), max_retries=1)(measure)
        running = {remote.remote(job): job for job in jobs}
        stack.callback(cancel_unfinished, list(running), force=True)
        bar = progress.start("Measuring", len(jobs), "tasks")
        stack.callback(bar.close)
        while running:
            for ref in ray.wait(list(running), timeout=_POLL_SECONDS)[0]:
                job = running.pop(ref)
                try:
                    files = get_within(_ANSWER_SECONDS, ref, what=f"the samples of {job.task}")
                except RayError as error:
                    raise brought_home(
                        error,
                        "lm-evaluation-harness failed",
                        EvaluationError,
                        where=job.task,
                        hint="what was measured is kept; the same command goes on",
                    ) from error
                _keep(folder / job.task, files, settings)
                bar.advance()


def _require_vllm_package() -> None:
    """Check that vLLM is here under the name by which the harness asks for its version.

    Raises:
        ConfigError: It is not: builds for CPUs have names of their own.
    """
    try:
        version("vllm")
    except PackageNotFoundError as error:
        raise ConfigError(
            "lm-evaluation-harness finds no package vllm on a worker",
            where=argument("backend", "vllm"),
            hint=f"install it there, take {argument('backend', 'hf')}, or serve the model with "
            "vLLM and give the URL",
        ) from error


def measure(job: HarnessJob) -> dict[str, bytes]:
    """Run the harness on one task in this process, and return its files by name.

    Args:
        job: What to measure.
    """
    # Definitions of tasks run no code of data sets' makers, and nothing is told to anyone.
    os.environ |= {"HF_DATASETS_TRUST_REMOTE_CODE": "0", "TQDM_DISABLE": "1"}
    if job.backend == "vllm":
        _require_vllm_package()
    import torch
    from lm_eval import simple_evaluate
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.tasks import TaskManager

    with tempfile.TemporaryDirectory() as place:
        tracker = EvaluationTracker(output_path=place)
        results = simple_evaluate(
            model=job.backend,
            model_args=dict(job.model_args),
            # The harness would take CUDA whether or not it is there.
            device="cuda" if torch.cuda.is_available() else "cpu",
            tasks=[job.task],
            num_fewshot=job.num_shots,
            limit=job.limit,
            batch_size=job.batch_size,
            task_manager=TaskManager(include_path=job.include_path),
            evaluation_tracker=tracker,
            apply_chat_template=job.use_chat_template,
        )
        samples = results.pop("samples")
        tracker.save_results_aggregated(results=results, samples=samples)
        for name, rows in samples.items():
            tracker.save_results_samples(task_name=name, samples=rows)
        return {file.name: file.read_bytes() for file in Path(place).rglob("*.json*")}


def _keep(folder: Path, files: Mapping[str, bytes], settings: Mapping[str, Any]) -> None:
    """Write the files of one task; its results say which weights were measured, and how."""
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".") as place:
        whole = Path(place) / "whole"
        whole.mkdir()
        for name, content in files.items():
            if name.startswith("results_"):
                document = {**json.loads(content), "expo_ray": dict(settings)}
                content = json.dumps(document, indent=2, ensure_ascii=False).encode()
            (whole / name).write_bytes(content)
        whole.rename(folder)
