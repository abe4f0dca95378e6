"""The signs of the texts of a table: computed once per answer, kept in a file, over all cores.

A kept sign is known by a digest of what it was computed from, question and answer, and the file by
the code that computed it: what does not match is computed anew.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import inspect
import logging
import unicodedata
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from expo_ray.checkpoints import atomic_write_bytes
from expo_ray.selection import languages, repetition, sign_workers, text_signs
from expo_ray.selection.sign_workers import SIGNS, FloatArray

_BLOCK_ROWS = 4000
_KEY_BYTES = 16
_VERSION = b"expo_ray.signs"
_logger = logging.getLogger(__name__)

Rows = npt.NDArray[np.int64]


def read_signs(
    responses: pa.ChunkedArray, chats: pa.ChunkedArray | None, rows: Rows, file: Path | None
) -> dict[str, FloatArray]:
    """Return each sign of each answer, not-a-number where there is none.

    Args:
        responses: The answers.
        chats: What each of them answers; None where that is not known.
        rows: The answers to look at, those to the same question one after the other.
        file: Where signs stand from before, and are kept; None for neither.
    """
    signs = np.full((len(responses), len(SIGNS)), np.nan)
    known = chats is not None and not pa.types.is_null(chats.type)
    read = partial(_texts, _Column(responses), _Column(chats) if known else None)
    if file is None:
        _measure(read, rows, signs)
    else:
        _look_up(read, rows, signs, file)
    return {name: signs[:, column] for column, name in enumerate(SIGNS)}


def _measure(read: partial[sign_workers.Texts], rows: Rows, signs: FloatArray) -> None:
    blocks = list(_blocks(rows))
    measured = sign_workers.measure_blocks(map(read, blocks), num_rows=rows.size)
    for block, found in zip(blocks, measured, strict=True):
        signs[block] = found


def _look_up(read: partial[sign_workers.Texts], rows: Rows, signs: FloatArray, file: Path) -> None:
    digests = b"".join(
        _key(*texts) for block in _blocks(rows) for texts in zip(*read(block), strict=True)
    )
    keys = pa.Array.from_buffers(pa.binary(_KEY_BYTES), rows.size, [None, pa.py_buffer(digests)])
    kept = _read(file)
    place = np.asarray(pc.fill_null(pc.index_in(keys, kept["key"].combine_chunks()), -1))
    known = place >= 0
    stands = np.column_stack([np.asarray(kept[name]) for name in SIGNS])
    signs[rows[known]] = stands[place[known]]
    if known.all():
        return
    _measure(read, rows[~known], signs)
    # Equal answers to equal questions stand once.
    new = keys.filter(pa.array(~known))
    first = np.unique(np.asarray(pc.dictionary_encode(new).indices), return_index=True)[1]
    values = signs[rows[~known][first]]
    columns = {name: values[:, column] for column, name in enumerate(SIGNS)}
    added = pa.table({"key": new.take(pa.array(first)), **columns}, kept.schema)
    _write(file, pa.concat_tables([kept, added]))


def _blocks(rows: Rows) -> Iterator[Rows]:
    for start in range(0, rows.size, _BLOCK_ROWS):
        yield rows[start : start + _BLOCK_ROWS]


def _key(question: str | None, answer: str) -> bytes:
    digest = hashlib.blake2b(answer.encode(), digest_size=_KEY_BYTES)
    if question is not None:  # an unknown one is not an empty one
        asked = question.encode()
        digest.update(b"\0%d\0" % len(asked))
        digest.update(asked)
    return digest.digest()


def _schema() -> pa.Schema:
    fields = [("key", pa.binary(_KEY_BYTES)), *((name, pa.float64()) for name in SIGNS)]
    return pa.schema(fields, metadata={_VERSION: _code_digest()})


@cache
def _code_digest() -> bytes:
    """Return a digest of whatever decides on a sign."""
    parts = [inspect.getsource(m) for m in (text_signs, repetition, languages, sign_workers)]
    parts += [importlib.metadata.version("py3langid"), unicodedata.unidata_version]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest().encode()


def _read(file: Path) -> pa.Table:
    """Return the signs that stand; none where the file is damaged or of another version."""
    schema = _schema()
    if file.is_file():
        try:
            found = pq.ParquetFile(file, page_checksum_verification=True).read()
            if found.schema.equals(schema, check_metadata=True):
                return found
            _logger.info("%s is of another version: the signs are computed anew", file)
        except (pa.ArrowException, OSError) as error:
            _logger.warning("%s is damaged (%s): the signs are computed anew", file, error)
    return schema.empty_table()


def _write(file: Path, table: pa.Table) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, write_page_checksum=True)
    atomic_write_bytes(file, sink.getvalue().to_pybytes())


class _Column:
    """Takes rows of a column in chunks without laying the chunks together."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        self._chunks = column.chunks
        lengths = [len(chunk) for chunk in column.chunks]
        self._starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)

    def take(self, rows: Rows) -> pa.Array:
        """Return some rows, in their order."""
        chunk_of_row = np.searchsorted(self._starts, rows, side="right") - 1
        order = np.argsort(chunk_of_row, kind="stable")
        parts = []
        for chunk in np.unique(chunk_of_row):
            inside = rows[chunk_of_row == chunk] - self._starts[chunk]
            parts.append(self._chunks[chunk].take(pa.array(inside)))
        back = np.empty(rows.size, np.int64)
        back[order] = np.arange(rows.size)
        return pa.concat_arrays(parts).take(pa.array(back))


def _texts(responses: _Column, chats: _Column | None, rows: Rows) -> sign_workers.Texts:
    """Return the questions and the answers of some rows."""
    answers = [answer or "" for answer in responses.take(rows).to_pylist()]
    if chats is None:
        return [None] * rows.size, answers
    return _last_turns(chats.take(rows)), answers


def _last_turns(chats: pa.Array) -> list[str | None]:
    """Return the text of the last turn of each chat; None where there is no chat."""
    ends = np.asarray(chats.offsets)[1:] - 1
    contents = chats.values.field("content")
    lengths = pc.list_value_length(chats).to_pylist()
    last = contents.take(pa.array(ends, mask=np.array([not n for n in lengths], bool))).to_pylist()
    return [
        None if length is None else str(text) if length else ""
        for length, text in zip(lengths, last, strict=True)
    ]
