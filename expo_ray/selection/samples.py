"""Responses and rewards, joined and laid out for comparison.

Matrices have one row per candidate and one column per (prompt, sample), not-a-number where a value
is missing. Everything is sorted, so that nothing depends on the order of the tables' rows.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from expo_ray.errors import TableError
from expo_ray.extrapolation.planning.alpha import ALIGNED_ALPHA
from expo_ray.rewards.kinds.registry import kind_of
from expo_ray.selection.sign_table import read_signs
from expo_ray.selection.table_keys import IntArray, TableKeys, distinct

FloatArray = npt.NDArray[np.float64]
SPLITS = ("tuning", "heldout")

RESPONSE_COLUMNS = (
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
REWARD_COLUMNS = ("prompt_id", "sample", "alpha", "weights_digest", "reward", "reward_model")


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
    """The guards that were not made from the pair: their order of the candidates counts, unless
    they are only reported."""
    tokens: FloatArray
    """Of the answers; what was thought before is no part of them."""
    thought_tokens: FloatArray
    """Of what was thought; not-a-number where the table does not tell."""
    truncated: FloatArray
    """1 where the response stopped at the token limit, or ended before any answer, else 0."""
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
        matrices = (
            *("rewards", "tokens", "thought_tokens", "truncated"),
            *("repetition", "echoes", "markers", "drifts"),
        )
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
    responses: pa.Table,
    rewards: pa.Table,
    guard_rewards: Mapping[str, pa.Table],
    *,
    signs_file: Path | None = None,
    report_only: Collection[str] = (),
) -> dict[str, SplitSamples]:
    """Join responses with rewards and return the samples of both splits.

    Args:
        responses: Those of all candidates.
        rewards: Their rewards under the scoring reward model.
        guard_rewards: Rewards under further reward models, by name.
        signs_file: Where the signs of the texts stand, and are kept for the next time.
        report_only: Reward models that are no peers, whatever they were made from.

    Raises:
        TableError: A column is missing, a key is duplicated or unknown, an alpha is null or has
            two digests, a split is unknown, or alpha 0 is absent.
    """
    _require_columns(responses, RESPONSE_COLUMNS, "responses")
    keys = TableKeys.of(responses, "responses")
    digests = _check_candidates(responses, keys)
    scores = _scores(rewards, keys, digests, "rewards")
    guards = {
        name: _scores(table, keys, digests, f"rewards of the guard {name}")
        for name, table in guard_rewards.items()
    }
    measured = _measured(responses, keys, signs_file)
    judges = {name: reward_model(table) for name, table in guard_rewards.items()}
    peers = tuple(
        sorted(
            name
            for name, judge in judges.items()
            if name not in report_only and not made_from_pair(judge)
        )
    )
    return {
        split: _split_samples(
            np.asarray(pc.equal(responses["split"], split)), keys, scores, guards, measured, peers
        )
        for split in SPLITS
    }


def reward_model(rewards: pa.Table) -> str:
    """Return the reward model of a table of rewards as it was named; "" of an empty table."""
    return str(rewards["reward_model"][0].as_py()) if rewards.num_rows else ""


def made_from_pair(judge: str) -> bool:
    """Return whether a reward model, by its name, is the log-ratio of the pair itself."""
    return kind_of(judge).needs_pair


def _require_columns(table: pa.Table, columns: tuple[str, ...], where: str) -> None:
    missing = [name for name in columns if name not in table.column_names]
    if missing:
        raise TableError(
            f"the {where} table lacks columns", where=where, got=f"no {', '.join(missing)}"
        )


def _check_candidates(responses: pa.Table, keys: TableKeys) -> list[str]:
    """Return the digest of the weights of each alpha."""
    digests, digest_of_row = distinct(responses["weights_digest"])
    digest_of_alpha = _first_of_each(keys.alpha_of_row, digest_of_row, len(keys.alphas))
    for row in np.flatnonzero(digest_of_alpha[keys.alpha_of_row] != digest_of_row)[:1]:
        alpha = keys.alpha_of_row[row]
        raise TableError(
            f"responses of different weights are all labelled alpha {keys.alphas[alpha]:g}",
            where="responses",
            got=f"{digests[digest_of_alpha[alpha]]} and {digests[digest_of_row[row]]}",
            hint="generate them again into an empty folder",
        )
    splits, split_of_row = distinct(responses["split"])
    unknown = np.array([split not in SPLITS for split in splits], bool)
    for row in np.flatnonzero(unknown[split_of_row])[:1]:
        raise TableError(
            "a response belongs to no known split",
            where=f"responses, prompt_id {keys.prompts[keys.prompt_of_row[row]]!r}",
            got=splits[split_of_row[row]],
            expected=" or ".join(SPLITS),
        )
    split_of_prompt = _first_of_each(keys.prompt_of_row, split_of_row, len(keys.prompts))
    for row in np.flatnonzero(split_of_prompt[keys.prompt_of_row] != split_of_row)[:1]:
        raise TableError(
            "a prompt is both a tuning and a held-out prompt",
            where=f"prompt_id {keys.prompts[keys.prompt_of_row[row]]!r}",
        )
    if ALIGNED_ALPHA not in keys.alphas:
        raise TableError(
            "the aligned model itself is missing: there is nothing to compare with",
            where="responses",
            got=f"alphas {', '.join(f'{a:g}' for a in keys.alphas) or 'none'}",
            expected="alpha 0 among them",
        )
    return [digests[i] for i in digest_of_alpha]


def _first_of_each(group_of_row: IntArray, values: IntArray, num_groups: int) -> IntArray:
    """Return the value of the first row of each group."""
    found = np.empty(num_groups, np.int64)
    found[group_of_row[::-1]] = values[::-1]  # the last assignment stands
    return found


def _scores(table: pa.Table, responses: TableKeys, digests: list[str], name: str) -> FloatArray:
    """Return the reward of each response; null, missing and non-finite ones are NaN, never 0."""
    _require_columns(table, REWARD_COLUMNS, name)
    keys = TableKeys.of(table, name)
    models, _ = distinct(table["reward_model"])
    if len(models) > 1:
        raise TableError(
            "one table holds the rewards of several reward models",
            where=name,
            got=", ".join(models),
            expected="one",
            hint="hand the others in as guards",
        )
    numbers = responses.numbered_as(responses)
    order = np.argsort(numbers)
    wanted = keys.numbered_as(responses)
    place = np.searchsorted(numbers[order], wanted).clip(max=len(order) - 1)
    row_of_reward = order[place]
    found, digest_of_row = distinct(table["weights_digest"])
    known = {digest: i for i, digest in enumerate(found)}
    digest_of_alpha = np.array([known.get(digest, -1) for digest in digests], np.int64)
    belongs = (wanted == numbers[row_of_reward]) & (
        digest_of_alpha[responses.alpha_of_row[row_of_reward]] == digest_of_row
    )
    for row in np.flatnonzero(~belongs)[:1]:
        raise TableError(
            "a reward belongs to no response",
            where=name,
            got=f"{keys.describe(row)}, weights {found[digest_of_row[row]]}",
            hint="score these responses again",
        )
    rewards = np.full(len(numbers), np.nan)
    given = _floats(table["reward"])
    rewards[row_of_reward] = np.where(np.isfinite(given), given, np.nan)
    return rewards


def _measured(
    responses: pa.Table, keys: TableKeys, signs_file: Path | None
) -> dict[str, FloatArray]:
    """Return what is measured of each response; of failed ones, and of nulls, nothing: NaN."""
    failed = np.asarray(pc.is_valid(responses["error"]))
    truncated = pc.fill_null(pc.equal(responses["finish_reason"], "length"), False)
    tokens, thought = _floats(responses["completion_tokens"]), np.full(failed.size, np.nan)
    # Tables of before, or made elsewhere, may not tell what was thought.
    if {"thought", "thought_tokens"} <= {*responses.column_names}:
        thought = _floats(responses["thought_tokens"])
        tokens = tokens - np.nan_to_num(thought)
        if responses["thought"].null_count < responses.num_rows:
            # Not by trimming them: that would copy all texts.
            has_text = pc.fill_null(
                pc.match_substring_regex(responses["response"], r"[^\s\p{Z}]"), False
            )
            is_unanswered = pc.and_not(pc.is_valid(responses["thought"]), has_text)
            truncated = pc.or_(truncated, is_unanswered)
    measured = {
        "tokens": np.where(failed, np.nan, tokens),
        "thought_tokens": np.where(failed, np.nan, thought),
        "truncated": np.where(failed, np.nan, _floats(truncated)),
    }
    # Tables made elsewhere may lack the chats; ours never do.
    chats = responses["messages"] if "messages" in responses.column_names else None
    # Answers to the same prompt together: what is asked of a prompt is asked once.
    rows = np.argsort(keys.prompt_of_row, kind="stable")
    signs = read_signs(responses["response"], chats, rows[~failed[rows]], signs_file)
    return {**measured, **signs}


def _floats(column: pa.ChunkedArray) -> FloatArray:
    """Return a column as numbers, not-a-number where null."""
    kind = pa.int8() if pa.types.is_boolean(column.type) else column.type
    return np.asarray(column.cast(kind).cast(pa.float64()), np.float64)


def _split_samples(
    of_split: npt.NDArray[np.bool_],
    keys: TableKeys,
    scores: FloatArray,
    guards: Mapping[str, FloatArray],
    measured: Mapping[str, FloatArray],
    peers: tuple[str, ...],
) -> SplitSamples:
    rows = np.flatnonzero(of_split)
    pairs, column = np.unique(keys.pair_of_row[rows], return_inverse=True)
    prompts, prompt_of_key = np.unique(pairs // len(keys.samples), return_inverse=True)
    place = (keys.alpha_of_row[rows], column)

    def matrix(values: FloatArray) -> FloatArray:
        laid_out = np.full((len(keys.alphas), pairs.size), np.nan)
        laid_out[place] = values[rows]
        return laid_out

    return SplitSamples(
        alphas=tuple(keys.alphas),
        prompt_of_key=prompt_of_key,
        num_prompts=prompts.size,
        rewards=matrix(scores),
        guard_rewards={name: matrix(found) for name, found in guards.items()},
        peers=peers,
        present=np.isfinite(matrix(np.zeros(of_split.size))),
        **{name: matrix(values) for name, values in measured.items()},
    )
