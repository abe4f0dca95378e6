"""Which row of initial belongs to which row of aligned, where their vocabularies differ.

Rows are matched by the token strings of the two tokenizers where both are at hand, so that a token
whose id moved is extrapolated from its own row; without them, by their ids.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from expo_ray.checkpoints.checkpoint import Checkpoint
from expo_ray.errors import PairError, argument
from expo_ray.extrapolation.pairing.modules import layer_index
from expo_ray.extrapolation.pairing.ties import EMBEDDINGS, HEADS, is_named
from expo_ray.extrapolation.pairing.token_tables import TokenizerDifference, compare_tokenizers

REFUSE, COMMON_ROWS, COPY_ALIGNED = "refuse", "common-rows", "copy-aligned"
VOCAB_POLICIES = (REFUSE, COMMON_ROWS, COPY_ALIGNED)
_HINT = (
    f"{argument('vocab_policy', 'common-rows')} extrapolates the rows of tokens that both have, "
    "copy-aligned copies these tensors"
)
_UNPLACED_HINT = (
    "save both tokenizers with a tokenizer.json, which states ids; or give both the same files, if "
    "the ids mean the same tokens; or "
    f"{argument('vocab_policy', 'copy-aligned')} copies tables of tokens"
)
# The embedding and the head of a model, whatever its config says of their rows.
_TABLE_ENDS = (*EMBEDDINGS, *HEADS, "embed_tokens_per_layer.weight")
# Sizes tell a table of tokens where they differ; where they agree, its name must.
_TABLE_NAME = re.compile(
    r"embed|wte|(^|[._])head\.|(^|\.)shared\.|output(_layer)?\.weight$|proj_out|predictions"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class RowRun:
    """Consecutive rows of aligned that lie in one piece in initial, too."""

    start: int
    num_rows: int
    initial_start: int | None
    """None where the rows are copied from aligned."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Vocabulary:
    """What becomes of the rows of every tensor that has one per token."""

    sizes: tuple[int, int]
    """Rows of initial and of aligned."""
    by: str
    """tokens, ids, or policy (nothing had to be matched)."""
    runs: tuple[RowRun, ...]
    """All rows of aligned, in order."""
    others: tuple[Vocabulary, ...] = ()
    """The same for tables with other numbers of rows."""

    @property
    def num_extrapolated(self) -> int:
        """Rows that the formula covers."""
        return sum(run.num_rows for run in self.runs if run.initial_start is not None)

    @property
    def num_moved(self) -> int:
        """Rows among them that have another id in initial."""
        moved = (run for run in self.runs if run.initial_start not in (None, run.start))
        return sum(run.num_rows for run in moved)

    def digest(self) -> str:
        """Return what two plans with the same matching have in common."""
        rows = [
            (run.start, run.num_rows, run.initial_start)
            for matching in (self, *self.others)
            for run in matching.runs
        ]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()

    def as_dict(self) -> dict[str, Any]:
        """Return the numbers for the record, JSON-able."""
        return {
            "matched_by": self.by,
            "rows_initial": self.sizes[0],
            "rows_aligned": self.sizes[1],
            "rows_extrapolated": self.num_extrapolated,
            "rows_moved": self.num_moved,
            "rows_copied": self.sizes[1] - self.num_extrapolated,
        }

    def matching_of(
        self, name: str, initial: tuple[int, ...], aligned: tuple[int, ...]
    ) -> Vocabulary | None:
        """Return the matching for a tensor of these shapes; None where it has no row per token.

        Raises:
            PairError: Neither its shape nor its name tells.
        """
        if not aligned or initial[1:] != aligned[1:]:
            return None
        sizes = (initial[0], aligned[0])
        found = next((m for m in (self, *self.others) if m.sizes == sizes), None)
        if found is None or sizes[0] != sizes[1] or _TABLE_NAME.search(name):
            return found
        if len(aligned) > 1 and layer_index(name) is None:
            raise PairError(
                "whether the rows of a tensor belong to tokens cannot be told",
                where=f"tensor {name!r}",
                got=f"{aligned[0]} rows, as many as tokens, and tokenizers that differ",
                expected="a name with embed or head in it, or a layer's number",
                hint="give initial the tokenizer of aligned, if the rows are the same tokens",
            )
        return None


