"""How many characters one token covers at most: a text that cannot fit is known unread.

Reading 14 MB takes a tokenizer half a minute and gigabytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from expo_ray.errors import TableError

_KEEP_EVERY_CHARACTER = frozenset(
    {"Sequence", "ByteLevel", "Split", "Digits", "Metaspace", "Prepend", "Replace", "NFC"}
)
_MOST_COMPOSED = 4  # characters that NFC makes one of


class TooLongError(TableError):
    """A text has more tokens than there is room for."""


def max_chars_per_token(tokenizer: Any) -> int | None:
    """Return how many characters of a text become one token at most.

    Args:
        tokenizer: A transformers tokenizer.

    Returns:
        None for a tokenizer that may skip characters or make one unknown token of any number.
    """
    # Imported here: whoever only names the error does not wait for it.
    from tokenizers import pre_tokenizers

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    rules = json.loads(backend.to_str())
    model = rules["model"]
    steps = [*_steps(rules["normalizer"]), *_steps(rules["pre_tokenizer"])]
    kinds = {step["type"] for step in steps}
    vocab = backend.get_vocab(with_added_tokens=True)
    is_complete = (
        "ByteLevel" in kinds and vocab.keys() >= {*pre_tokenizers.ByteLevel.alphabet()}
    ) or (model.get("byte_fallback") and vocab.keys() >= {f"<0x{i:02X}>" for i in range(256)})
    strips = any(token["lstrip"] or token["rstrip"] for token in rules["added_tokens"])
    if model["type"] != "BPE" or not is_complete or strips:
        return None
    if not kinds <= _KEEP_EVERY_CHARACTER or any(map(_shrinks, steps)):
        return None
    return max(map(len, vocab)) * (_MOST_COMPOSED if "NFC" in kinds else 1)


def require_room(text_chars: int, *, max_tokens: int, chars_per_token: int | None) -> None:
    """Check that a text may fit.

    Args:
        text_chars: Its length.
        max_tokens: Room for it.
        chars_per_token: `max_chars_per_token`.

    Raises:
        TooLongError: It cannot, whatever it says.
    """
    if chars_per_token is not None and text_chars > max_tokens * chars_per_token:
        raise TooLongError(
            "the prompt is longer than the model's context",
            got=f"{text_chars} characters",
            expected=f"{max_tokens} tokens or fewer, of {chars_per_token} characters at most",
        )


def _steps(part: Any) -> Iterator[dict[str, Any]]:
    if part is not None:
        yield part
        for inner in [*part.get("normalizers", ()), *part.get("pretokenizers", ())]:
            yield from _steps(inner)


def _shrinks(step: dict[str, Any]) -> bool:
    if step["type"] == "Replace":
        return len(step["content"]) < len(step["pattern"].get("String", step["content"] + "?"))
    return bool(step.get("behavior") == "Removed")
