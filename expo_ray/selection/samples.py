"""Responses and rewards, joined and laid out for comparison.

Matrices have one row per candidate and one column per (prompt, sample), not-a-number where a value
is missing. Everything is sorted, so that nothing depends on the order of the tables' rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from expo_ray.errors import TableError
from expo_ray.extrapolation.planning.alpha import ALIGNED_ALPHA
from expo_ray.selection.repetition import repeated_share
from expo_ray.selection.text_signs import (
    changes_language,
    echoes,
    last_question,
    leaks_markers,
)

FloatArray = npt.NDArray[np.float64]
SPLITS = ("tuning", "heldout")

_RESPONSE_COLUMNS = (
    "prompt_id",
    "sample",
    "split",
    "response",
    "alpha",
    "weights_digest",
    "finish_reason",
    "completion_tokens",
    "error",
)
_REWARD_COLUMNS = ("prompt_id", "sample", "alpha", "weights_digest", "reward", "reward_model")


def canonical_alpha(alpha: float) -> float:
    """Return the shortest decimal with the same float32 value: how alphas are compared."""
    return float(str(np.float32(alpha))) + 0.0  # the sum turns -0.0 into 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitSamples:
    """What was generated and scored on the prompts of one split."""

    alphas: tuple[float, ...]
    """Ascending; `ALIGNED_ALPHA` is among them."""
    prompt_of_key: npt.NDArray[np.int64]
    """Index of the prompt of each key."""
    num_prompts: int
    rewards: FloatArray
    guard_rewards: Mapping[str, FloatArray]
    peers: tuple[str, ...]
    """The guards that were not made from the pair: their order of the candidates counts."""
    tokens: FloatArray
    truncated: FloatArray
    """1 where the response stopped at the token limit, else 0."""
    repetition: FloatArray
    echoes: FloatArray
    """1 where the response restates its prompt; these three are all not-a-number where the table
    lacks the chats."""
    markers: FloatArray
    """1 where the response writes out markers of a chat template."""
    drifts: FloatArray
    """1 where the response is in another language than its prompt."""
    present: npt.NDArray[np.bool_]
    """Whether there is a response at all, fine or failed."""

    def row(self, alpha: float) -> int:
        """Return the row of a canonical alpha."""
        return self.alphas.index(alpha)

    def by_prompt(self, values: FloatArray) -> FloatArray:
        """Average the samples of each prompt; prompts without any value are left out.

        Args:
            values: One value per key, not-a-number where missing.
        """
        means = self.prompt_means(values)
        kept: FloatArray = means[np.isfinite(means)]
        return kept

    def prompt_means(self, values: FloatArray) -> FloatArray:
        """Average the samples of each prompt, in order of prompt ids; NaN without any value."""
        valid = np.isfinite(values)
        prompt_of_value = self.prompt_of_key[valid]
        counts = np.bincount(prompt_of_value, minlength=self.num_prompts)
        sums = np.bincount(prompt_of_value, weights=values[valid], minlength=self.num_prompts)
        means: FloatArray = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
        return means

    def answered_by(self, alpha: float) -> SplitSamples:
        """Return the samples of those prompts alone that a candidate was asked."""
        kept = self.present[self.row(alpha)]
        if kept.all():
            return self
        matrices = ("rewards", "tokens", "truncated", "repetition", "echoes", "markers", "drifts")
        prompts, prompt_of_key = np.unique(self.prompt_of_key[kept], return_inverse=True)
        return replace(
            self,
            prompt_of_key=prompt_of_key,
            num_prompts=prompts.size,
            guard_rewards={name: found[:, kept] for name, found in self.guard_rewards.items()},
            present=self.present[:, kept],
            **{name: getattr(self, name)[:, kept] for name in matrices},
        )

    def rewards_of(self, judge: str | None) -> FloatArray:
        """Return the rewards of the scoring reward model (None) or of a guard."""
        return self.rewards if judge is None else self.guard_rewards[judge]

    def differences(
        self, alpha: float, other: float = ALIGNED_ALPHA, judge: str | None = None
    ) -> FloatArray:
        """Return per prompt the reward of `alpha` minus that of `other`, scored under both."""
        rewards = self.rewards_of(judge)
        return self.by_prompt(rewards[self.row(alpha)] - rewards[self.row(other)])

    def agreed_differences(self, alpha: float, other: float = ALIGNED_ALPHA) -> FloatArray:
        """Return the same as a mean over judges, each in units of its spread at alpha 0.

        The judges are the scoring reward model and its peers.
        """
        judges = []
        for judge in (None, *self.peers):
            rewards = self.rewards_of(judge)
            spread = np.nanstd(self.prompt_means(rewards[self.row(ALIGNED_ALPHA)]))
            ahead = self.prompt_means(rewards[self.row(alpha)] - rewards[self.row(other)])
            judges.append(ahead / spread if spread else ahead)
        means: FloatArray = np.mean(judges, axis=0)
        scored: FloatArray = means[np.isfinite(means)]
        return scored

    def num_errors(self, alpha: float, judge: str | None = None) -> int:
        """Return how many rewards are null or missing."""
        return int((~np.isfinite(self.rewards_of(judge)[self.row(alpha)])).sum())


def join_tables(
    responses: pa.Table, rewards: pa.Table, guard_rewards: Mapping[str, pa.Table]
) -> dict[str, SplitSamples]:
    """Join responses with rewards and return the samples of both splits.

    Raises:
        TableError: A column is missing, a key is duplicated or unknown, an alpha is null or has
            two digests, a split is unknown, or alpha 0 is absent.
    """
    # Tables made elsewhere may lack the chats; ours never do.
    columns = (*_RESPONSE_COLUMNS, *({"messages"} & set(responses.column_names)))
    rows = _index(_rows(responses, columns, "responses"), "responses")
    _check_candidates(rows)
    scores = _scores(rewards, rows, "rewards")
    guards = {
        name: _scores(table, rows, f"rewards of the guard {name}")
        for name, table in guard_rewards.items()
    }
    alphas = tuple(sorted({alpha for alpha, _, _ in rows}))
    judges = {name: reward_model(table) for name, table in guard_rewards.items()}
    peers = tuple(sorted(name for name, judge in judges.items() if not made_from_pair(judge)))
    return {split: _split_samples(split, alphas, rows, scores, guards, peers) for split in SPLITS}


def reward_model(rewards: pa.Table) -> str:
    """Return the reward model of a table of rewards as it was named; "" of an empty table."""
    return str(rewards["reward_model"][0]) if rewards.num_rows else ""


def made_from_pair(judge: str) -> bool:
    """Return whether a reward model, by its name, is the log-ratio of the pair itself."""
    return judge.startswith("implicit:")


_Key = tuple[float, str, int]


def _rows(table: pa.Table, columns: tuple[str, ...], where: str) -> list[dict[str, Any]]:
    missing = [name for name in columns if name not in table.column_names]
    if missing:
        raise TableError(
            f"the {where} table lacks columns", where=where, got=f"no {', '.join(missing)}"
        )
    rows: list[dict[str, Any]] = table.select(columns).to_pylist()
    return rows


def _index(rows: list[dict[str, Any]], where: str) -> dict[_Key, dict[str, Any]]:
    index: dict[_Key, dict[str, Any]] = {}
    for row in rows:
        if row["alpha"] is None:
            raise TableError(
                "a candidate without an alpha cannot be compared",
                where=f"{where}, prompt_id {row['prompt_id']!r}",
                got="alpha null (weights made by rules)",
                expected="a number",
            )
        key = (canonical_alpha(row["alpha"]), row["prompt_id"], row["sample"])
        if key in index:
            raise TableError(
                "two rows for the same prompt, sample and alpha",
                where=where,
                got=f"alpha {key[0]:g}, prompt_id {key[1]!r}, sample {key[2]}",
            )
        index[key] = row
    return index


def _check_candidates(rows: Mapping[_Key, dict[str, Any]]) -> None:
    digests: dict[float, str] = {}
    splits: dict[str, str] = {}
    for (alpha, prompt_id, _), row in rows.items():
        if digests.setdefault(alpha, row["weights_digest"]) != row["weights_digest"]:
            raise TableError(
                f"responses of different weights are all labelled alpha {alpha:g}",
                where="responses",
                got=f"{digests[alpha]} and {row['weights_digest']}",
                hint="generate them again into an empty folder",
            )
        if row["split"] not in SPLITS:
            raise TableError(
                "a response belongs to no known split",
                where=f"responses, prompt_id {prompt_id!r}",
                got=row["split"],
                expected=" or ".join(SPLITS),
            )
        if splits.setdefault(prompt_id, row["split"]) != row["split"]:
            raise TableError(
                "a prompt is both a tuning and a held-out prompt", where=f"prompt_id {prompt_id!r}"
            )
    if ALIGNED_ALPHA not in digests:
        raise TableError(
            "the aligned model itself is missing: there is nothing to compare with",
            where="responses",
            got=f"alphas {', '.join(f'{a:g}' for a in sorted(digests)) or 'none'}",
            expected="alpha 0 among them",
        )


def _scores(
    table: pa.Table, responses: Mapping[_Key, dict[str, Any]], name: str
) -> dict[_Key, float]:
    """Return finite rewards by key; null and non-finite ones are left out, never 0."""
    rows = _index(_rows(table, _REWARD_COLUMNS, name), name)
    models = sorted({row["reward_model"] for row in rows.values()})
    if len(models) > 1:
        raise TableError(
            "one table holds the rewards of several reward models",
            where=name,
            got=", ".join(models),
            expected="one",
            hint="hand the others in as guards",
        )
    for key, row in rows.items():
        if key not in responses or responses[key]["weights_digest"] != row["weights_digest"]:
            raise TableError(
                "a reward belongs to no response",
                where=name,
                got=f"alpha {key[0]:g}, prompt_id {key[1]!r}, sample {key[2]}, "
                f"weights {row['weights_digest']}",
                hint="score these responses again",
            )
    return {
        key: row["reward"]
        for key, row in rows.items()
        if row["reward"] is not None and math.isfinite(row["reward"])
    }


def _split_samples(
    split: str,
    alphas: tuple[float, ...],
    rows: Mapping[_Key, dict[str, Any]],
    scores: Mapping[_Key, float],
    guards: Mapping[str, Mapping[_Key, float]],
    peers: tuple[str, ...],
) -> SplitSamples:
    keys = sorted({key[1:] for key, row in rows.items() if row["split"] == split})
    prompts = {prompt_id: i for i, prompt_id in enumerate(sorted({key[0] for key in keys}))}
    nothing: dict[str, Any] = {"error": "missing", "absent": True}
    table = [[rows.get((alpha, *key), nothing) for key in keys] for alpha in alphas]

    def matrix(values: list[list[Any]]) -> FloatArray:
        return np.array(values, dtype=np.float64).reshape(len(alphas), len(keys))

    def measured(value: Any) -> FloatArray:
        return matrix([[_value(row, value) for row in line] for line in table])

    def scored(found: Mapping[_Key, float]) -> FloatArray:
        return matrix([[found.get((alpha, *key), math.nan) for key in keys] for alpha in alphas])

    return SplitSamples(
        alphas=alphas,
        prompt_of_key=np.array([prompts[prompt_id] for prompt_id, _ in keys], dtype=np.int64),
        num_prompts=len(prompts),
        rewards=scored(scores),
        guard_rewards={name: scored(found) for name, found in guards.items()},
        peers=peers,
        tokens=measured(lambda row: row["completion_tokens"]),
        truncated=measured(lambda row: row["finish_reason"] == "length"),
        repetition=measured(lambda row: repeated_share(row["response"] or "")),
        echoes=measured(_sign(echoes)),
        markers=measured(_sign(leaks_markers)),
        drifts=measured(_sign(changes_language)),
        present=matrix([["absent" not in row for row in line] for line in table]).astype(bool),
    )


def _sign(tells: Callable[[str, str], bool]) -> Callable[[dict[str, Any]], bool | None]:
    def read(row: dict[str, Any]) -> bool | None:
        if row.get("messages") is None:
            return None
        return tells(last_question(row["messages"]), row["response"] or "")

    return read


def _value(row: dict[str, Any], read: Any) -> float:
    """Read one value of a response; failed and missing ones, and nulls, are not a number."""
    value = None if row["error"] is not None else read(row)
    return math.nan if value is None else float(value)