def match_vocabularies(initial: Checkpoint, aligned: Checkpoint, policy: str) -> Vocabulary | None:
    """Match the rows of two vocabularies; None where they are the same, row by row.

    Under `common-rows`, where both tokenizers state their ids: a token of aligned takes initial's
    row of the same token; a token that initial lacks is copied from aligned; a row without a token
    on either side (padding) keeps its id. Without tokenizers, rows of one id belong together.

    Args:
        initial: The model before alignment.
        aligned: The model after it.
        policy: One of VOCAB_POLICIES. `refuse` lets vocabularies of two sizes pass here: the
            tensor that shows it is named by the caller.

    Raises:
        PairError: Tokenizers disagree about an id, under `refuse`; or they do, and which rows that
            concerns cannot be told.
        CheckpointError: A tokenizer is malformed.
    """
    if policy == REFUSE:
        refuse_other_tokens(initial, aligned)
        return None
    difference = compare_tokenizers(initial, aligned)
    contradicts = difference is not None and difference.contradicts
    if policy == COMMON_ROWS and difference and contradicts and not difference.states_ids:
        raise _other_tokens(initial, aligned, difference, hint=_UNPLACED_HINT)
    num_tokens = difference.num_tokens if difference else 0
    # A model of two modalities may have tables of another kind of tokens, which are far fewer.
    sizes = [s for s in table_sizes(initial, aligned) if 2 * s[1] > num_tokens]
    if contradicts and not sizes:
        raise unplaced_tokens(initial, aligned)
    matched = [m for s in sizes if (m := _match(s, difference, policy)) is not None]
    return replace(matched[0], others=tuple(matched[1:])) if matched else None


def _match(
    sizes: tuple[int, int], difference: TokenizerDifference | None, policy: str
) -> Vocabulary | None:
    if sizes[0] == sizes[1] and difference is None:
        return None
    if policy == COPY_ALIGNED:
        if sizes[0] == sizes[1] and not (difference and difference.contradicts):
            return None
        whole = RowRun(start=0, num_rows=sizes[1], initial_start=None)
        return Vocabulary(sizes=sizes, by="policy", runs=(whole,))
    if difference and difference.tables and difference.states_ids:
        rows = _rows_by_token(*difference.tables, sizes=sizes)
        return Vocabulary(sizes=sizes, by="tokens", runs=_runs(rows))
    if sizes[0] == sizes[1]:
        return None
    return Vocabulary(sizes=sizes, by="ids", runs=_runs(_rows_by_id(sizes)))


def refuse_other_tokens(
    first: Checkpoint,
    second: Checkpoint,
    *,
    sides: tuple[str, str] = ("initial", "aligned"),
    hint: str = _HINT,
) -> None:
    """Let two checkpoints pass whose tokenizers agree about every id of the second.

    Raises:
        PairError: They disagree.
        CheckpointError: A tokenizer is malformed.
    """
    difference = compare_tokenizers(first, second)
    if difference is not None and difference.contradicts:
        if hint == _HINT and not difference.states_ids:
            hint = _UNPLACED_HINT
        raise _other_tokens(first, second, difference, sides=sides, hint=hint)


def _other_tokens(
    first: Checkpoint,
    second: Checkpoint,
    difference: TokenizerDifference,
    *,
    sides: tuple[str, str] = ("initial", "aligned"),
    hint: str,
) -> PairError:
    known = difference.tables is not None
    return PairError(
        "the tokenizers give the same rows to other tokens"
        if known
        else "the tokenizers differ, and which rows belong to the same tokens cannot be told",
        where=f"{first.uri} and {second.uri}, {difference.file}",
        got=difference.describe(sides),
        expected="the same tokens",
        hint=hint,
    )


