"""How fast reward models read batches: by length, at equal lengths, and as usual.

    python -m benchmarks.reward_batching [data/alpaca_eval/outputs/tulu-2-dpo-70b.json]

Scores responses (AlpacaEval's output format; without a file our own, whose lengths spread as those
of published ones do; `make data` fetches some) with a random classifier three ways: in the
batches that `expo-ray score` makes (chunks of the rows laid together by length, as one replica gets
them, and batches of like length within each); the same tokens cut into rows of equal length, where
nothing is padding (the most that batching can reach); and the usual pipeline: unsorted, batches of
8, padded to the longest. Prints the share of padding, tokens per second and the two ratios, of the
middle of several rounds in which the three take turns.

Needs: two CPU cores. Takes: 10 minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch
from transformers import LlamaConfig
from transformers.models.llama import LlamaForSequenceClassification

from expo_ray.rewards.batching import MAX_BATCH_TOKENS, length_buckets, pad_right
from expo_ray.serving.chunked_calls import split
from expo_ray.serving.reward_rows import CHUNK_ROWS
from tests import samples

Batches = list[list[list[int]]]
_CHARS_PER_TOKEN = 4  # of English text in the vocabularies of the published reward models
_VOCAB_SIZE = 1000


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Measure, print a table, and return the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("outputs", type=Path, nargs="?", help="AlpacaEval outputs (JSON)")
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--hidden-size", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="Count seconds of CPU: for a machine on which others compute, with OMP_NUM_THREADS=1.",
    )
    flags = parser.parse_args(arguments)
    clock = time.process_time if flags.cpu_time else time.perf_counter
    outputs = (
        json.loads(flags.outputs.read_text("utf-8"))
        if flags.outputs
        else samples.outputs(flags.rows)
    )
    rows = token_rows(outputs[: flags.rows])
    mean = round(sum(map(len, rows)) / len(rows))
    lengths = [len(row) for row in rows]
    ways: dict[str, Batches] = {
        "by length": [[rows[i] for i in batch] for batch in served_batches(lengths)],
        "equal lengths": [*cut(equal_rows(rows, mean), max(1, MAX_BATCH_TOKENS // mean))],
        "usual": list(cut(rows, 8)),
    }
    model = random_classifier(flags.hidden_size, flags.layers, max(lengths)).to(flags.device)
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(flags.rounds + 1):
        for way, batches in ways.items():
            spent = score(model, batches, flags.device, clock)
            if number:  # the first round only warms up
                seconds[way].append(spent)
    figures = report(ways, {way: statistics.median(some) for way, some in seconds.items()})
    sys.stdout.write(f"{flags.device}, {flags.rounds} rounds, {len(rows)} responses\n")
    return figures


def served_batches(lengths: Sequence[int]) -> Iterable[list[int]]:
    """Yield the row numbers of each batch, as a table is scored by one replica."""
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    for chunk in split(order, max_rows=CHUNK_ROWS, num_replicas=1):
        for batch in length_buckets([lengths[row] for row in chunk]):
            yield [chunk[place] for place in batch]


def token_rows(outputs: Iterable[Mapping[str, str]]) -> list[list[int]]:
    """Return rows as long as the responses would be in tokens, in their order."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for row in outputs:
        length = 12 + (len(row["instruction"]) + len(row["output"])) // _CHARS_PER_TOKEN
        rows.append(torch.randint(1, _VOCAB_SIZE, (length,), generator=generator).tolist())
    return rows


def equal_rows(rows: Iterable[list[int]], length: int) -> list[list[int]]:
    """Return the same tokens in rows of one length; a shorter rest is dropped."""
    tokens = [token for row in rows for token in row]
    return [row for row in cut(tokens, length) if len(row) == length]


def cut(items: Sequence, size: int) -> Iterable[list]:
    """Yield consecutive pieces."""
    return (list(items[start : start + size]) for start in range(0, len(items), size))


def random_classifier(hidden_size: int, num_layers: int, max_length: int):
    """Return a one-label classifier with random weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=_VOCAB_SIZE,
        hidden_size=hidden_size,
        intermediate_size=hidden_size * 3,
        num_hidden_layers=num_layers,
        num_attention_heads=hidden_size // 32,
        num_key_value_heads=hidden_size // 32,
        max_position_embeddings=max_length,
        num_labels=1,
        pad_token_id=0,
    )
    return LlamaForSequenceClassification(config).eval()


def score(model, batches: Batches, device: str, clock: Callable[[], float]) -> float:
    """Return the seconds that all batches take."""
    started = clock()
    with torch.inference_mode():
        for batch in batches:
            ids_bt, mask_bt = pad_right(batch, pad_id=0, device=device)
            model(input_ids=ids_bt, attention_mask=mask_bt).logits.float().tolist()
    return clock() - started


def report(ways: dict[str, Batches], seconds: dict[str, float]) -> dict[str, float]:
    """Print one line per way and the two ratios; returns them."""
    rates = {}
    for way, batches in ways.items():
        real = sum(len(row) for batch in batches for row in batch)
        area = sum(max(map(len, batch)) * len(batch) for batch in batches)
        rates[way] = real / seconds[way]
        sys.stdout.write(
            f"{way:14} {len(batches):4} batches  padding {1 - real / area:6.1%}  "
            f"{rates[way]:9,.0f} tokens/s\n"
        )
    figures = {
        "to_equal_lengths": rates["by length"] / rates["equal lengths"],
        "to_usual": rates["by length"] / rates["usual"],
    }
    for name, ratio in figures.items():
        sys.stdout.write(f"{name}: {ratio:.2f}\n")
    return figures


if __name__ == "__main__":
    main()
