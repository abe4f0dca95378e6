"""What a guard should do in doubt: how often each rule stops sound and harmful candidates.

    python -m benchmarks.guard_doubt [--write]

Tables are simulated, with the shares that were met in practice. A guard is asked twice, on tuning
and on held-out prompts, and stops a candidate that it stops on either. A sound candidate has the
aligned model's share; others are at half the threshold, which is allowed, beyond it by half of it,
at twice the threshold, or broken (a quarter of all answers more). The rules are those of
`guard_doubt`: `pass` stops only with confidence, `by-value` where the value lies beyond the
threshold, `stop` unless the whole interval lies within it.

Needs: a CPU core. Takes: a minute.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from expo_ray.selection.guard_comparisons import Comparison, compare_shares

RESULT = Path(__file__).resolve().parent / "results" / "guard_doubt.md"
NUM_RUNS = 2000
NUM_PROMPTS = (50, 100, 250, 500)
CONFIDENCE = 0.95
RULES = ("pass", "by-value", "stop")


@dataclass(frozen=True, kw_only=True, slots=True)
class Sign:
    """A sign of broken text: its threshold and how often the aligned model shows it."""

    name: str
    limit: float
    share: float

    def candidates(self) -> Iterator[tuple[str, float]]:
        """Yield candidates by how much more often they show it."""
        yield "sound", 0.0
        yield "allowed, at half the threshold", 0.5 * self.limit
        yield "at the threshold and half", 1.5 * self.limit
        yield "at twice the threshold", 2 * self.limit
        yield "broken, a quarter more", 0.25


SIGNS = (
    Sign(name="special tokens", limit=0.01, share=0.0),
    Sign(name="language drift", limit=0.02, share=0.01),
    Sign(name="prompt echo", limit=0.05, share=0.015),
    Sign(name="truncation", limit=0.05, share=0.02),
    Sign(name="truncation, aligned at 19%", limit=0.0, share=0.19),
)


@cache
def compare(more: int, fewer: int, num_prompts: int, limit: float) -> Comparison:
    """Compare by the numbers of prompts on which one of both alone shows the sign."""
    rest = np.zeros(num_prompts - more - fewer)
    return compare_shares(np.r_[np.ones(more), -np.ones(fewer), rest], limit, CONFIDENCE)


def stops(rule: str, found: Comparison, limit: float) -> bool:
    """Tell whether a guard stops a candidate under a rule."""
    is_beyond = found.value > limit
    if found.p_value <= 1 - CONFIDENCE:
        return is_beyond
    return rule == "stop" or (rule == "by-value" and is_beyond)


def stopped_share(
    sign: Sign, increase: float, num_prompts: int, rng: np.random.Generator
) -> dict[str, float]:
    """Return by rule how often a candidate is stopped on one of both halves."""
    # Half of those answers that show the sign do so under both models.
    fewer = sign.share * (1 - sign.share) / 2
    chances = [fewer + increase, fewer, 1 - 2 * fewer - increase]
    counts = rng.multinomial(num_prompts, chances, size=(NUM_RUNS, 2))
    found = [
        [compare(int(m), int(f), num_prompts, sign.limit) for m, f, _ in halves]
        for halves in counts
    ]
    return {
        rule: float(np.mean([any(stops(rule, one, sign.limit) for one in both) for both in found]))
        for rule in RULES
    }


def render() -> str:
    """Return the results as Markdown."""
    rng = np.random.default_rng(0)
    rows = []
    for sign in SIGNS:
        for name, increase in sign.candidates():
            if not sign.limit and 0 <= increase < 0.25 and name != "sound":
                continue  # every increase is beyond a threshold of none
            cells = []
            for n in NUM_PROMPTS:
                shares = stopped_share(sign, increase, n, rng)
                cells.append(" / ".join(f"{shares[rule]:.0%}" for rule in RULES))
            rows.append(f"| {sign.name} | {name} | {' | '.join(cells)} |")
    head = " | ".join(f"{n} + {n} prompts" for n in NUM_PROMPTS)
    return "\n".join(
        [
            "# What a guard does in doubt",
            "",
            "Written by `python -m benchmarks.guard_doubt --write`: how often a candidate is "
            f"stopped by one guard, over {NUM_RUNS:,} simulated pairs of tables, under "
            f"`guard_doubt: {'` / `'.join(RULES)}`.",
            "",
            f"| guard | candidate | {head} |",
            f"| --- | --- |{' --- |' * len(NUM_PROMPTS)}",
            *rows,
            "",
            "A sound candidate should never be stopped, and meets ten guards. Where the aligned "
            "model is cut off already, `by-value` stops it in two cases of three; a candidate at "
            "half the threshold, which is allowed, it stops in up to two of five. `stop` stops "
            "everybody until there are hundreds of prompts. `pass` stops hardly anybody by "
            "chance, and what is broken under any number of prompts. Its price lies between: "
            "harm of once or twice the threshold it finds with hundreds of prompts only.",
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.name}")
    arguments = parser.parse_args()
    text = render()
    print(text)
    if arguments.write:
        RESULT.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
