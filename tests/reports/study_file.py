"""A made-up result of a controlled experiment."""

from __future__ import annotations

from typing import Any


def gain(mean: float, *, seeds: bool) -> dict[str, Any]:
    over_seeds = {"seeds_ci_low": mean - 0.3, "seeds_ci_high": mean + 0.3}
    none = dict.fromkeys(over_seeds)
    found = {"mean": mean, "ci_low": mean - 0.1, "ci_high": mean + 0.1}
    return found | (over_seeds if seeds else none)


def arm(name: str, *, seeds: bool, published: str = "") -> dict[str, Any]:
    means = {-0.5: -0.2, 0.0: 0.0, 1.0: 0.4, 5.0: -1.0}
    return {
        "name": name,
        "published": published,
        "is_alignment_step": True,
        "relative_delta": 0.0123,
        "best_alphas": [1.0, 5.0, 1.0],
        "before": 4.0,
        "after": 4.4,
        "gain": gain(0.4, seeds=seeds),
        "over_yardstick": gain(0.2, seeds=seeds),
        "tokens_before": 21.3,
        "tokens_after": 25.0,
        "worse_from": 5.0,
        "curve": [
            {
                "alpha": a,
                "mean": 4 + m,
                "gain": gain(m, seeds=seeds),
                "tokens": 20 + a,
                "cut_off": 0,
            }
            for a, m in means.items()
        ],
        "seeds": [
            {
                "seed": 2,
                "best_alphas": [1.0, 1.0],
                "gain": 0.4,
                "fit": False,
                "warnings": ["unrelated"],
            }
        ],
    }


def study(
    *, seeds: bool = True, others: int = 0, name: str = "10% <b>", num_arms: int = 2
) -> dict[str, Any]:
    """Return the content of a study's file."""
    counts = {"num_pairs": 3, "num_warned": 0, "num_unfit": 0}
    return {
        "schema_version": 1,
        "name": "a-study",
        "title": "A title",
        "question": "Is it so?",
        "published": "It was so.",
        "limits": "Not elsewhere.",
        "yardstick": name,
        "settings": {"seeds": [2, 3, 4] if seeds else [2], "small": not seeds},
        "num_prompts": 300,
        "confidence": 0.95,
        "arms": [
            *(
                arm(
                    name if not i else f"{name} {i}", seeds=seeds, published="alpha 8: 3.59 to 5.82"
                )
                for i in range(num_arms - 1)
            ),
            arm("100%", seeds=seeds),
        ],
        "warned": {"alignment_steps": counts, "others": counts | {"num_pairs": others}},
        "shows": "It was so here.",
    }
