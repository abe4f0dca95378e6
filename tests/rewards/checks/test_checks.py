"""Checks as reward models: 1, 0 or a reason, whatever a model, a user or a data set does."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from expo_ray.errors import ConfigError, EvaluationError, TableError
from expo_ray.rewards import (
    RewardModelSpec,
    load_reward_model,
    pin_reward_model,
    run_self_test,
)
from expo_ray.rewards.anchors import AnchorPair
from expo_ray.rewards.checks.kind import Check, Checked, CheckKind
from expo_ray.rewards.checks.own_process import OwnProcess
from expo_ray.rewards.checks.preflight import require_checkable
from expo_ray.rewards.checks.python_function import PYTHON
from expo_ray.rewards.checks.python_sources import source_digest
from expo_ray.rewards.checks.regex import REGEX
from expo_ray.rewards.checks.registry import CHECK_KINDS
from expo_ray.rewards.checks.reward_model import CheckRewardModel, as_reference
from expo_ray.tables import Message, Prompt

FUNCTIONS = """
import os, time
def length(response, row):
    return len(response) / 10
def knows(response, row):
    print("not an answer")
    return response == row["answer"] and row["messages"][0]["content"] == "?"
def fails(response, row):
    raise LookupError("no such thing")
def hangs(response, row):
    time.sleep(3600 if response == "hang" else 0)
    return True
def grows(response, row):
    return len(bytearray(2**34)) > 0
def ends(response, row):
    os._exit(3)
def forks(response, row):
    if os.fork() == 0:
        time.sleep(3600 if response == "stays" else 0)
        return False  # an answer that nobody asked for
    return True
def texts(response, row):
    return "good"
def nan(response, row):
    return float("nan")
