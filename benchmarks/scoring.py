"""`expo-ray score` against a plain transformers loop, in pairs: same model, responses, scores.

    python -m benchmarks.scoring --responses 400
    python -m benchmarks.scoring --responses 400 --engine vllm
    python -m benchmarks.scoring --responses 20000 --layers 1 --outputs outputs/*.json

The reward model is SmolLM2-135M with a random head of one label. The plain script is what a user
would write: batches of 8 in the order of the file, padded to the longest, float32, all cores. The
phase is the scoring alone (ours with its self-test), the command everything from start to exit.
Scores are compared. Of many responses the whole model would take hours: `--layers` keeps its first
ones. Pass: 1.5 times as fast in the phase, the whole command as fast.

Needs: the extra language or `--model`, 2 GB of memory. Takes: 10 minutes for 400 responses.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.side_by_side import PhaseClock, judge, take_turns
from expo_ray.serving.engines.registry import reward_engine_names
from expo_ray.tables import RESPONSES_SCHEMA
from tests import samples

LIMITS = {"phase": 1.5, "command": 1.0}
MAX_DIFFERENCE = 1e-3
BATCH_ROWS = 8


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--responses", type=int, default=400)
    parser.add_argument("--outputs", type=Path, nargs="*", help="AlpacaEval outputs (JSON)")
    parser.add_argument("--model", help="language model that gets a head; None makes SmolLM2")
    parser.add_argument("--layers", type=int, help="of the language model; None keeps all")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--engine", choices=reward_engine_names(), default="transformers")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "expo-bench")
    parser.add_argument("--side", choices=["ours", "plain"], help=argparse.SUPPRESS)
    flags = parser.parse_args(arguments)
    folder = flags.folder / "scoring"
    responses = folder / f"responses-{flags.responses}.parquet"
    model = folder / ("reward-model" if flags.layers is None else f"reward-model-{flags.layers}")
    if flags.side:
        side = score_ours if flags.side == "ours" else score_plainly
        print(json.dumps(side(model, responses, flags.replicas, flags.engine)))
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    make_model(model, flags.model, flags.folder, flags.layers)
    write_responses(responses, flags.outputs, flags.responses)
    passed_on = ["--responses", str(flags.responses), "--replicas", str(flags.replicas)]
    passed_on += ["--folder", str(flags.folder), "--engine", flags.engine]
    if flags.layers is not None:
        passed_on += ["--layers", str(flags.layers)]
    found = take_turns(
        "benchmarks.scoring", ["ours", "plain"], passed_on, pairs=flags.pairs, unit="responses"
    )
    scores = [side[0].found["scores"] for side in found.values()]
    worst = max(abs(a - b) for a, b in zip(*scores, strict=True))
    print(f"{flags.responses} responses, scores differ by at most {worst:.1g}")
    if worst > MAX_DIFFERENCE:
        sys.exit(f"the scores differ by more than {MAX_DIFFERENCE:g}")
    return judge(found, LIMITS)


def score_ours(model: Path, responses: Path, num_replicas: int, engine: str) -> dict[str, Any]:
    """Score as the command does."""
    from expo_ray import score

    clock = PhaseClock("Scoring")
    with tempfile.TemporaryDirectory() as folder:  # a killed run's rows would be taken up
        output = Path(folder, "rewards.parquet")
        score(
            responses,
            reward_model=str(model),
            output=output,
            engine=engine,
            use_cache=False,
            num_replicas=num_replicas,
            address="local",
            progress=clock,
        )
        rewards = {row["prompt_id"]: row["reward"] for row in pq.read_table(output).to_pylist()}
    scores = [rewards[str(i)] for i in range(len(rewards))]
    return {"phase_seconds": clock.seconds, "amount": len(scores), "scores": scores}


def score_plainly(model: Path, responses: Path, num_replicas: int, engine: str) -> dict[str, Any]:
    """Score as most scripts do."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    network = AutoModelForSequenceClassification.from_pretrained(model, dtype=torch.float32).eval()
    rows = pq.read_table(responses, columns=["messages", "response"]).to_pylist()
    started = time.monotonic()
    scores: list[float] = []
    for start in range(0, len(rows), BATCH_ROWS):
        chats = [
            [*row["messages"], {"role": "assistant", "content": row["response"]}]
            for row in rows[start : start + BATCH_ROWS]
        ]
        batch = tokenizer.apply_chat_template(
            chats, padding=True, return_tensors="pt", return_dict=True
        )
        with torch.inference_mode():
            scores += network(**batch).logits[:, 0].tolist()
    seconds = time.monotonic() - started
    return {"phase_seconds": seconds, "amount": len(scores), "scores": scores}


def make_model(target: Path, body: str | None, cache: Path, num_layers: int | None = None) -> None:
    """Put a random head on a language model, or on its first layers, once."""
    if (target / "config.json").exists():
        return
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from expo_ray.lab.language.source import smollm2

    source = body or str(smollm2(cache))
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.padding_side = "right"
    torch.manual_seed(0)
    layers = {} if num_layers is None else {"num_hidden_layers": num_layers}
    network = AutoModelForSequenceClassification.from_pretrained(
        source, num_labels=1, pad_token_id=tokenizer.pad_token_id, dtype=torch.bfloat16, **layers
    )
    tokenizer.save_pretrained(target)
    network.save_pretrained(target)


def write_responses(target: Path, outputs: Sequence[Path] | None, num_rows: int) -> None:
    """Write a responses table of published lengths, or of our own that spread alike."""
    rows = [row for path in outputs or () for row in json.loads(path.read_text("utf-8"))]
    rows = rows or samples.outputs(num_rows)
    chosen = (rows[i % len(rows)] for i in range(num_rows))
    save_responses(target, [(row["instruction"], row["output"]) for row in chosen])


def save_responses(target: Path, pairs: Sequence[tuple[str, str]]) -> None:
    """Write prompts with the answers of somebody as a responses table."""
    table = [
        {
            "prompt_id": str(i),
            "sample": 0,
            "messages": [{"role": "user", "content": prompt}],
            "response": response,
            "model": "someone",
            "weights_digest": "none",
            "seed": i,
            "finish_reason": "stop",
            "prompt_tokens": 0,
            "completion_tokens": 0,
        }
        for i, (prompt, response) in enumerate(pairs)
    ]
    pq.write_table(pa.Table.from_pylist(table, schema=RESPONSES_SCHEMA), target)


if __name__ == "__main__":
    sys.exit(main())
