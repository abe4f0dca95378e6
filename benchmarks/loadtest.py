"""How true are the times that a load test reports? Against a server that logs when it sent what.

The server delays every token by a known time, and logs when a request had arrived and when it
handed each token to the socket. Both sides read the same system clock. Printed: how late the
client sent, and how far its arrival times lie from the server's send times, per request.

    python -m benchmarks.loadtest [--rate 40] [--num-requests 200] [--tokens 20]

Pass: the median error against the server's send times is at most 1 ms.

Needs: two CPU cores. Takes: half a minute.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from aiohttp import web

from expo_ray.loadtests import LoadtestOptions, loadtest

LIMIT_MS = 1.0


def serve(ready: Connection, log_path: str, num_tokens: int, token_seconds: float) -> None:
    """Serve until the process is ended; one JSON line per request into the log."""
    log = Path(log_path).open("w", buffering=1)  # noqa: SIM115

    async def models(request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "delaying"}]})

    async def chat(request: web.Request) -> web.StreamResponse:
        arrived = time.time()
        body = await request.json()
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        sent = []
        for _ in range(num_tokens):
            await asyncio.sleep(token_seconds)
            sent.append(time.time())
            await response.write(b'data: {"choices": [{"delta": {"content": "x "}}]}\n\n')
        end = {"choices": [{"delta": {}, "finish_reason": "stop"}]}
        usage = {"prompt_tokens": 1, "completion_tokens": num_tokens}
        last = {"choices": [], "usage": usage}
        for event in (json.dumps(end), json.dumps(last), "[DONE]"):
            await response.write(f"data: {event}\n\n".encode())
        prompt = body["messages"][-1]["content"]
        log.write(json.dumps({"prompt": prompt, "arrived": arrived, "sent": sent}) + "\n")
        return response

    async def run() -> None:
        app = web.Application()
        app.router.add_get("/v1/models", models)
        app.router.add_post("/v1/chat/completions", chat)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        ready.send(runner.addresses[0][1])
        await asyncio.Event().wait()

    asyncio.run(run())


def compare(folder: Path, log_path: Path) -> dict[str, np.ndarray]:
    """Return errors in ms: arrival of each token, first and last, and sending itself."""
    started_at = [
        point["started_at"] for point in json.loads((folder / "summary.json").read_text())["points"]
    ]
    logged = {}
    for line in log_path.read_text().splitlines():
        entry = json.loads(line)
        logged[entry["prompt"]] = entry
    errors: dict[str, list[float]] = {"tokens": [], "first": [], "last": [], "sent": [], "due": []}
    for row in pq.read_table(folder / "requests.parquet").to_pylist():
        if row["phase"] != "measured" or row["error"]:
            continue
        entry = logged[f"prompt {row['prompt_id']}"]
        origin = started_at[row["point"]]
        pairs = zip(row["token_seconds"], entry["sent"], strict=True)
        late = [1e3 * (origin + seen - sent) for seen, sent in pairs]
        errors["tokens"] += late
        errors["first"].append(late[0])
        errors["last"].append(late[-1])
        errors["sent"].append(1e3 * (entry["arrived"] - origin - row["sent_seconds"]))
        errors["due"].append(1e3 * (entry["arrived"] - origin - row["intended_seconds"]))
    return {name: np.array(values) for name, values in errors.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rate", type=float, default=40.0, help="requests per second")
    parser.add_argument("--num-requests", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=20, help="tokens per answer")
    parser.add_argument("--token-seconds", type=float, default=0.02)
    parser.add_argument("--output", type=Path, help="keep the load test here")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    ours, theirs = multiprocessing.Pipe()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.output or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        prompts = folder / "prompts.jsonl"
        lines = (json.dumps({"prompt": f"prompt {i}"}) for i in range(args.num_requests + 100))
        prompts.write_text("\n".join(lines))
        log_path = folder / "server.jsonl"
        server = multiprocessing.Process(
            target=serve, args=(theirs, str(log_path), args.tokens, args.token_seconds)
        )
        server.start()
        try:
            summary = loadtest(
                f"http://127.0.0.1:{ours.recv()}",
                prompts=prompts,
                output=folder,
                rate=[args.rate],
                num_requests=args.num_requests,
                options=LoadtestOptions(num_warmup=4),
            )
        finally:
            server.terminate()
            server.join()
        errors = compare(folder, log_path)
    [point] = summary["points"]
    print(f"{args.num_requests} requests at {args.rate:g}/s, {args.tokens} tokens each", end=", ")
    print(f"void: {point['client_saturated']}, dispatch p99 {point['p99_dispatch_lag_ms']:.2f} ms")
    names = {
        "first": "first token: client's arrival - server's send",
        "last": "last token:  client's arrival - server's send",
        "tokens": "every token: client's arrival - server's send",
        "sent": "request:     server's arrival - client's send",
        "due": "request:     server's arrival - intended send",
    }
    for name, what in names.items():
        median, p90, p99 = np.percentile(errors[name], [50, 90, 99])
        print(f"{what}: median {median:6.3f} ms, p90 {p90:6.3f}, p99 {p99:6.3f}")
    # The requests' way holds the server's own reading of them too: told, not judged.
    judged = ("first", "last", "tokens")
    worst = max(abs(float(np.median(errors[name]))) for name in judged)
    print(f"largest median error of an arrival {worst:.3f} ms, limit {LIMIT_MS:g} ms")
    return 0 if worst <= LIMIT_MS else 1


if __name__ == "__main__":
    sys.exit(main())
