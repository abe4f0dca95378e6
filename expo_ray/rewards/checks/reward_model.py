"""A check as a reward model: chats in, rewards out, a reason where there is none."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from expo_ray.errors import ConfigError, argument
from expo_ray.json_text import parse_json
from expo_ray.rewards.checks.kind import (
    Arguments,
    BrokenCheckError,
    Check,
    Checked,
    CheckKind,
    Trial,
    version_of,
)
from expo_ray.rewards.checks.own_process import OwnProcess
from expo_ray.rewards.interface import Chat, References, RewardScore
from expo_ray.tables.checked_columns import CHECKED_COLUMNS
from expo_ray.tables.prompts import Message

_VERSION = "1"
"""Of the rules of all checks; another one where the same answer would get another reward."""
# A function may be made for one form alone: of four that differ it can say something of one.
PROBES = ("I do not know.", "42", "{}", "Yes.")
_NUM_THREADS = os.cpu_count() or 1
"""No more programs at a time than can run."""


class CheckRewardModel:
    """Scores chats by a check.

    Args:
        text: What `--reward-model` says.
        kind: Of the check.
        arguments: What else the text says, pinned.

    Raises:
        ConfigError: The check cannot be loaded.
    """

    def __init__(self, text: str, kind: CheckKind, arguments: Arguments) -> None:
        self.name = text
        version = version_of(arguments)
        told = hashlib.sha256(json.dumps(version, sort_keys=True).encode()).hexdigest()[:16]
        self.revision = f"checks-{_VERSION}" + (f"-{told}" if version else "")
        self.settings = kind.name
        self.needs_reference = kind.column is not None
        self._kind = kind
        self._check = open_check(text, kind, arguments)

    def score(
        self, chats: Sequence[Chat], references: References | None = None
    ) -> list[RewardScore]:
        """Check the last turn of each chat.

        Args:
            chats: Chats whose last turn is the assistant's.
            references: What each is checked against: the value of the column that the kind of
                check needs, or a JSON object of the prompt's columns, see `as_reference`.
        """
        targets = references or [None] * len(chats)
        if self._kind.has_own_process:
            return [self._score(*pair) for pair in zip(chats, targets, strict=True)]
        with ThreadPoolExecutor(_NUM_THREADS) as threads:
            return list(threads.map(self._score, chats, targets))

    @property
    def has_trials(self) -> bool:
        """Whether a right and a wrong answer come with the kind: else only its user knows them."""
        return bool(self._kind.trials)

    @property
    def asks_service(self) -> bool:
        """Whether it waits for others."""
        return not self._kind.has_own_process

    def trials(self) -> tuple[int, list[str]]:
        """Return how many answers of a known kind were tried, and those that were misjudged."""
        wrong = []
        for trial in self._kind.trials:
            found = self._score(_chat_of(trial), trial.target)
            if found.reward != float(trial.is_right):
                told = found.reward if found.error is None else found.error
                wrong.append(f"{trial.response!r} for {trial.target!r}: {told}")
        return len(self._kind.trials), wrong

    def fault(
        self, prompts: Sequence[Sequence[Message]], references: References | None = None
    ) -> str | None:
        """Return why it can say of no answer to the first prompts whether it is right; else None.

        Args:
            prompts: Chats without an answer.
            references: What answers to each are checked against.
        """
        if not prompts:
            return None
        which = [i % len(prompts) for i in range(len(PROBES))]
        turns = [Message(role="assistant", content=answer) for answer in PROBES]
        scores = self.score(
            [[*prompts[i], turn] for i, turn in zip(which, turns, strict=True)],
            None if references is None else [references[i] for i in which],
        )
        if any(score.reward is not None for score in scores):
            return None
        return f"of {PROBES[0]!r}: {scores[0].error}"

    def target_fault(self, target: str) -> str | None:
        """Return why nothing can be checked against a value of the column; None where it can."""
        return self._check.target_fault(target)

    def close(self) -> None:
        """End the process of the check, where it has one."""
        if isinstance(self._check, OwnProcess):
            self._check.close()

    def _score(self, chat: Chat, target: str | None) -> RewardScore:
        *before, last = chat
        columns = _columns_of(target, self._kind)
        if self._kind.column is not None and self._kind.column not in columns:
            return RewardScore.failed(f"the prompt has no `{self._kind.column}` to check against")
        checked = Checked(
            messages=[{"role": turn["role"], "content": turn["content"]} for turn in before],
            response=last["content"],
            columns=columns,
        )
        try:
            reward = self._check.reward(checked)
            lacks = self._check.unreadable(checked) if reward == 0 else None
            return RewardScore(reward=reward, tokens=0, unreadable=lacks)
        except BrokenCheckError as error:
            return RewardScore.failed(f"the check is broken here: {error}")


def open_check(text: str, kind: CheckKind, arguments: Arguments) -> Check:
    """Return a check that is loaded, in its own process where its kind has one.

    Raises:
        ConfigError: It cannot be loaded.
    """
    try:
        if not kind.has_own_process:
            return kind.open(arguments)
        check = OwnProcess(kind, arguments)
        check.start()
    except BrokenCheckError as error:
        raise ConfigError(
            "a check cannot be loaded",
            where=argument("reward_model", text),
            got=error,
            expected=kind.form,
        ) from error
    return check


def as_reference(columns: dict[str, Any]) -> str | None:
    """Return columns of a prompt as one text, for `score`; None of a prompt without any."""
    given = {name: columns[name] for name in CHECKED_COLUMNS if columns.get(name) is not None}
    return json.dumps(given) if given else None


def _columns_of(target: str | None, kind: CheckKind) -> dict[str, str]:
    if target is None:
        return {}
    if target.startswith("{"):
        try:
            found = parse_json(target)
        except ValueError:
            found = {}
        if found and found.keys() <= set(CHECKED_COLUMNS):
            return {str(name): str(value) for name, value in found.items()}
    return {} if kind.column is None else {kind.column: target}


def _chat_of(trial: Trial) -> Chat:
    return [
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": trial.response},
    ]
