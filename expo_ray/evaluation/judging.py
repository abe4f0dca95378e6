"""What benchmarks with a judge have in common: which one, and asking it across interruptions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Self, TypeVar

from expo_ray.errors import ConfigError, argument
from expo_ray.progress import NullProgress, Progress
from expo_ray.rewards.judge_service import JudgeService
from expo_ray.rewards.kinds.judge import JUDGE, judge_api_key
from expo_ray.rewards.spec import RewardModelSpec
from expo_ray.tables import ResumableTable

_NUM_THREADS = 8
_ROWS_PER_PART = 16
_Case = TypeVar("_Case")


@dataclass(frozen=True, kw_only=True, slots=True)
class Judge:
    """A model behind an OpenAI-compatible URL."""

    model: str
    address: str
    """URL#model."""
    service: JudgeService

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the judge that `judge:URL#model` names; its key is in EXPO_RAY_JUDGE_API_KEY.

        Raises:
            ConfigError: It names none.
        """
        spec = RewardModelSpec.parse(text)
        if spec.kind is not JUDGE:
            raise ConfigError(
                "no judge", where=argument("judge"), got=text, expected="judge:URL#model"
            )
        url = spec.arguments["url"]
        service = JudgeService(url=url, model=spec.model, api_key=judge_api_key())
        return cls(model=spec.model, address=f"{url}#{spec.model}", service=service)


def ask_all(
    table: ResumableTable,
    cases: Sequence[_Case],
    ask: Callable[[_Case], dict[str, Any]],
    progress: Progress | None,
) -> None:
    """Append a row for every case; the rows of a part are on disk before the next is asked.

    Args:
        table: Takes the rows.
        cases: What is not in it yet.
        ask: Returns a case's row; several threads call it.
        progress: Where to report.
    """
    bar = (progress or NullProgress()).start("Judging", len(cases), "answers")
    try:
        with ThreadPoolExecutor(_NUM_THREADS) as threads:
            for start in range(0, len(cases), _ROWS_PER_PART):
                some = cases[start : start + _ROWS_PER_PART]
                table.append(list(threads.map(ask, some)))
                bar.advance(len(some))
    finally:
        bar.close()
