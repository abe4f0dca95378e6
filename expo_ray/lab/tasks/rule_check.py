"""A task's hidden rule as a check, for trainings that are rewarded by it: no check of users."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from expo_ray.rewards.checks.kind import Arguments, Check, Checked, CheckKind, no_argument

if TYPE_CHECKING:
    from expo_ray.tables import Message

Rule = Callable[["Sequence[Message]", str], float]


class RuleCheck(Check):
    """Scores an answer by a rule over the chat and its text."""

    def __init__(self, rule: Rule) -> None:
        self._rule = rule

    def reward(self, checked: Checked) -> float:
        """Return what the rule says."""
        turns: list[Message] = [
            {"role": turn["role"], "content": turn["content"]} for turn in checked.messages
        ]
        return self._rule(turns, checked.response)


def rule_check(task: str, rule: Rule) -> CheckKind:
    """Return the check of a task whose prompts say all that its answers are judged by.

    Args:
        task: Its name.
        rule: Scores a response to a chat.
    """
    form = f"the rule of {task}"

    def opened(_: Arguments) -> Check:
        return RuleCheck(rule)

    return CheckKind(
        name=task,
        form=form,
        parse=lambda text: no_argument(text, form),
        open=opened,
        gives_shares=False,
        # The rule is the project's own: it neither hangs nor fills the memory.
        has_own_process=False,
    )
