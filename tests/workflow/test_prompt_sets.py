"""Further sets of prompts by name, and the gates on them."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from expo_ray.errors import ConfigError
from expo_ray.progress import NullProgress
from expo_ray.workflow import stages
from expo_ray.workflow.gate_names import gate_margins, plan_gates, reported_models
from expo_ray.workflow.inputs import prepare_models
from expo_ray.workflow.plan import plan_recipe
from expo_ray.workflow.prompt_sets import announce_gates, find_sets
from expo_ray.workflow.recipe import Recipe
from expo_ray.workflow.recipe_check import check_recipe
from expo_ray.workflow.recipe_file import RecipeError, load_recipe, validate_recipe
from expo_ray.workflow.run_dir import RunDir
from tests.workflow.test_run import write_recipe

SET: dict[str, Any] = {"path": "gsm.jsonl", "reward_models": ["check:number"]}


def recipe(prompts: dict[str, Any], **changes: Any) -> Recipe:
    document = {"name": "x", "output": "o", "initial": "a", "aligned": "b",
                "reward_models": ["./rm", "./rm2", "check:regex=a=b"], "prompts": prompts,
                **changes}  # fmt: skip
    return validate_recipe(document, where="recipe.yaml")


def with_gate(**changes: Any) -> Recipe:
    prompts = {"main": {"path": "p.jsonl"}, "gsm": {**SET, **changes}}
    return recipe(prompts, selection={"no_worse_than": {"gsm": 0.02}})


class Told(NullProgress):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def message(self, text: str) -> None:
        self.texts.append(text)


def test_one_set_is_written_in_two_ways_and_is_the_same_run() -> None:
    plain = recipe({"path": "p.jsonl", "limit": 4})
    named = recipe({"main": {"path": "p.jsonl", "limit": 4}})
    assert plain == named
    assert plain.digest() == named.digest() != with_gate().digest()
    assert with_gate().digest() != with_gate(role="gate", limit=100).digest()
    assert plain.prompts.sets == {}
    assert [(name, one.role) for name, one in with_gate().prompts.sets.items()] == [("gsm", "gate")]


@pytest.mark.parametrize(("prompts", "margins", "fragment"), [
    ({"path": "p", "limt": 4}, {}, "did you mean `prompts.limit`"),
    ({"main": {"path": "p"}, "limit": 4}, {}, "move limit into it"),
    ({"main": {"path": "p"}, "gsm": {**SET, "reward_model": 1}}, {"gsm": 0.1},
     "did you mean `prompts.gsm.reward_models`"),
    ({"main": {"path": "p"}, "gsm": {"path": "g"}}, {"gsm": 0.1}, "prompts.gsm.reward_models"),
    ({"main": {"path": "p"}, "g/m": SET}, {"g/m": 0.1}, "letters, digits"),
    ({"main": {"path": "p"}, "gsm": SET}, {}, "a gate needs a margin"),
    ({"main": {"path": "p"}, "gsm": {**SET, "role": "report"}}, {"gsm": 0.1}, "role: gate"),
    ({"path": "p"}, {"gsm": -0.1}, "greater than 0"),
])  # fmt: skip
def test_a_wrong_set_is_named(
    prompts: dict[str, Any], margins: dict[str, float], fragment: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe(prompts, selection={"no_worse_than": margins})
    assert fragment in str(caught.value)


def test_rules_by_part_and_gates_exclude_each_other() -> None:
    with pytest.raises(RecipeError, match="asks no gate"):
        recipe({"path": "p"}, selection={"no_worse_than": {"./rm2": 0.1}},
               adaptive={"num_trials": 4})  # fmt: skip


def test_a_gate_is_named_by_its_set_its_text_or_its_folder() -> None:
    models = {"0-rm": "./rm", "1-rm2": "./rm2", "2-check": "check:regex=a=b"}

    def margins(**given: float) -> dict[str, float]:
        parsed = with_gate()
        rules = parsed.selection.model_copy(update={"no_worse_than": given})
        return gate_margins(parsed.model_copy(update={"selection": rules}), models)

    given = {"gsm": 0.02, "rm2": 0.1, "check:regex=a=b": 0.3}
    assert margins(**given) == {"gsm": 0.02, "1-rm2": 0.1, "2-check": 0.3}
    for name, hint in (("gms", "gsm"), ("rm", "rm2"), ("0-rm", "1-rm2")):
        with pytest.raises(ConfigError, match="neither a set") as caught:
            margins(**{name: 0.1})
        assert caught.value.hint == f"did you mean {hint}?"


MODELS = {"0-rm": "./rm", "1-rm": "/a/rm", "2-rm": "/b/rm", "3-check-number": "check:number",
          "4-check-python": "check:python=m:f", "5-v1-m": "judge:http://h/v1#m"}  # fmt: skip


def margins_of(given: dict[str, float], **sets: Any) -> dict[str, float]:
    prompts = {"main": {"path": "p"}, **{name: {**SET, **one} for name, one in sets.items()}}
    return gate_margins(recipe(prompts, selection={"no_worse_than": given}), MODELS)


def test_two_models_of_one_name_are_told_apart_by_more_of_it() -> None:
    given = {"a/rm": 0.1, "./b/rm": 0.2, "check:number": 0.3}
    assert margins_of(given) == {"1-rm": 0.1, "2-rm": 0.2, "3-check-number": 0.3}
    assert margins_of({"1-rm": 0.1, "/b/rm": 0.2}) == {"1-rm": 0.1, "2-rm": 0.2}


@pytest.mark.parametrize(("given", "sets", "told"), [
    ({"rm": 0.1}, {}, "1-rm (/a/rm) or 2-rm (/b/rm)"),
    ({"check-number": 0.1}, {"check-number": {}},
     "the set of prompts check-number or 3-check-number (check:number)"),
])  # fmt: skip
def test_a_name_that_may_mean_several_gates_is_refused_with_the_choices(
    given: dict[str, float], sets: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigError, match="may mean several things") as caught:
        margins_of(given, **sets)
    assert caught.value.expected == told


def test_a_gate_has_one_margin_and_one_folder() -> None:
    with pytest.raises(ConfigError, match="two gates name the same thing"):
        margins_of({"check:number": 0.1, "3-check-number": 0.2})
    with pytest.raises(ConfigError, match="the name of a reward model's folder") as caught:
        margins_of({}, **{"1-rm": {"role": "report"}})
    assert caught.value.where == "prompts.1-rm"


@pytest.mark.parametrize(("name", "margin", "most"), [
    ("check:number", 1.0, 1), ("gsm", 2.0, 1), ("5-v1-m", 9.0, 9),
])  # fmt: skip
def test_a_margin_as_wide_as_the_scores_is_refused(name: str, margin: float, most: int) -> None:
    sets = {"gsm": {}} if name == "gsm" else {}
    with pytest.raises(ConfigError, match="nothing could be lost beyond it") as caught:
        margins_of({name: margin}, **sets)
    assert caught.value.expected == f"above 0 and below {most}"
    assert margins_of({name: 0.9 * most}, **sets)


def test_scores_without_bounds_have_any_margin() -> None:
    assert margins_of({"4-check-python": 20.0, "1-rm": 3.0}) == {
        "4-check-python": 20.0, "1-rm": 3.0
    }  # fmt: skip


def reported(*names: str, **margins: float) -> list[str]:
    rules = {"report_only": list(names), "no_worse_than": margins}
    return reported_models(recipe({"path": "p"}, selection=rules), MODELS)


def test_what_is_only_reported_is_named_like_a_gate() -> None:
    assert reported("check:number", "a/rm") == ["3-check-number", "1-rm"]
    assert reported() == []


@pytest.mark.parametrize(("names", "margins", "message"), [
    (("0-rm",), {}, "no reward model besides the first"),
    (("rm",), {}, "may mean several"),
    (("1-rm", "/a/rm"), {}, "named twice"),
    (("check:number",), {"check:number": 0.1}, "cannot be a gate and only be reported"),
])  # fmt: skip
def test_what_cannot_be_reported_is_refused(
    names: tuple[str, ...], margins: dict[str, float], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        reported(*names, **margins)
    assert "report" in str(caught.value.where)


def test_recipes_that_report_nothing_only_keep_their_digest() -> None:
    plain = recipe({"path": "p"})
    assert plain.digest() == recipe({"path": "p"}, selection={"report_only": []}).digest()
    assert plain.digest() != recipe({"path": "p"}, selection={"report_only": ["rm2"]}).digest()


def test_how_many_prompts_a_gate_needs_is_said_before() -> None:
    models = {"0-rm": "./rm", "1-rm2": "./rm2"}
    [few] = plan_gates(with_gate(), models, {"main": 50, "gsm": 1319})
    assert few.num_needed == 4917
    assert "may end in `cannot be told`" in few.describe() and "2411.00640" in few.describe()
    [many] = plan_gates(with_gate(), models, {"main": 50, "gsm": 5000})
    assert "cannot be told" not in many.describe()
    main = recipe({"path": "p"}, selection={"no_worse_than": {"./rm2": 0.1}})
    [scores] = plan_gates(main, models, {"main": 50})
    assert (scores.prompts, scores.num_prompts, scores.num_needed) == ("main", 50, None)
    assert "a pilot" in scores.describe()


@pytest.fixture
def gated(tmp_path: Path, pico_pair: tuple[Path, Path], pico_reward_model: Path) -> Path:
    rows = [{"prompt": f"What is {n} + 1?", "answer": str(n + 1)} for n in range(6)]
    (tmp_path / "gsm.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return write_recipe(
        tmp_path,
        pico_pair,
        pico_reward_model,
        prompts={
            "main": {"path": str(tmp_path / "prompts.jsonl")},
            "gsm": {"path": "gsm.jsonl", "reward_models": ["check:number", str(pico_reward_model)]},
        },
        selection={"no_worse_than": {"gsm": 0.25}},
        extrapolation={"alphas": [0.5]},
        loadtest=None,
    )


def test_a_set_is_planned_and_checked(gated: Path) -> None:
    plan = plan_recipe(load_recipe(gated))
    [stage] = [stage for stage in plan["stages"] if stage["stage"] == "prompts gsm"]
    assert stage["tasks"] == 12
    [gate] = plan["gates"]
    assert (gate["name"], gate["num_prompts"], gate["margin"]) == ("gsm", 6, 0.25)
    assert check_recipe(gated)["gates"] == plan["gates"]
    (gated.parent / "gsm.jsonl").write_text('{"prompt": "What is 2 + 1?"}\n')
    with pytest.raises(RecipeError) as caught:
        check_recipe(gated)
    assert set(caught.value.faults) == {"prompts.gsm.reward_models.0"}


@pytest.mark.slow
def test_a_candidate_answers_a_set_once(gated: Path, ray_cluster: str) -> None:
    parsed, told = load_recipe(gated), Told()
    directory = RunDir(parsed.output)
    with ExitStack() as stack:
        stack.enter_context(directory.claim(recipe_text="", digest=parsed.digest()))
        this = stages.Run(recipe=parsed, directory=directory, address=ray_cluster,
                          progress=told, stack=stack)  # fmt: skip
        prepare_models(this)
        announce_gates(this)
        assert told.texts[-1].startswith("gate gsm: 6 prompts, margin 0.25; about 37 tell")
        stages.write_candidates(this)
        stages.generate_responses(this)
        stages.score_responses(this)
        assert this.measure_sets is not None
        first, second = this.measure_sets(0.5)
        assert (first.name, first.reward_model) == ("gsm", "0-check-number")
        assert (second.name, second.prompts) == (f"gsm {second.reward_model}", "gsm")
        assert first.aligned.shape == (6,) and np.isfinite(first.aligned).all()
        folder = directory.path / "prompt_sets" / "gsm"
        answers = pq.read_table(folder / "responses" / "alpha-0.5.parquet")
        assert set(answers["split"].to_pylist()) == {"heldout"}
        rewards = pq.read_table(folder / "rewards" / second.reward_model / "alpha-0.5.parquet")
        by_prompt = dict(zip(rewards["prompt_id"].to_pylist(), rewards["reward"].to_pylist(),
                             strict=True))  # fmt: skip
        assert list(second.candidate) == [by_prompt[name] for name in sorted(by_prompt)]
        before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.parquet")}
        assert len(before) == 6
        # What answered and scored the main prompts stayed: the set started its check alone.
        starts = [text.split("(")[0] for text in told.texts if text.startswith("starting")]
        generator, reward = "starting 1 transformers generator replica", "starting 1 reward replica"
        assert starts == [generator, reward, reward, reward]
        num_told = len(told.texts)
        this.measure_sets(0.5)
        assert len(told.texts) == num_told  # a search asks at every step
        assert len(this.kept) == 4
        find_sets(this, {})
        this.measure_sets(0.5)
        assert len(this.kept) == 4
        rewarders = parsed.rewarders.model_copy(update={"num_replicas": 3})
        this.recipe = parsed.model_copy(update={"rewarders": rewarders})
        find_sets(this, {})
        this.measure_sets(0.5)
        assert len(this.kept) == 0  # nine reward replicas and a generator are too many for 8 CPUs
        assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*.parquet")}
        recorded = directory.read_resolved()["prompt_sets"]["gsm"]
        assert recorded["num_prompts"] == 6 and recorded["role"] == "gate"
        assert not (folder / "resolved.json").exists()
