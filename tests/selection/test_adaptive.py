"""Searching an alpha by part of the model: on functions whose best parts are known."""

from __future__ import annotations

from fnmatch import fnmatchcase

import numpy as np
import pytest

from expo_ray.extrapolation.planning.alpha_rules import AlphaRules, Ramp
from expo_ray.selection.adaptive import (
    AdaptiveSettings,
    best_trial,
    compare_with_uniform,
    make_rules,
    module_globs,
    search_rules,
    uniform_values,
)
from expo_ray.selection.settings import SelectionSettings

NAMES = [
    "model.embed_tokens.weight",
    *(
        f"model.layers.{layer}.{part}.weight"
        for layer in range(12)
        for part in ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "input_layernorm")
    ),
    "model.norm.weight",
    "lm_head.weight",
]
GLOBS = module_globs(NAMES)
SETTINGS = SelectionSettings(num_resamples=1000)


def test_every_tensor_belongs_to_one_part() -> None:
    assert GLOBS == {
        "attention": (
            "model.layers.*.self_attn.o_proj.weight",
            "model.layers.*.self_attn.q_proj.weight",
        ),
        "embeddings": ("lm_head.weight", "model.embed_tokens.weight"),
        "mlp": ("model.layers.*.mlp.up_proj.weight",),
        "norms": ("model.layers.*.input_layernorm.weight", "model.norm.weight"),
    }


def test_values_become_rules() -> None:
    values = {"attention.first": 1, "attention.last": 2, "mlp.first": 3, "mlp.last": 4}
    rules = make_rules(values | {"embeddings": 5, "norms": 6}, GLOBS)
    found = {rule.match: rule.alpha for rule in rules.rules}
    assert found["model.layers.*.self_attn.q_proj.weight"] == Ramp(first=1, last=2)
    assert found["model.layers.*.mlp.up_proj.weight"] == Ramp(first=3, last=4)
    assert found["lm_head.weight"] == 5
    assert found["model.norm.weight"] == 6


def test_every_rule_takes_its_tensors_though_wider_ones_match_them_too() -> None:
    names = [
        f"model.layers.{layer}.{part}.weight"
        for layer in range(2)
        for part in ("attn.q_proj", "vision.attn.q_proj", "experts.3.attn.q_proj", "3.attn.q_proj")
    ]
    globs = module_globs(names)
    rules = make_rules(uniform_values(1.0, globs), globs).rules
    taken = {next(rule.match for rule in rules if fnmatchcase(name, rule.match)) for name in names}
    assert taken == {rule.match for rule in rules}
    assert len(taken) == 4


def gain_of(rules: AlphaRules) -> tuple[float, tuple[str, ...]]:
    """Best where attention is at 1.5, the rest at 0.2; the MLP may not pass 1.8."""
    alphas = {rule.match: rule.alpha for rule in rules.rules}
    attention = alphas["model.layers.*.self_attn.q_proj.weight"]
    mlp = alphas["model.layers.*.mlp.up_proj.weight"]
    assert isinstance(attention, Ramp)
    assert isinstance(mlp, Ramp)
    wrong = [attention.first - 1.5, attention.last - 1.5, mlp.first - 0.2, mlp.last - 0.2]
    stopped = ("length ratio",) if max(mlp.first, mlp.last) > 1.8 else ()
    return -float(np.square(wrong).sum()), stopped


def test_the_search_starts_from_the_uniform_alpha_and_improves_on_it() -> None:
    pytest.importorskip("optuna")
    settings = AdaptiveSettings(num_trials=60)
    trials = search_rules(gain_of, 1.0, GLOBS, settings=settings, seed=1)
    assert set(trials[0].values.values()) == {1.0}
    assert all(0 <= value <= 2 for trial in trials for value in trial.values.values())
    best = best_trial(trials)
    assert best is not None
    assert best.gain is not None
    assert trials[0].gain is not None
    assert best.gain > trials[0].gain / 2
    assert not best.stopped
    again = search_rules(gain_of, 1.0, GLOBS, settings=settings, seed=1)
    assert again == trials


def test_where_every_trial_is_stopped_there_is_no_best_one() -> None:
    pytest.importorskip("optuna")
    trials = search_rules(
        lambda rules: (1.0, ("truncation rate",)),
        0.5,
        GLOBS,
        settings=AdaptiveSettings(num_trials=3),
        seed=1,
    )
    assert best_trial(trials) is None


@pytest.mark.parametrize(
    ("shift", "stopped", "is_better", "words"),
    [
        (1.0, (), True, "more reward"),
        (0.0, (), False, "no gain"),
        (-1.0, (), False, "no gain"),
        (1.0, ("repetition",), False, "stopped by repetition"),
    ],
)
def test_only_a_gain_on_heldout_prompts_counts(
    shift: float, stopped: tuple[str, ...], is_better: bool, words: str
) -> None:
    noise = np.random.default_rng(0).normal(size=200)
    found = compare_with_uniform(noise - noise.mean() + shift, stopped, SETTINGS)
    assert found["is_better"] is is_better
    assert words in found["reason"]
    assert found["gain"] == pytest.approx(shift, abs=1e-9)


def test_too_few_prompts_confirm_nothing() -> None:
    found = compare_with_uniform(np.ones(5), (), SETTINGS)
    assert not found["is_better"]