constant = 3
"""


@pytest.fixture
def functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_checks.py").write_text(FUNCTIONS)
    monkeypatch.chdir(tmp_path)


def chats(*responses: str) -> list[list[Message]]:
    return [
        [{"role": "user", "content": "?"}, {"role": "assistant", "content": response}]
        for response in responses
    ]


def rewards(
    check: str, responses: Sequence[str], target: str | None = None
) -> list[float | str | None]:
    scores = load_reward_model(check).score(chats(*responses), [target] * len(responses))
    return [score.error if score.reward is None else score.reward for score in scores]


def test_exact_and_regex_and_json_schema(tmp_path: Path) -> None:
    assert rewards("check:exact", [" a  b\n", "a b.", "A b"], "a b") == [1, 0, 0]
    assert rewards("check:exact", ["one", "1", "two"], '["1", "one"]') == [1, 1, 0]
    assert rewards(r"check:regex=(?i)^yes\b", ["Yes, sir", "yesterday"]) == [1, 0]
    assert rewards("check:regex=a=b", ["a=b", "a"]) == [1, 0]
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps({"type": "object", "required": ["name"]}))
    responses = ['{"name": 1}', '```json\n{"name": 1}\n```', "{}", "Sure! {}", "[" * 5000]
    assert rewards(f"check:json-schema={schema}", responses) == [1, 1, 0, 0, 0]


@pytest.mark.parametrize(("check", "target", "responses", "told"), [
    ("check:exact", "yes", ["yes", "no", " \n"], [None, None, "no answer: the response is empty"]),
    ("check:number", "4", ["4", "5", "four"], [None, None, "no number"]),
    ("check:number", r"\sqrt{2}", [r"\boxed{\sqrt{2}}", r"\boxed{\sqrt{3}}", ""],
     [None, None, "no formula"]),
    ("check:json-schema=schema.json", None, ["{}", "[]", "sure!"], [None, None, "no JSON"]),
    ("check:code", "assert f() == 1", ["def f():\n    return 1", "def f():\n    return 2",
     "I cannot help with that."], [None, None, "no Python program"]),
    ("check:constraints", '[{"id": "punctuation:no_comma"}]', ["a", "a,", " "],
     [None, None, "no answer: the response is empty"]),
    ("check:regex=a", None, ["a", "b", ""], [None, None, None]),
])  # fmt: skip
def test_what_cannot_be_read_is_told_from_what_is_wrong(
    check: str,
    target: str | None,
    responses: list[str],
    told: list[str | None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if "sqrt" in str(target):
        pytest.importorskip("math_verify")
    monkeypatch.chdir(tmp_path)
    Path("schema.json").write_text('{"type": "object"}')
    scores = load_reward_model(check).score(chats(*responses), [target] * 3)
    assert [score.reward for score in scores] == [1, 0, 0]
    assert [score.unreadable for score in scores] == told


def test_a_schema_that_points_elsewhere_fetches_nothing(tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps({"$ref": "http://127.0.0.1:9/schema.json"}))
    [found] = rewards(f"check:json-schema={schema}", ["{}"])
    assert "lacks what it refers to" in str(found)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("check", "unknown kind"),
        ("check:", "unknown kind"),
        ("check:nothing", "unknown kind"),
        ("check:exact=1", "not written as its kind is"),
        ("check:regex", "not written as its kind is"),
        ("check:regex=(", "no regular expression"),
        ("check:json-schema=", "not written as its kind is"),
        ("check:python=module", "not written as its kind is"),
        ("check:python=../x:f", "not written as its kind is"),
    ],
)
def test_what_is_not_written_as_its_kind_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RewardModelSpec.parse(text)


@pytest.mark.parametrize("content", [None, "{", '{"type": 3}', "3"])
def test_a_schema_that_is_none_is_refused_before_work(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "schema.json"
    if content is not None:
        path.write_text(content)
    spec = RewardModelSpec.parse(f"check:json-schema={path}")
    with pytest.raises(ConfigError, match="schema of a check cannot be read"):
        pin_reward_model(spec, initial=None, aligned=None)


def test_a_function_of_the_user_decides(functions: None) -> None:
    assert rewards("check:python=own_checks:length", ["abc"]) == [0.3]
    assert rewards("check:python=own_checks:knows", ["4", "5"], as_reference({"answer": "4"})) == [
        1,
        0,
    ]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("fails", "raises LookupError: no such thing"),
        ("texts", "returns 'good', not a number"),
        ("nan", "returns nan, not a number"),
        ("grows", "too much memory"),
        ("ends", "process of the check ended"),
        ("knows", "raises KeyError"),
    ],
)
def test_a_function_that_breaks_is_a_fault_of_the_row(
    functions: None, name: str, told: str
) -> None:
    found = rewards(f"check:python=own_checks:{name}", ["a", "b"])
    assert all(isinstance(text, str) and told in text for text in found), found


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ("own_checks:missing", "no attribute 'missing'"),
        ("own_checks:constant", "is a int, no function"),
        ("no_such_module:f", "No module named"),
    ],
)
def test_a_function_that_is_not_there_is_refused(functions: None, target: str, told: str) -> None:
    with pytest.raises(ConfigError, match="a check cannot be loaded") as caught:
        load_reward_model(f"check:python={target}")
    assert told in str(caught.value.got)


def test_other_code_is_another_reward_model(functions: None) -> None:
    def revision() -> str:
        return load_reward_model("check:python=own_checks:length").revision

    first = revision()
    assert first.startswith("checks-1-") and revision() == first
    Path("own_checks.py").write_text("from limits import ten\n" + FUNCTIONS)
    Path("limits.py").write_text("from other.place import ten\n")
    Path("other").mkdir()
    Path("other/__init__.py").write_text("")
    Path("other/place.py").write_text("from . import far\nten = 10\n")
    Path("other/far.py").write_text("")
    second = revision()
    # What it imports from its folder, however far, and nothing else.
    Path("other/far.py").write_text("far = 1\n")
    third = revision()
    Path("unrelated.py").write_text("")
    assert revision() == third
    assert len({first, second, third}) == 3


def test_code_that_changes_under_work_is_refused(functions: None) -> None:
    spec = RewardModelSpec.parse("check:python=own_checks:length")
    pinned, _, _ = pin_reward_model(spec, initial=None, aligned=None)
    Path("own_checks.py").write_text(FUNCTIONS + "\n")
    with pytest.raises(ConfigError, match="other code than when the work began"):
        load_reward_model(pinned)


def test_an_installed_function_is_known_by_its_file() -> None:
    # Loaded by nobody: what is installed is found, not imported.
    a, b = (source_digest(Path("/nowhere"), f"expo_ray.{name}") for name in ("errors", "extras"))
    assert a != b and len(a) == 64


def test_another_schema_is_another_reward_model_and_another_place_is_not(tmp_path: Path) -> None:
    revisions = []
    for name, schema in (("a", "{}"), ("b", "{}"), ("a", '{"type": "object"}')):
        (tmp_path / f"{name}.json").write_text(schema)
        revisions.append(load_reward_model(f"check:json-schema={tmp_path}/{name}.json").revision)
    assert revisions[0] == revisions[1] != revisions[2]
    patterns = [load_reward_model(f"check:regex={text}").revision for text in ("a", "b")]
    assert patterns[0] != patterns[1]
    assert load_reward_model("check:exact").revision == "checks-1"


def test_what_hangs_is_ended_and_the_next_row_is_checked(functions: None) -> None:
    quick = replace(PYTHON, max_row_seconds=0.5)
    model = of_kind(quick, {"module": "own_checks", "function": "hangs"})
    found = model.score(chats("hang", "fine", "hang"))
    assert [score.reward for score in found] == [None, 1, None]
    assert "takes more than 0.5 s" in str(found[0].error)
    pattern = of_kind(replace(REGEX, max_row_seconds=0.5), {"pattern": "^(a+)+$"})
    assert [s.reward for s in pattern.score(chats("a" * 60 + "b", "aa"))] == [None, 1]


def test_what_forks_answers_once_and_leaves_nobody(functions: None) -> None:
    check = OwnProcess(PYTHON, PYTHON.pin({"module": "own_checks", "function": "forks"}))
    answers = [
        check.reward(Checked(messages=[], response=text))
        for text in ("returns", "stays", "returns", "returns")
    ]
    assert answers == [1, 1, 1, 1]
    pid = check._process.pid  # type: ignore[union-attr]
    check.close()
    for _ in range(100):  # what was killed is gone once its new parent has looked
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, 0)
            time.sleep(0.1)
            continue
        break
    with pytest.raises(ProcessLookupError):
        os.killpg(pid, 0)


def test_a_formula_that_fills_hours_is_a_fault_of_its_row() -> None:
    number = of_kind(replace(CHECK_KINDS["number"], max_row_seconds=2.0), {})
    found = number.score(chats(r"\boxed{9!!!}", "5"), ["5", "5"])
    assert [score.reward for score in found] == [None, 1]
    assert "takes more than 2 s" in str(found[0].error)
    number.close()


def test_the_process_ends_with_its_check(functions: None) -> None:
    process = OwnProcess(REGEX, {"pattern": "a"})
    process.start()
    pid = process._process.pid  # type: ignore[union-attr]
    process.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def of_kind(kind: CheckKind, arguments: dict[str, str]) -> CheckRewardModel:
    return CheckRewardModel("check:test", kind, kind.pin(arguments))


@pytest.mark.parametrize("name", [name for name, kind in CHECK_KINDS.items() if kind.trials])
def test_the_self_test_tries_right_and_wrong_answers(name: str) -> None:
    kind = CHECK_KINDS[name]
    assert {trial.is_right for trial in kind.trials} == {True, False}
    tested = run_self_test(load_reward_model(f"check:{name}"))
    assert tested.num_anchors == tested.num_anchors_right == len(kind.trials)


def test_the_self_test_refuses_what_misjudges_or_breaks(functions: None) -> None:
    exact = CHECK_KINDS["exact"]
    misled = replace(exact, open=lambda arguments: Always(), has_own_process=False)
    with pytest.raises(EvaluationError, match="misjudges answers") as caught:
        run_self_test(of_kind(misled, {}))
    assert "'Rome' for 'Paris': 1.0" in str(caught.value.got)
    model = load_reward_model("check:python=own_checks:fails")
    with pytest.raises(EvaluationError, match="broken on every answer"):
        run_self_test(model, chats("a", "b"))


class Always(Check):
    def reward(self, checked: Checked) -> float:
        return 1.0


def test_prompts_are_refused_that_cannot_be_checked() -> None:
    number, exact = map(RewardModelSpec.parse, ("check:number", "check:exact"))
    prompts = [prompt("a", answer="3"), prompt("b", answer="Paris"), prompt("c", answer="Rome")]
    require_checkable(exact, prompts, where="p.jsonl")
    with pytest.raises(TableError, match="cannot check against") as caught:
        require_checkable(number, prompts, where="p.jsonl")
    assert "prompt_id 'b'" in str(caught.value.where)
    assert "'Paris' is neither" in str(caught.value.got)
    assert "2 of 3 prompts" in str(caught.value.got)
    with pytest.raises(TableError, match="lack the column `answer`") as caught:
        require_checkable(exact, [*prompts, prompt("d")], where="p.jsonl")
    assert "1 of 4 without it, first prompt_id 'd'" in str(caught.value.got)
    require_checkable(RewardModelSpec.parse("check:regex=a"), [prompt("d")], where="p.jsonl")


def test_a_check_that_cannot_be_loaded_is_refused_before_anything_is_made(functions: None) -> None:
    missing = RewardModelSpec.parse("check:python=own_checks:missing")
    with pytest.raises(ConfigError, match="a check cannot be loaded"):
        require_checkable(missing, [prompt("a")], where="p.jsonl")
    require_checkable(RewardModelSpec.parse("./no-such-rm"), [prompt("a")], where="p.jsonl")


def test_a_check_of_the_users_own_is_tried_on_pairs_and_on_the_first_prompts(
    functions: None,
) -> None:
    """Only its user knows a right answer; that it can say anything is found out beforehand."""
    with pytest.raises(ConfigError, match="answers of its own to try"):
        run_self_test(load_reward_model("check:exact"), anchors=[])
    right, wrong = (
        AnchorPair(prompt=({"role": "user", "content": "?"},), better=better, worse=worse)
        for better, worse in (("yes", "who knows"), ("who knows", "yes"))
    )
    regex = load_reward_model("check:regex=^yes")
    assert run_self_test(regex, anchors=[right]).num_anchors_right == 1
    with pytest.raises(EvaluationError, match="ranks anchors wrong"):
        run_self_test(regex, anchors=[right, wrong])
    assert "--anchors" in run_self_test(regex).warnings[0]
    assert run_self_test(regex, chats("a")).warnings == ()
    fails = load_reward_model("check:python=own_checks:fails")
    with pytest.raises(EvaluationError, match="ranks anchors wrong") as caught:
        run_self_test(fails, anchors=[right])
    assert "raises LookupError" in str(caught.value.got)
    assert "raises LookupError" in run_self_test(fails).warnings[0]


def test_a_check_that_can_say_of_no_answer_is_refused_before_anything_is_made(
    functions: None,
) -> None:
    def try_on(check: str, *prompts: Prompt, **settings: bool) -> str:
        with pytest.raises(ConfigError, match="cannot say of any answer") as caught:
            require_checkable(RewardModelSpec.parse(check), prompts, where="p.jsonl", **settings)
        return str(caught.value.got)

    told = try_on("check:python=own_checks:fails", prompt("a"))
    assert told.startswith("of 'I do not know.': ") and "raises LookupError" in told
    # It reads a column, which one prompt has: one answer that can be told is enough.
    knows = "check:python=own_checks:knows"
    assert "KeyError" in try_on(knows, prompt("a"))
    some = [prompt("a"), prompt("b", answer="42")]
    require_checkable(RewardModelSpec.parse(knows), some, where="p.jsonl")
    silent = "check:http=http://127.0.0.1:9/check"
    assert "did not answer" in try_on(silent, prompt("a"))
    require_checkable(RewardModelSpec.parse(silent), [prompt("a")], where="", asks_services=False)
    require_checkable(RewardModelSpec.parse(silent), [], where="p.jsonl")


def prompt(prompt_id: str, **checked: str) -> Prompt:
    return Prompt(prompt_id=prompt_id, messages=chats("")[0][:1], checked=checked)  # type: ignore
