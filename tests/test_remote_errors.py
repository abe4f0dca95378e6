"""Errors of tasks, actors and replicas arrive as what was raised there."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest
import ray
from ray import serve
from ray.exceptions import RayError

from expo_ray.errors import CheckpointError, ServingError, TableError, WorkError
from expo_ray.remote_errors import brought_home, cause_in_one_line, our_error
from expo_ray.serving import generate
from expo_ray.serving.launching import application, ensure_serve


class EngineDeadError(Exception):
    """What vLLM raises where its engine has died; the cause stands in a log."""


@ray.remote(num_cpus=0, max_retries=0)
def fail(kind: str) -> None:
    if kind == "nested":
        ray.get(fail.remote("ours"))
    if kind == "ours":
        raise TableError("no such table", where="x.parquet", got=7, hint="give another")
    if kind == "engine":
        lines = ("Traceback:", "RuntimeError: no offset", "EngineDeadError: See above")
        for line in lines:
            prefix = (
                f"\x1b[36m(EngineCore_DP0 pid=7)\x1b[0;0m ERROR 11-29 08:00:00 [core.py:7] {line}"
            )
            print(prefix, file=sys.stderr, flush=True)  # noqa: T201
        raise EngineDeadError("EngineCore encountered an issue. See stack trace (above)")
    raise ValueError("why\nand more")


@ray.remote(num_cpus=0)
class Actor:
    def leave(self) -> None:
        os._exit(7)


@serve.deployment(ray_actor_options={"num_cpus": 0})
class Broken:
    def __init__(self, kind: str) -> None:
        if kind == "ours":
            raise CheckpointError("no chat template", where="m", got="none", hint="give one")
        raise ValueError("boom")


def caught(ref: object) -> RayError:
    with pytest.raises(RayError) as error:
        ray.get(ref, timeout=60)
    return error.value


@pytest.mark.parametrize("kind", ["ours", "nested"])
def test_our_own_error_of_a_task_comes_home_as_itself(kind: str, ray_cluster: str) -> None:
    error = brought_home(caught(fail.remote(kind)), "it failed", WorkError)
    assert type(error) is TableError
    assert error.as_dict() == {
        "kind": "table",
        "message": "no such table",
        "where": "x.parquet",
        "got": "7",
        "expected": None,
        "hint": "give another",
    }


def test_another_error_is_one_line_that_says_why(ray_cluster: str) -> None:
    failed = caught(fail.remote("other"))
    assert our_error(failed) is None
    error = brought_home(failed, "it failed", WorkError, where="here")
    assert (error.message, error.where, error.got) == ("it failed", "here", "ValueError: why")
    died = cause_in_one_line(caught(Actor.remote().leave.remote()))
    assert "exit" in died.lower()
    assert "\n" not in died and len(died) <= 500


def test_the_cause_of_a_dead_engine_is_fetched_from_its_log(ray_cluster: str) -> None:
    assert cause_in_one_line(caught(fail.remote("engine"))) == "RuntimeError: no offset"


def test_what_a_replica_raises_when_it_starts_comes_home(ray_cluster: str) -> None:
    ensure_serve()
    for kind, wanted, got in (
        ("ours", CheckpointError, "none"),
        ("other", ServingError, "ValueError: boom"),
    ):
        with pytest.raises(wanted) as error:
            with application(Broken.bind(kind), label="broken"):
                pass
        assert type(error.value) is wanted
        assert error.value.got == got
        assert "\x1b" not in str(error.value)
    assert error.value.message == "the replicas did not start"


def test_generate_says_itself_that_a_model_has_no_chat_template(
    pico_pair: tuple[Path, Path], ray_cluster: str, tmp_path: Path
) -> None:
    model, prompts = tmp_path / "model", tmp_path / "p.jsonl"
    shutil.copytree(pico_pair[1], model)
    (model / "chat_template.jinja").unlink()
    prompts.write_text('{"prompt": "x"}')
    with pytest.raises(CheckpointError, match="chat template") as error:
        generate(model, prompts=prompts, output=tmp_path / "r.parquet", address=ray_cluster)
    assert "ray::" not in str(error.value)
