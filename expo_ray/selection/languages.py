"""The languages of many texts at once: what `text_signs.language` says of each, ten times as fast.

py3langid walks a text byte by byte through an automaton and scores what it met. Here all texts take
a step together, and one sparse product scores them. Its sums are in another order, so a probability
that comes near the limit is asked of py3langid itself.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from expo_ray.selection import text_signs

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

MIN_TEXTS = 500
"""Fewer are asked one by one: a table of 60 MB is made ready for many."""
_BATCH_TEXTS = 2000
_MARGIN = 0.02
"""Sums in another order move a probability by a thousandth of this."""
_PROBES = (
    "The quick brown fox jumps over the lazy dog while the sun shines on the green hills.",
    "Der schnelle braune Fuchs springt an einem warmen Tag über den faulen Hund im Garten.",
    "Le renard brun saute rapidement par-dessus le chien paresseux qui dort dans le jardin.",
    "敏捷的棕色狐狸跳过了那只懒惰的狗而太阳照耀着远处的绿色山丘和安静的河流。",
    "1 2 3 4 5 6 7 8 9 ... !!! ???",
)
_logger = logging.getLogger(__name__)


def languages(texts: Sequence[str]) -> list[str | None]:
    """Return the ISO 639-1 code of each text's language, None where it cannot be told."""
    identifier = _batch_identifier() if len(texts) >= MIN_TEXTS else None
    if identifier is None:
        return [text_signs.language(text) for text in texts]
    found: list[str | None] = [None] * len(texts)
    told = [i for i, text in enumerate(texts) if text_signs.tells_language(text)]
    # Texts of like length take the same number of steps.
    told.sort(key=lambda i: len(texts[i]))
    for start in range(0, len(told), _BATCH_TEXTS):
        places = told[start : start + _BATCH_TEXTS]
        codes, probabilities = identifier.classify([texts[i] for i in places])
        for i, code, probability in zip(places, codes, probabilities.tolist(), strict=True):
            if abs(probability - text_signs.MIN_PROBABILITY) < _MARGIN:
                found[i] = text_signs.language(texts[i])
            elif probability > text_signs.MIN_PROBABILITY:
                found[i] = code
    return found


@lru_cache(maxsize=1)
def _batch_identifier() -> _BatchIdentifier | None:
    """Return one that agrees with py3langid on a few texts; None where none does."""
    plain = text_signs.identifier()
    try:
        batch = _BatchIdentifier(plain)
        codes, probabilities = batch.classify(_PROBES)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        _logger.warning("languages are told one text at a time: py3langid has changed (%s)", error)
        return None
    expected = [plain.classify(text) for text in _PROBES]
    agrees = all(
        abs(probability - sure) < _MARGIN / 10 and (code == its or sure < _MARGIN)
        for (its, sure), code, probability in zip(expected, codes, probabilities, strict=True)
    )
    return batch if agrees else None


class _BatchIdentifier:
    """Classifies as a `LanguageIdentifier` with normalised probabilities does."""

    def __init__(self, plain: LanguageIdentifier) -> None:
        inner: Any = plain
        self._encode = inner._encode  # its treatment of capitals and accents
        self._moves = np.asarray(inner.tk_nextmove)
        self._row_of_state = np.asarray(inner.tk_row, np.int64) << 8
        self._feature_of_state = np.asarray(inner.tk_output, np.int64)
        self._weights = np.asarray(inner.nb_ptc, np.float32)
        self._priors = np.asarray(inner.nb_pc, np.float32)
        self._codes = list(map(str, inner.nb_classes))
        self._aliases = list(inner._alias_pairs)

    def classify(self, texts: Sequence[str]) -> tuple[list[str], npt.NDArray[np.float32]]:
        """Return the likeliest language of each text and its probability."""
        encoded = [self._encode(text[: text_signs.MAX_CHARACTERS]) for text in texts]
        lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
        counts = self._count_features(encoded, lengths)
        np.log1p(counts.data, out=counts.data)
        scores = (counts @ self._weights + self._priors) / np.sqrt(np.maximum(lengths, 1))[:, None]
        scores = np.where(np.diff(counts.indptr)[:, None], scores, 0)
        likely = np.exp(scores - scores.max(axis=1, keepdims=True))
        likely /= likely.sum(axis=1, keepdims=True)
        for first, double in self._aliases:
            likely[:, first] += likely[:, double]
            likely[:, double] = 0
        best = likely.argmax(axis=1)
        return [self._codes[i] for i in best], likely[np.arange(len(best)), best]

    def _count_features(
        self, encoded: Sequence[bytes], lengths: npt.NDArray[np.int64]
    ) -> sparse.csr_array:
        """Return how often each text meets each feature: texts in rows."""
        num_texts, num_features = len(encoded), len(self._weights)
        order = np.argsort(-lengths, kind="stable")  # at every step those that go on come first
        width = int(lengths.max(initial=0))
        steps = np.zeros((width, num_texts), np.uint8)
        for column, text in enumerate(order):
            steps[: lengths[text], column] = np.frombuffer(encoded[text], np.uint8)
        going = num_texts - np.searchsorted(lengths[order][::-1], np.arange(width), side="right")
        state = np.zeros(num_texts, np.int64)
        met = np.full((width, num_texts), -1, np.int32)
        for step, (letters, num_going) in enumerate(zip(steps, going, strict=True)):
            place = self._row_of_state[state[:num_going]] + letters[:num_going]
            state[:num_going] = self._moves[place]
            met[step, :num_going] = self._feature_of_state[state[:num_going]]
        at_step, at_column = np.nonzero(met >= 0)
        ones = np.ones(at_column.size, np.float32)
        where = (order[at_column], met[at_step, at_column])
        counts = sparse.coo_array((ones, where), shape=(num_texts, num_features)).tocsr()
        counts.sum_duplicates()
        return counts
