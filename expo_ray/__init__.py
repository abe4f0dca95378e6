"""expo_ray: extrapolate aligned language models on Ray and choose alpha by evidence.

The commands of `expo-ray` as functions, with the same arguments; each is imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from expo_ray.lazy import lazy_exports

if TYPE_CHECKING:
    from expo_ray.evaluation import (
        alpaca_eval_judgements,
        alpaca_eval_metrics,
        alpaca_eval_outputs,
        lm_eval_results,
        mt_bench_answers,
        mt_bench_scores,
        open_llm_changes,
        plan_prompts,
        reward_bench_accuracy,
        reward_self_tests,
    )
    from expo_ray.extrapolation import (
        diagnose,
        diagnose_trajectory,
        doctor,
        extrapolate,
        extrapolate_trajectory,
        inspect_checkpoint,
        verify,
    )
    from expo_ray.loadtests import loadtest
    from expo_ray.reports import compare, compare_pair, write_report
    from expo_ray.serving import generate, score, serve, set_alpha
    from expo_ray.workflow.recipe_check import check_recipe
    from expo_ray.workflow.recipe_templates import new_recipe
    from expo_ray.workflow.run import run, select
    from expo_ray.workflow.submission import submit

__version__ = "0.1.0"

__all__ = [
    "alpaca_eval_judgements",
    "alpaca_eval_metrics",
    "alpaca_eval_outputs",
    "check_recipe",
    "compare",
    "compare_pair",
    "diagnose",
    "diagnose_trajectory",
    "doctor",
    "extrapolate",
    "extrapolate_trajectory",
    "generate",
    "inspect_checkpoint",
    "lm_eval_results",
    "loadtest",
    "mt_bench_answers",
    "mt_bench_scores",
    "new_recipe",
    "open_llm_changes",
    "plan_prompts",
    "reward_bench_accuracy",
    "reward_self_tests",
    "run",
    "score",
    "select",
    "serve",
    "set_alpha",
    "submit",
    "verify",
    "write_report",
]

__getattr__ = lazy_exports(
    __name__,
    {
        "alpaca_eval_judgements": "evaluation",
        "alpaca_eval_metrics": "evaluation",
        "alpaca_eval_outputs": "evaluation",
        "check_recipe": "workflow.recipe_check",
        "compare": "reports",
        "compare_pair": "reports",
        "diagnose": "extrapolation",
        "diagnose_trajectory": "extrapolation",
        "doctor": "extrapolation",
        "extrapolate": "extrapolation",
        "extrapolate_trajectory": "extrapolation",
        "generate": "serving",
        "inspect_checkpoint": "extrapolation",
        "lm_eval_results": "evaluation",
        "loadtest": "loadtests",
        "new_recipe": "workflow.recipe_templates",
        "mt_bench_answers": "evaluation",
        "mt_bench_scores": "evaluation",
        "open_llm_changes": "evaluation",
        "plan_prompts": "evaluation",
        "reward_bench_accuracy": "evaluation",
        "reward_self_tests": "evaluation",
        "run": "workflow.run",
        "score": "serving",
        "select": "workflow.run",
        "serve": "serving",
        "set_alpha": "serving",
        "submit": "workflow.submission",
        "verify": "extrapolation",
        "write_report": "reports",
    },
)