def unplaced_tokens(initial: Checkpoint, aligned: Checkpoint) -> PairError:
    """Return the error for tokenizers that disagree where no tensor has a row per token."""
    difference = compare_tokenizers(initial, aligned)
    return PairError(
        "the tokenizers give the same rows to other tokens, and no tensor is known to have them",
        where=f"{initial.uri} and {aligned.uri}, config.json and names of tensors",
        got=difference.describe() if difference else "no difference",
        expected="a vocab_size in config.json that is the number of rows of a tensor, or a tensor "
        "named like embed_tokens.weight or lm_head.weight",
    )


def refused_sizes(
    initial: Checkpoint, aligned: Checkpoint, *, tensor: str, sizes: tuple[int, int], shapes: str
) -> PairError | None:
    """Return the error for a tensor whose two shapes come from two vocabularies, else None."""
    if sizes not in table_sizes(initial, aligned):
        return None
    difference = compare_tokenizers(initial, aligned)
    return PairError(
        "the vocabularies have two sizes",
        where=f"tensor {tensor!r}",
        got=f"{shapes}; {difference.describe()}" if difference else shapes,
        expected="the same vocabulary on both sides",
        hint=_HINT,
    )


def table_sizes(initial: Checkpoint, aligned: Checkpoint) -> list[tuple[int, int]]:
    """Return the numbers of rows that tables of tokens have on the two sides.

    First what the configs state, if a tensor has so many rows, then those of tensors that are named
    as a table of tokens: configs leave out defaults, and some tables have rows of their own (an
    image token, padding).
    """
    rows = {}
    for name, ref in aligned.tensors.items():
        partner = initial.tensors.get(name)
        if partner and partner.shape and ref.shape and partner.shape[1:] == ref.shape[1:]:
            rows[name] = (partner.shape[0], ref.shape[0])
    stated = (vocabulary_size(initial.config), vocabulary_size(aligned.config))
    found = [sizes for sizes in rows.values() if sizes == stated][:1]
    found += [
        sizes
        for name, sizes in rows.items()
        if len(aligned.tensors[name].shape) == 2
        and is_named(name, _TABLE_ENDS)
        and layer_index(name) is None
    ]
    return list(dict.fromkeys(found))


def vocabulary_size(config: Mapping[str, Any]) -> int | None:
    """Return the vocabulary size that a config states, also inside text_config."""
    size = config.get("vocab_size")
    section = config.get("text_config")
    if size is None and isinstance(section, Mapping):
        size = section.get("vocab_size")
    return size if isinstance(size, int) else None


def _rows_by_token(
    initial: Mapping[int, str], aligned: Mapping[int, str], *, sizes: tuple[int, int]
) -> Iterable[int | None]:
    # Of two ids with one string the lower counts, unless aligned has it at the same place.
    ids = {token: i for i, token in sorted(initial.items(), reverse=True) if i < sizes[0]}
    for i in range(sizes[1]):
        token = aligned.get(i)
        if token == initial.get(i):
            yield i if i < sizes[0] else None
        else:
            yield None if token is None else ids.get(token)


def _rows_by_id(sizes: tuple[int, int]) -> Iterable[int | None]:
    return (i if i < sizes[0] else None for i in range(sizes[1]))


def _runs(rows: Iterable[int | None]) -> tuple[RowRun, ...]:
    """Join neighbours that are neighbours in initial, too."""
    found: list[tuple[int, int, int | None]] = []
    for i, row in enumerate(rows):
        if found:
            start, count, first = found[-1]
            if row == (None if first is None else first + count):
                found[-1] = (start, count + 1, first)
                continue
        found.append((i, 1, row))
    return tuple(RowRun(start=s, num_rows=n, initial_start=first) for s, n, first in found)
