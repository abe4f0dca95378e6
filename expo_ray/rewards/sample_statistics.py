"""Several answers to one prompt as one value: their mean, whether any is right, what most say.

avg         the mean reward of the samples
pass@K      the chance that one of K samples is right, without bias:
1 - C(n - c, K) / C(n, K) of n samples, c of them right (Chen et al. 2021)
majority    the reward of the answer that most samples give; equally many share it
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from expo_ray.errors import ConfigError, EvaluationError, argument
from expo_ray.rewards.kinds.registry import kind_of
from expo_ray.rewards.spec import RewardModelSpec
from expo_ray.tables.thoughts import AUTO

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Vote = Callable[[str], str | None]
_KEY = ("prompt_id", "sample", "weights_digest")
_CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Samples:
    """The rewards of a table, by the prompt and the model that each is of."""

    rewards: FloatArray
    """One per row; not-a-number where null."""
    group_of_row: IntArray
    """Which prompt, answered by which model."""
    votes: IntArray | None = None
    """Which answer a response gives, by number; -1 where none can be read."""

    @property
    def num_groups(self) -> int:
        """How many prompts there are, once for each model."""
        return int(self.group_of_row.max()) + 1 if self.group_of_row.size else 0

    @property
    def most_samples(self) -> int:
        """How many samples a prompt has at most."""
        return int(np.bincount(self.group_of_row).max()) if self.group_of_row.size else 0

    def values(self, statistic: str) -> FloatArray:
        """Return a statistic of each group; not-a-number of one with too few rewards.

        Args:
            statistic: `avg`, `pass@K` or `majority`.

        Raises:
            EvaluationError: `pass@K` of rewards that are neither right nor wrong.
        """
        valid = np.isfinite(self.rewards)
        groups, rewards = self.group_of_row[valid], self.rewards[valid]
        counts = np.bincount(groups, minlength=self.num_groups)
        sums = np.bincount(groups, weights=rewards, minlength=self.num_groups).astype(np.float64)
        if statistic == "avg":
            return _share(sums, counts)
        if statistic == "majority":
            if self.votes is None:
                raise AssertionError("without votes nobody asks for a majority")
            return _majority(groups, rewards, self.votes[valid], self.num_groups)
        if not np.isin(rewards, (0.0, 1.0)).all():
            raise EvaluationError(
                "pass@K counts right answers, and these rewards are more than right or wrong",
                where=statistic,
                got=float(rewards[~np.isin(rewards, (0.0, 1.0))][0]),
                expected="0 or 1",
                hint="take avg, or a check without shares",
            )
        return pass_at(int(statistic.removeprefix("pass@")), counts, sums.astype(np.int64))


def pass_at(k: int, num_samples: IntArray, num_right: IntArray) -> FloatArray:
    """Return the chance that one of `k` samples is right, of each prompt.

    Args:
        k: How many are drawn.
        num_samples: How many there are.
        num_right: How many of these are right.

    Returns:
        Not-a-number where there are fewer than `k`.
    """
    num_wrong = num_samples - num_right
    all_wrong = np.ones(num_samples.shape)
    for drawn in range(k):  # the next one is wrong, too
        left = np.maximum(num_samples - drawn, 1)
        all_wrong *= np.clip((num_wrong - drawn) / left, 0.0, 1.0)
    return np.where(num_samples >= k, 1.0 - all_wrong, np.nan)


def read_samples(rewards: pa.Table, responses: pa.Table | None = None) -> Samples:
    """Return the rewards of a table by prompt and model.

    Args:
        rewards: Of one reward model.
        responses: What was scored; without them nothing is known of a majority.
    """
    names = ("prompt_id", "weights_digest", "alpha")
    codes = np.stack([_codes(rewards[name]) for name in names])
    _, group_of_row = np.unique(codes, axis=1, return_inverse=True)
    vote = None if responses is None or not rewards.num_rows else vote_of(rewards)
    return Samples(
        np.asarray(rewards["reward"].cast(pa.float64()).to_numpy(), np.float64),
        np.asarray(group_of_row, np.int64).reshape(-1),
        None if vote is None or responses is None else _votes(rewards, responses, vote),
    )


def vote_of(rewards: pa.Table) -> Vote | None:
    """Return what reads the answer of a response; None where answers cannot be compared."""
    spec = check_of(str(rewards["reward_model"][0])) if rewards.num_rows else None
    return None if spec is None else spec.vote


def check_of(reward_model: str) -> RewardModelSpec | None:
    """Return the check that a table names as its reward model; None of any other kind."""
    kind = kind_of(reward_model)
    return RewardModelSpec.parse(reward_model) if kind.reads_columns else None


def statistics_of(samples: Samples) -> list[str]:
    """Return the statistics that can be told of the rewards of a check."""
    most = samples.most_samples
    if most < 2:
        return []
    found = ["avg"]
    if np.isin(samples.rewards[np.isfinite(samples.rewards)], (0.0, 1.0)).all():
        found += [f"pass@{k}" for k in sorted({*(2**i for i in range(1, 12) if 2**i < most), most})]
    return found if samples.votes is None else [*found, "majority"]


def named(statistic: str, num_samples: int) -> str:
    """Return a statistic with the number of samples that it is of."""
    return statistic if "@" in statistic else f"{statistic}@{num_samples}"


def ranked_by(statistic: str, rewards: pa.Table, responses: pa.Table) -> pa.Table:
    """Return rewards in which each sample stands for its prompt: it has the statistic of all.

    Args:
        statistic: `avg` leaves everything as it is.
        rewards: Of the scoring reward model.
        responses: What was scored.

    Raises:
        EvaluationError: The rewards do not allow it.
    """
    if statistic == "avg" or not rewards.num_rows:
        return rewards
    samples = read_samples(rewards, responses)
    if statistic == "majority" and samples.votes is None:
        raise EvaluationError(
            "no majority: the answers of this reward model cannot be compared",
            where=rewards["reward_model"][0],
            expected="check:number or check:exact",
        )
    values = samples.values(statistic)[samples.group_of_row]
    values = np.where(np.isfinite(samples.rewards), values, np.nan)
    column = rewards.schema.get_field_index("reward")
    return rewards.set_column(
        column, rewards.schema.field(column), pa.array(values, from_pandas=True)
    )


def require_statistic(statistic: str, spec: RewardModelSpec, num_samples: int) -> None:
    """Check that candidates can be ranked by a statistic, before anything is generated.

    Args:
        statistic: `avg`, `pass@K` or `majority`.
        spec: The scoring reward model.
        num_samples: Answers to each prompt.

    Raises:
        ConfigError: They cannot.
    """
    if statistic == "avg":
        return
    where = argument("sample_statistic", statistic)
    if not spec.kind.reads_columns or (statistic == "majority" and spec.vote is None):
        raise ConfigError(
            "this reward model has no such statistic of several samples",
            where=where,
            got=spec.text,
            expected="a check" if "@" in statistic else "check:number or check:exact",
        )
    wanted = int(statistic.removeprefix("pass@")) if "@" in statistic else 2
    if num_samples < wanted:
        raise ConfigError(
            "too few samples of each prompt for this statistic",
            where=where,
            got=num_samples,
            expected=f"{wanted} or more",
            hint=f"set {argument('num_samples', wanted)}",
        )


def summarize_samples(rewards: pa.Table, responses: pa.Table) -> list[dict[str, Any]]:
    """Return all statistics of one model's answers under a check, with intervals over prompts.

    Args:
        rewards: Its rewards.
        responses: What was scored.
    """
    samples = read_samples(rewards, responses)
    rows = []
    for statistic in statistics_of(samples):
        values = samples.values(statistic)
        values = values[np.isfinite(values)]
        low, high = _interval(values)
        rows.append(
            {
                "statistic": named(statistic, samples.most_samples),
                "mean": float(values.mean()) if values.size else None,
                "ci_low": low,
                "ci_high": high,
                "num_prompts": int(values.size),
            }
        )
    return rows


def _interval(values: FloatArray) -> tuple[float, float] | tuple[None, None]:
    """Return the bootstrap interval of a mean; none of values that are all the same."""
    if values.size < 2 or values.min() == values.max():
        return None, None
    from scipy import stats  # half a second, which no other command of this room needs

    made = stats.bootstrap(
        (values,), np.mean, confidence_level=_CONFIDENCE, batch=64, rng=np.random.default_rng(42)
    )
    low, high = made.confidence_interval
    return float(low), float(high)


def _codes(column: pa.ChunkedArray) -> IntArray:
    """Return a number for each value of a column, null included."""
    if pa.types.is_dictionary(column.type):  # as a large table is read
        column = column.cast(column.type.value_type)
    encoded = column.combine_chunks().dictionary_encode(null_encoding="encode")
    return np.asarray(encoded.indices, np.int64)


def _share(sums: FloatArray, counts: IntArray) -> FloatArray:
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def _majority(
    groups: IntArray, rewards: FloatArray, votes: IntArray, num_groups: int
) -> FloatArray:
    """Return the reward of what most samples of a group say; 0 where none says anything."""
    answered = np.bincount(groups, minlength=num_groups) > 0
    result = np.where(answered, 0.0, np.nan)
    readable = votes >= 0
    pairs = np.stack([groups[readable], votes[readable]])
    if not pairs.size:
        return result
    distinct, answer_of_row, counts = np.unique(
        pairs, axis=1, return_inverse=True, return_counts=True
    )
    answer_of_row = answer_of_row.reshape(-1)
    means = np.bincount(answer_of_row, weights=rewards[readable]) / counts
    most = np.zeros(num_groups, np.int64)
    np.maximum.at(most, distinct[0], counts)
    wins = counts == most[distinct[0]]
    num_winners = np.bincount(distinct[0][wins], minlength=num_groups)
    sums = np.bincount(distinct[0][wins], weights=means[wins], minlength=num_groups)
    return np.where(num_winners > 0, sums / np.maximum(num_winners, 1), result)


def _votes(rewards: pa.Table, responses: pa.Table, vote: Vote) -> IntArray:
    said: dict[tuple[Any, ...], str] = {}
    for *key, response in _rows(responses, (*_KEY, "response")):
        answer = None if response is None else vote(AUTO.answer(response))
        if answer is not None:
            said[tuple(key)] = answer
    numbers: dict[str, int] = {}
    return np.array(
        [
            numbers.setdefault(said[key], len(numbers)) if key in said else -1
            for key in _rows(rewards, _KEY)
        ],
        np.int64,
    )


def _rows(table: pa.Table, columns: Sequence[str]) -> Any:
    found: Mapping[str, list[Any]] = table.select(list(columns)).to_pydict()
    return zip(*(found[name] for name in columns), strict=True)
