"""The page of the gate's laboratory: every seed, and who was worse how often."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.proof_summary import significantly_worse
from expo_ray.selection.sample_size import prompts_for_margin

if TYPE_CHECKING:
    from benchmarks.gate_laboratory import Frozen

PICKS = ("reward alone", "guarded", "guarded, gate", "oracle")


def render(lines: Sequence[Mapping[str, Any]], frozen: Frozen, num_expected: int) -> str:
    """Return the results as a page."""
    differing = float(np.mean([line["differing"] for line in lines]))
    power = {"power": 0.8, "confidence": 0.95, "proportions": True}
    needed = prompts_for_margin(max(differing, 0.01), frozen.margin, **power)
    verdicts = [gate["verdict"] for line in lines for gate in line["gates"]]
    text = [
        "# The gate in the laboratory",
        "",
        "Written by `python -m benchmarks.gate_laboratory --summarize RESULTS --write`; settings "
        f"(digest `{frozen.digest()}`) fixed before these seeds were run. The task is small sums "
        "with polite phrases around; preferences and reward model like manners, and a right sum a "
        "quarter as much as one phrase. Differences in right sums are against the aligned model, "
        f"on {frozen.num_truth} prompts that nobody saw, with 95% paired intervals. "
        f"{frozen.seeds_per_initial} seeds share an initial model. Margin {frozen.margin:g}, on "
        f"{frozen.num_gate} prompts of the gate's own; at the {differing:.0%} of answers that "
        f"differed under the guarded pick, {needed:,} are needed for 80% power. The margin is "
        "wider than the usual 0.02, which would need more answers than this machine can give.",
        "",
        f"Finished: {len(lines)} of {num_expected} seeds. The gate answered "
        f"{verdicts.count('no-worse')} times that a candidate is no worse, "
        f"{verdicts.count('worse')} times that it is worse, and {verdicts.count('cannot-tell')} "
        "times that it cannot be told.",
        "",
        "| alpha picked by | mean reward gain | mean difference in right sums "
        "| significantly worse | after Holm | lost more than the margin | significantly |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in PICKS:
        raw, corrected = significantly_worse(lines, name)
        reward = np.mean([line["picks"][name]["reward"] for line in lines])
        right = np.mean([line["truth"][name]["gain"] for line in lines])
        text.append(
            f"| {name} | {reward:+.2f} | {right:+.3f} | {raw} | {corrected} "
            f"| {_num_beyond(lines, name, 'gain', frozen)} "
            f"| {_num_beyond(lines, name, 'ci_high', frozen)} |"
        )
    text += [
        "",
        "Worse: than the aligned model, by a test of the paired difference. A gate promises not "
        "that nothing is lost, but no more than the margin: the last two columns count the seeds "
        "whose difference lies below minus the margin, and those whose whole interval does.",
        "",
        "| seed | right, aligned | "
        + " | ".join(f"{name} | right" for name in PICKS)
        + " | gate |",
        "|---|---|" + "---|---|" * len(PICKS) + "---|",
    ]
    for line in sorted(lines, key=lambda one: one["seed"]):
        cells = [str(line["seed"]), f"{line['aligned_right']:.2f}"]
        for name in PICKS:
            pick, right = line["picks"][name], line["truth"][name]
            cells.append(f"{pick['alpha']:g} ({pick['reward']:+.2f})")
            cells.append(f"{right['gain']:+.3f} [{right['ci_low']:+.3f}, {right['ci_high']:+.3f}]")
        cells.append(", ".join(f"{g['alpha']:g}: {g['verdict']}" for g in line["gates"]) or "none")
        text.append("| " + " | ".join(cells) + " |")
    text += ["", "Of a pick: alpha (reward gain on the prompts that choose), then right sums.", ""]
    return "\n".join(text)


def _num_beyond(lines: Sequence[Mapping[str, Any]], name: str, bound: str, frozen: Frozen) -> int:
    """Count the seeds that lost more than the margin, by the value or by its upper bound."""
    return sum(line["truth"][name][bound] < -frozen.margin for line in lines)
