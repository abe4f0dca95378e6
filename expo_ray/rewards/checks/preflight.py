"""What prompts must say so that answers can be checked: looked at before anything is generated."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from expo_ray.errors import TableError, argument
from expo_ray.rewards.checks.own_process import OwnProcess
from expo_ray.rewards.checks.registry import CHECK_KINDS
from expo_ray.rewards.spec import RewardModelSpec
from expo_ray.tables.prompts import Prompt


def require_checkable(
    spec: RewardModelSpec, prompts: Sequence[Prompt], *, where: str | Path
) -> None:
    """Check that a reward model finds in every prompt what it checks answers against.

    Args:
        spec: The reward model; one that is no check passes.
        prompts: Those that it is to score answers to.
        where: Where they lie.

    Raises:
        TableError: A prompt lacks the column, or has something in it that this check cannot read.
    """
    column = spec.column
    if column is None:
        return
    without = [prompt.prompt_id for prompt in prompts if column not in prompt.checked]
    if without:
        raise TableError(
            f"prompts lack the column `{column}` that a check needs",
            where=f"{where}, for {spec.text}",
            got=f"{len(without)} of {len(prompts)} without it, first prompt_id {without[0]!r}",
            expected=f"`{column}` in every row",
            hint=f"name the column that holds it: {argument('columns')}; in a recipe "
            f"prompts.columns: {{{column}: NAME}}",
        )
    kind = CHECK_KINDS[spec.arguments["check"]]
    with closing(OwnProcess(kind, spec.arguments)) as check:
        faults = {
            prompt.prompt_id: fault
            for prompt in prompts
            if (fault := check.target_fault(prompt.checked[column])) is not None
        }
    if faults:
        prompt_id, fault = next(iter(faults.items()))
        raise TableError(
            "this check cannot check against what prompts say",
            where=f"{where}, prompt_id {prompt_id!r}, for {spec.text}",
            got=fault + ("" if len(faults) == 1 else f"; {len(faults)} of {len(prompts)} prompts"),
            expected=f"in `{column}` what {kind.form} reads",
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
