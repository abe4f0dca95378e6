"""The keys of a table's rows as numbers, so that tables are joined without an object per row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from expo_ray.errors import TableError

IntArray = npt.NDArray[np.int64]


def canonical_alpha(alpha: float) -> float:
    """Return the shortest decimal with the same float32 value: how alphas are compared."""
    return float(str(np.float32(alpha))) + 0.0  # the sum turns -0.0 into 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class TableKeys:
    """What occurs in the key columns of a table, ascending, and which of it each row has."""

    alphas: Sequence[float]
    prompts: Sequence[str]
    samples: Sequence[int]
    alpha_of_row: IntArray
    prompt_of_row: IntArray
    sample_of_row: IntArray

    @classmethod
    def of(cls, table: pa.Table, where: str) -> TableKeys:
        """Read the keys of a table.

        Args:
            table: With `alpha`, `prompt_id` and `sample`.
            where: Its name, for errors.

        Raises:
            TableError: An alpha is null, or two rows have the same key.
        """
        if table["alpha"].null_count:
            row = pc.index(pc.is_null(table["alpha"]), True).as_py()
            raise TableError(
                "a candidate without an alpha cannot be compared",
                where=f"{where}, prompt_id {table['prompt_id'][row].as_py()!r}",
                got="alpha null (weights made by rules)",
                expected="a number",
            )
        given, given_of_row = distinct(table["alpha"])
        canonical = [canonical_alpha(alpha) for alpha in given]
        alphas = sorted(set(canonical))
        place = np.array([alphas.index(alpha) for alpha in canonical], np.int64)
        prompts, prompt_of_row = distinct(table["prompt_id"])
        samples, sample_of_row = distinct(table["sample"])
        keys = cls(
            alphas=alphas,
            prompts=prompts,
            samples=samples,
            alpha_of_row=place[given_of_row],
            prompt_of_row=prompt_of_row,
            sample_of_row=sample_of_row,
        )
        numbers = keys.numbered_as(keys)
        order = np.argsort(numbers, kind="stable")
        again = order[1:][np.diff(numbers[order]) == 0]
        if again.size:
            raise TableError(
                "two rows for the same prompt, sample and alpha",
                where=where,
                got=keys.describe(int(again.min())),
            )
        return keys

    @property
    def pair_of_row(self) -> IntArray:
        """A number for the prompt and sample of each row, ascending as these do."""
        return self.prompt_of_row * len(self.samples) + self.sample_of_row

    def numbered_as(self, other: TableKeys) -> IntArray:
        """Return a number for each row, the one that its key has in another table.

        A key of which a part does not occur there has -1.
        """
        alpha = _places(self.alphas, other.alphas)[self.alpha_of_row]
        prompt = _places(self.prompts, other.prompts)[self.prompt_of_row]
        sample = _places(self.samples, other.samples)[self.sample_of_row]
        numbers = (alpha * len(other.prompts) + prompt) * len(other.samples) + sample
        known = (alpha >= 0) & (prompt >= 0) & (sample >= 0)
        return np.where(known, numbers, -1)

    def describe(self, row: int) -> str:
        """Return the key of a row in words."""
        return (
            f"alpha {self.alphas[self.alpha_of_row[row]]:g}, "
            f"prompt_id {self.prompts[self.prompt_of_row[row]]!r}, "
            f"sample {self.samples[self.sample_of_row[row]]}"
        )


def distinct(column: pa.ChunkedArray) -> tuple[list[Any], IntArray]:
    """Return the values of a column, ascending, null last, and which of them each row has."""
    if not len(column):
        return [], np.empty(0, np.int64)
    if pa.types.is_dictionary(column.type):
        encoded = column.unify_dictionaries()
    else:
        encoded = pc.dictionary_encode(column, null_encoding="encode")
    values = encoded.chunk(encoded.num_chunks - 1).dictionary.to_pylist()
    null = len(values)
    codes = np.concatenate(
        [np.asarray(pc.fill_null(chunk.indices, null)) for chunk in encoded.chunks]
    )
    values.append(None)
    # What a filter has left without rows still stands in a dictionary.
    there = np.flatnonzero(np.bincount(codes, minlength=len(values))).tolist()
    order = sorted(there, key=lambda i: (values[i] is None, values[i]))
    place = np.empty(len(values), np.int64)
    place[order] = np.arange(len(order))
    return [values[i] for i in order], place[codes]


def _places(values: Sequence[Any], known: Sequence[Any]) -> IntArray:
    place = {value: i for i, value in enumerate(known)}
    return np.array([place.get(value, -1) for value in values], np.int64)
