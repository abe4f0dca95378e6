"""Which row of initial belongs to which row of aligned, where their vocabularies differ.

Rows are matched by the token strings of the two tokenizers where both are at hand, so that a token
whose id moved is extrapolated from its own row; without them, by their ids.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from expo_ray.checkpoints.checkpoint import Checkpoint
from expo_ray.errors import CheckpointError, PairError
from expo_ray.extrapolation.modules import layer_index

REFUSE, COMMON_ROWS, COPY_ALIGNED = "refuse", "common-rows", "copy-aligned"
VOCAB_POLICIES = (REFUSE, COMMON_ROWS, COPY_ALIGNED)
_TOKENIZER = "tokenizer.json"
_NUM_NAMED = 5
_HINT = (
    "--vocab-policy common-rows extrapolates the rows of tokens that both have, "
    "copy-aligned copies these tensors"
)
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
        rows = [(run.start, run.num_rows, run.initial_start) for run in self.runs]
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

    def covers(self, name: str, initial: tuple[int, ...], aligned: tuple[int, ...]) -> bool:
        """Tell whether a tensor of these shapes on the two sides has a row per token.

        Raises:
            PairError: Neither its shape nor its name tells.
        """
        if not aligned or initial[1:] != aligned[1:] or (initial[0], aligned[0]) != self.sizes:
            return False
        if self.sizes[0] != self.sizes[1] or _TABLE_NAME.search(name):
            return True
        if len(aligned) > 1 and layer_index(name) is None:
            raise PairError(
                "whether the rows of a tensor belong to tokens cannot be told",
                where=f"tensor {name!r}",
                got=f"{aligned[0]} rows, as many as tokens, and tokenizers that differ",
                expected="a name with embed or head in it, or a layer's number",
                hint="give initial the tokenizer of aligned, if the rows are the same tokens",
            )
        return False


def match_vocabularies(initial: Checkpoint, aligned: Checkpoint, policy: str) -> Vocabulary | None:
    """Match the rows of two vocabularies; None where they are the same, row by row.

    Under `common-rows`, where both tokenizers are at hand: a token of aligned takes initial's row
    of the same token; a token that initial lacks is copied from aligned; a row without a token on
    either side (padding) keeps its id. Without tokenizers, rows of one id belong together.

    Args:
        initial: The model before alignment.
        aligned: The model after it.
        policy: One of VOCAB_POLICIES. `refuse` lets vocabularies of two sizes pass here: the
            tensor that shows it is named by the caller.

    Raises:
        PairError: Tokenizers disagree about an id, under `refuse`.
        CheckpointError: A tokenizer is malformed.
    """
    if policy == REFUSE:
        refuse_other_tokens(initial, aligned)
        return None
    sizes = (vocabulary_size(initial.config), vocabulary_size(aligned.config))
    if sizes[0] is None or sizes[1] is None:
        return None
    known = (sizes[0], sizes[1])
    tables = _different_tables(initial, aligned)
    if sizes[0] == sizes[1] and not tables:
        return None
    if policy == COPY_ALIGNED:
        if sizes[0] == sizes[1] and not (tables and _other_tokens(*tables)):
            return None
        whole = RowRun(start=0, num_rows=known[1], initial_start=None)
        return Vocabulary(sizes=known, by="policy", runs=(whole,))
    if tables:
        rows = _rows_by_token(*tables, sizes=known)
        return Vocabulary(sizes=known, by="tokens", runs=_runs(rows))
    return Vocabulary(sizes=known, by="ids", runs=_runs(_rows_by_id(known)))


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
    tables = _different_tables(first, second)
    if tables and _other_tokens(*tables):
        raise PairError(
            "the tokenizers give the same rows to other tokens",
            where=f"{first.uri} and {second.uri}, {_TOKENIZER}",
            got=name_differences(*tables, sides=sides),
            expected="the same tokens",
            hint=hint,
        )


def refused_sizes(
    initial: Checkpoint, aligned: Checkpoint, *, tensor: str, shapes: str
) -> PairError | None:
    """Return the error for a tensor whose two shapes come from two vocabularies, else None."""
    if vocabulary_size(initial.config) == vocabulary_size(aligned.config):
        return None
    tables = _different_tables(initial, aligned)
    return PairError(
        "the vocabularies have two sizes",
        where=f"tensor {tensor!r}",
        got=f"{shapes}; {name_differences(*tables)}" if tables else shapes,
        expected="the same vocabulary on both sides",
        hint=_HINT,
    )


def vocabulary_size(config: Mapping[str, Any]) -> int | None:
    """Return the vocabulary size that a config states, also inside text_config."""
    size = config.get("vocab_size")
    section = config.get("text_config")
    if size is None and isinstance(section, Mapping):
        size = section.get("vocab_size")
    return size if isinstance(size, int) else None


def token_table(checkpoint: Checkpoint) -> dict[int, str] | None:
    """Return token strings by id from tokenizer.json, None where there is none."""
    if _TOKENIZER not in checkpoint.sidecars:
        return None
    return _parse(checkpoint, checkpoint.storage.read_bytes(_TOKENIZER))


def name_differences(
    first: Mapping[int, str],
    second: Mapping[int, str],
    *,
    sides: tuple[str, str] = ("initial", "aligned"),
) -> str:
    """Return in words the first ids whose tokens differ, and how many there are."""
    ids = sorted(i for i in first.keys() | second.keys() if first.get(i) != second.get(i))
    named = [
        f"id {i}: {sides[0]} {_quoted(first.get(i))}, {sides[1]} {_quoted(second.get(i))}"
        for i in ids[:_NUM_NAMED]
    ]
    more = [f"{len(ids)} in all"] if len(ids) > _NUM_NAMED else []
    return "; ".join([*named, *more])


def _quoted(token: str | None) -> str:
    return "none" if token is None else repr(token)


def _different_tables(
    initial: Checkpoint, aligned: Checkpoint
) -> tuple[dict[int, str], dict[int, str]] | None:
    """Return both token tables; None where one is missing or they are the same."""
    if not all(_TOKENIZER in checkpoint.sidecars for checkpoint in (initial, aligned)):
        return None
    contents = [c.storage.read_bytes(_TOKENIZER) for c in (initial, aligned)]
    if contents[0] == contents[1]:
        return None  # the usual case, without parsing megabytes twice
    first, second = (_parse(c, d) for c, d in zip((initial, aligned), contents, strict=True))
    return None if first == second else (first, second)


def _parse(checkpoint: Checkpoint, data: bytes) -> dict[int, str]:
    try:
        table = json.loads(data)
        vocabulary = table["model"]["vocab"]
        if isinstance(vocabulary, list):  # unigram: [[token, score], ...]
            tokens = {i: str(row[0]) for i, row in enumerate(vocabulary)}
        else:
            tokens = {int(i): token for token, i in vocabulary.items()}
        tokens.update({int(row["id"]): row["content"] for row in table.get("added_tokens") or []})
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise CheckpointError(
            "tokenizer.json is malformed", where=f"{checkpoint.uri}/{_TOKENIZER}", got=error
        ) from error
    return tokens


def _other_tokens(initial: Mapping[int, str], aligned: Mapping[int, str]) -> bool:
    return any(initial.get(i, token) != token for i, token in aligned.items())


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
