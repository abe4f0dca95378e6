"""The Serve configuration that a run writes, deployed for real."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import httpx
import openai
import pytest

from expo_ray.serving import ModelSource
from expo_ray.workflow.recipe import GeneratorSettings
from expo_ray.workflow.run_dir import RunDir
from expo_ray.workflow.serve_config import write_serve_config
from tests.head_node import RAY, free_port, head_node


@pytest.mark.slow
def test_serve_deploys_it_and_clients_see_the_alpha(
    pico_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    initial, aligned = map(str, pico_pair)
    source = ModelSource(model=aligned, initial=initial, alpha=0.3)
    directory = RunDir(tmp_path)
    write_serve_config(directory, source, GeneratorSettings(), headline="Extrapolate by 0.3")
    text = directory.serve_config_file.read_text()
    port = free_port()
    assert text.count("port: 8000") == 1
    directory.serve_config_file.write_text(text.replace("port: 8000", f"port: {port}"))
    url = f"http://127.0.0.1:{port}"
    with head_node(tmp_path) as environment:
        dashboard = ["--address", environment["RAY_API_SERVER_ADDRESS"]]
        deploy = [str(RAY.with_name("serve")), "deploy", *dashboard]
        command = [*deploy, str(directory.serve_config_file)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        _wait_until_it_answers(f"{url}/v1/models")
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        stable, model = client.models.list().data
        assert stable.id == "aligned"
        answer = client.chat.completions.create(
            model=model.id, messages=[{"role": "user", "content": "hello"}], max_tokens=4
        )
        assert model.id == answer.model == "aligned@alpha=0.3"
        assert answer.usage is not None and answer.usage.completion_tokens > 0


def _wait_until_it_answers(url: str) -> None:
    deadline = time.monotonic() + 150
    status = "no answer"
    while time.monotonic() < deadline:
        try:
            status = str(httpx.get(url, timeout=5).status_code)
        except httpx.HTTPError as error:
            status = str(error)
        if status == "200":
            return
        time.sleep(0.5)
    raise AssertionError(f"{url}: {status}")
