"""Published benchmarks, and comparing the results of two models on the same items."""

from __future__ import annotations

from typing import TYPE_CHECKING

from expo_ray.lazy import lazy_exports

if TYPE_CHECKING:
    from expo_ray.evaluation.alpaca_eval import alpaca_eval_metrics
    from expo_ray.evaluation.alpaca_judging import alpaca_eval_judgements
    from expo_ray.evaluation.alpaca_outputs import alpaca_eval_outputs
    from expo_ray.evaluation.lm_eval_run import lm_eval_results
    from expo_ray.evaluation.mt_bench import mt_bench_answers
    from expo_ray.evaluation.mt_bench_judging import mt_bench_scores
    from expo_ray.evaluation.open_llm import open_llm_changes
    from expo_ray.evaluation.prompt_plan import plan_prompts
    from expo_ray.evaluation.reward_bench import reward_bench_accuracy
    from expo_ray.evaluation.self_tests import reward_self_tests

__all__ = [
    "alpaca_eval_judgements",
    "alpaca_eval_metrics",
    "alpaca_eval_outputs",
    "lm_eval_results",
    "mt_bench_answers",
    "mt_bench_scores",
    "open_llm_changes",
    "plan_prompts",
    "reward_bench_accuracy",
    "reward_self_tests",
]

__getattr__ = lazy_exports(
    __name__,
    {
        "alpaca_eval_judgements": "alpaca_judging",
        "alpaca_eval_metrics": "alpaca_eval",
        "alpaca_eval_outputs": "alpaca_outputs",
        "lm_eval_results": "lm_eval_run",
        "mt_bench_answers": "mt_bench",
        "mt_bench_scores": "mt_bench_judging",
        "open_llm_changes": "open_llm",
        "plan_prompts": "prompt_plan",
        "reward_bench_accuracy": "reward_bench",
        "reward_self_tests": "self_tests",
    },
)
