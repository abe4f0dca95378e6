"""What a Ray of a command's own leaves out where its replicas are reached by handles alone."""

from __future__ import annotations

import subprocess
import sys

from expo_ray.cluster import is_for_handles, ray_session

BULK = """
import psutil
from ray import serve
from expo_ray.cluster import is_for_handles, ray_session
from expo_ray.serving.launching import application, ensure_serve

class Echo:
    def say(self, text):
        return text

with ray_session("local", num_cpus=2, for_handles=True):
    with ray_session("local"):
        assert is_for_handles()  # the Ray is the same
    for text in ("once", "again"):
        ensure_serve()
        with application(serve.deployment(Echo).bind(), label="echo") as (handle, _):
            print(handle.say.remote(text).result(timeout_s=60))
    found = psutil.Process().children(recursive=True)
    print(*sorted(p.cmdline()[0].split(".")[0] for p in found if "Actor" in p.cmdline()[0]))
    print(*sorted({p.cmdline()[0] for p in found if "ServeController" in p.cmdline()[0]}))
print(is_for_handles())
"""

# What Serve raises where a proxy of its is killed, and where it waits in vain.
FAILING = """
from ray import serve
from ray.exceptions import ActorDiedError
from expo_ray.cluster import ray_session
from expo_ray.errors import ServingError
from expo_ray.serving.launching import ensure_serve

with ray_session("local", num_cpus=1):
    for cause in (ActorDiedError(), TimeoutError("after 60 s")):
        def start(**options):
            raise cause
        serve.start = start
        try:
            ensure_serve()
        except ServingError as error:
            print(error.message, "|", error.got, "|", error.hint)
"""


def test_bulk_work_on_a_ray_of_its_own_starts_no_proxy() -> None:
    result = subprocess.run(
        [sys.executable, "-c", BULK], capture_output=True, text=True, timeout=150
    )
    assert result.returncode == 0, result.stderr
    once, again, proxies, controllers, after = result.stdout.splitlines()
    assert (once, again, proxies, after) == ("once", "again", "", "False")
    assert controllers.startswith("ray::ServeController")


def test_a_ray_that_is_there_stays_as_it_is(ray_cluster: str) -> None:
    with ray_session("local", for_handles=True):
        assert not is_for_handles()


def test_a_serve_that_does_not_start_is_an_error_of_ours() -> None:
    result = subprocess.run(
        [sys.executable, "-c", FAILING], capture_output=True, text=True, timeout=150
    )
    assert result.returncode == 0, result.stderr
    died, late = (line.split(" | ") for line in result.stdout.splitlines())
    assert died[0] == late[0] == "Ray Serve did not start"
    assert "ActorDiedError" in died[1]
    assert late[1] == "TimeoutError: after 60 s"
    assert "again" in late[2]
