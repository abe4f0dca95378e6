"""Another alpha on a running service, against write, load and restart. In pairs, with medians.

    python benchmarks/alpha_switch.py --engine vllm --size 0.5b --pairs 3

Either way ends when a request for the new alpha has been answered.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import httpx
from llama_pair import SHAPES, make_pair

from expo_ray.cluster import ray_session
from expo_ray.extrapolation import checkpoint_name, extrapolate
from expo_ray.serving import EngineOptions, ModelSource, ServedModel

# A replica that ends or starts leaves Ray at work for seconds, which belong to its own side.
SETTLE_SECONDS = 5


def answer(client: httpx.Client, served: ServedModel) -> None:
    body = {"model": served.model, "prompt": "hello", "max_tokens": 1}
    client.post(f"{served.url}/v1/completions", json=body).raise_for_status()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", default="transformers", choices=["transformers", "vllm"])
    parser.add_argument("--size", default="0.5b", choices=[*SHAPES])
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "expo-bench")
    arguments = parser.parse_args()
    initial, aligned = make_pair(arguments.folder, arguments.size)
    vllm = arguments.engine == "vllm"
    options = EngineOptions(
        max_model_len=512, engine_args={"dtype": "bfloat16", "max_num_seqs": 16} if vllm else {}
    )
    live_seconds, restart_seconds = [], []
    with ray_session("local", num_cpus=8), httpx.Client(timeout=600) as client:
        source = ModelSource(model=aligned, initial=initial, alpha=0.1)
        with ServedModel(
            source, engine=arguments.engine, options=options, allow_alpha_change=True
        ) as live:
            for i in range(arguments.pairs):
                alpha = 0.2 + i / 10
                time.sleep(SETTLE_SECONDS)
                start = time.monotonic()
                live.set_alpha(alpha)
                answer(client, live)
                live_seconds.append(time.monotonic() - start)

                target = arguments.folder / "out" / checkpoint_name(alpha)
                shutil.rmtree(target, ignore_errors=True)
                time.sleep(SETTLE_SECONDS)
                start = time.monotonic()
                extrapolate(initial, aligned, target, alpha=alpha, address="inline")
                with ServedModel(
                    ModelSource(model=str(target)), engine=arguments.engine, options=options
                ) as written:
                    answer(client, written)
                    restart_seconds.append(time.monotonic() - start)
                    same = written.weights_digest == live.weights_digest
                shutil.rmtree(target)
                sys.stderr.write(f"{live_seconds[-1]:.2f} s / {restart_seconds[-1]:.2f} s\n")
                if not same:
                    sys.exit("the live weights are not the written ones")
    medians = statistics.median(live_seconds), statistics.median(restart_seconds)
    ratios = [b / a for a, b in zip(live_seconds, restart_seconds, strict=True)]
    result = {
        "engine": arguments.engine,
        "size": arguments.size,
        "pairs": arguments.pairs,
        "live_seconds": round(medians[0], 3),
        "write_and_restart_seconds": round(medians[1], 3),
        "median_ratio": round(statistics.median(ratios), 1),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
