"""What prompts must say so that answers can be checked: looked at before anything is generated."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from expo_ray.errors import ConfigError, TableError, argument
from expo_ray.rewards.checks.reward_model import PROBES, CheckRewardModel, as_reference
from expo_ray.rewards.loading import load_reward_model
from expo_ray.rewards.self_test import run_self_test
from expo_ray.rewards.spec import RewardModelSpec
from expo_ray.tables.prompts import Prompt


def require_checkable(
    spec: RewardModelSpec,
    prompts: Sequence[Prompt],
    *,
    where: str | Path,
    asks_services: bool = True,
) -> None:
    """Check that a reward model finds in every prompt what it checks answers against.

    A check is loaded and tried, too, on answers of its kind, or, where only its user knows such, on
    some to the first prompts: it would be late once everything is generated.

    Args:
        spec: The reward model; one that is no check passes.
        prompts: Those that it is to score answers to.
        where: Where they lie.
        asks_services: Whether a service is asked already.

    Raises:
        ConfigError: The check cannot be loaded, or cannot say of any answer whether it is right.
        EvaluationError: It misjudges answers that it must know.
        TableError: A prompt lacks the column, or has something in it that this check cannot read.
    """
    if not spec.kind.reads_columns:
        return
    with closing(_load(spec)) as model:
        run_self_test(model)
        if spec.column is not None:
            _require_column(spec, spec.column, model, prompts, where)
        if not model.has_trials and (asks_services or not model.asks_service):
            _require_saying(spec, model, prompts)


def _require_saying(
    spec: RewardModelSpec, model: CheckRewardModel, prompts: Sequence[Prompt]
) -> None:
    some = prompts[: len(PROBES)]
    references = [as_reference(dict(prompt.checked)) for prompt in some]
    fault = model.fault([prompt.messages for prompt in some], references)
    if fault is not None:
        raise ConfigError(
            "a check cannot say of any answer whether it is right",
            where=argument("reward_model", spec.text),
            got=fault,
            hint="does its service run? a function says 0 of an answer that it cannot read",
        )


def _load(spec: RewardModelSpec) -> CheckRewardModel:
    model = load_reward_model(spec)
    if not isinstance(model, CheckRewardModel):
        raise AssertionError("what reads columns is a check")
    return model


def _require_column(
    spec: RewardModelSpec,
    column: str,
    model: CheckRewardModel,
    prompts: Sequence[Prompt],
    where: str | Path,
) -> None:
    without = [prompt.prompt_id for prompt in prompts if column not in prompt.checked]
    if without:
        raise TableError(
            f"prompts lack the column `{column}` that a check needs",
            where=f"{where}, for {spec.text}",
            got=f"{len(without)} of {len(prompts)} without it, first prompt_id {without[0]!r}",
            expected=f"`{column}` in every row",
            hint=f"name the column that holds it: --checked-column {column}=NAME, in a recipe "
            f"prompts.columns: {{{column}: NAME}}",
        )
    faults = {
        prompt.prompt_id: fault
        for prompt in prompts
        if (fault := model.target_fault(prompt.checked[column])) is not None
    }
    if faults:
        prompt_id, fault = next(iter(faults.items()))
        raise TableError(
            "this check cannot check against what prompts say",
            where=f"{where}, prompt_id {prompt_id!r}, for {spec.text}",
            got=fault + ("" if len(faults) == 1 else f"; {len(faults)} of {len(prompts)} prompts"),
            expected=f"in `{column}` what the check reads",
            hint="is it a check for another kind of prompt?",
        )


def require_column(spec: RewardModelSpec, files: Sequence[tuple[Path, Sequence[str]]]) -> None:
    """Check that responses tables have the column that a check needs.

    Args:
        spec: The reward model.
        files: Tables, and the names of their columns.

    Raises:
        TableError: One has not.
    """
    for file, columns in files:
        if spec.column is not None and spec.column not in columns:
            raise TableError(
                f"responses lack the column `{spec.column}` that a check needs",
                where=f"{file}, for {spec.text}",
                got=", ".join(columns),
                expected=f"`{spec.column}` beside them",
                hint="generate puts it there where the prompts have it",
            )
