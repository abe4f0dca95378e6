"""Secrets out of foreign text: what other libraries say may hold keys, passwords, signed URLs.

Every error of expo_ray passes here when it is made, and every line of the log before it is written.
Two nets: values that are known to be secret, and the forms in which secrets travel.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from typing import Final
from urllib.parse import quote, quote_plus

from expo_ray.printable import printable

MASK: Final = "***"
_NAME_ENDS = (
    r"(?:TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|APIKEY|API_?KEY\w*|ACCESS_KEY\w*|[A-Z0-9]_KEY)"
)
_SECRET_NAME = re.compile(rf"{_NAME_ENDS}$", re.IGNORECASE)
_SECRET_SETTING = re.compile(rf"""(["']?[\w.-]*{_NAME_ENDS}["']?\s*:\s*)[^\s,}}]+""", re.IGNORECASE)
_MIN_LENGTH = 8
"""Of a value that a variable's name alone makes secret: shorter ones are words like `false`."""

_MIN_KEY_LENGTH = 4
"""Of a key that was given as one: a text without every `a` would say nothing any more."""

_QUERY = (
    r"X-(?:Amz|Goog)-(?:Signature|Credential|Security-Token)|AWSAccessKeyId|GoogleAccessId|"
    r"Signature|Policy|Key-Pair-Id|sig|(?:[\w-]*[_-])?(?:token|secret|password|passwd|key)|apikey"
)
_FORMS: Final = (
    # user:password@ in a URL, up to the last @ of its host part; hf://name@revision holds none.
    (re.compile(r"\b(?!hf:)([a-zA-Z][a-zA-Z0-9+.-]{0,30}://)[^\s/?#'\"]*@"), rf"\1{MASK}@"),
    (re.compile(rf"([?&](?:{_QUERY})=)[^&\s'\"<>)\]]+", re.IGNORECASE), rf"\1{MASK}"),
    (
        re.compile(
            r"((?:authorization|x-api-key|api-key|x-amz-security-token|cookie)"
            r"(?:['\"]?\s*[:=]\s*(?:b?['\"])?|['\"],\s*b?['\"]))(?:(?:Bearer|Basic)\s+)?[^\s'\",}]+",
            re.IGNORECASE,
        ),
        rf"\1{MASK}",
    ),
    # A word after Bearer is a credential where it holds more than letters.
    (re.compile(r"\b(Bearer|Basic)\s+(?=[^\s'\"]*[\d_=+/-])[^\s'\"]+"), rf"\1 {MASK}"),
    (
        re.compile(
            r"\b(?:hf_[A-Za-z0-9]{16,}|sk-[\w-]{8,}|gh[opsur]_[A-Za-z0-9]{16,}|glpat-[\w-]{16,}|"
            r"(?:AKIA|ASIA)[A-Z0-9]{16}|eyJ[\w-]{8,4000}\.[\w-]{8,4000}\.[\w-]*)"
        ),
        MASK,
    ),
)
_remembered: set[str] = set()


def remember(secret: str) -> None:
    """Mask this value from now on, whatever holds it."""
    if len(secret.strip()) >= _MIN_KEY_LENGTH:
        _remembered.add(secret.strip())


def redacted_value(name: str, value: object) -> str:
    """Return a value as text without secrets; all of it is one where its name says so."""
    is_secret = isinstance(value, str) and _SECRET_NAME.search(name) is not None
    return MASK if is_secret else redacted(str(value))


def redacted_settings(text: str) -> str:
    """Return a YAML or JSON text without secrets, values with the name of one among them."""
    return redacted(_SECRET_SETTING.sub(rf"\1{MASK}", text))


def redacted(text: str) -> str:
    """Return a text without the secrets of this process and without what looks like one.

    What comes back can be encoded.

    Args:
        text: What another library, or a service, said.
    """
    # Half a character, as of a file name that is no UTF-8, cannot be written anywhere.
    text = text.encode(errors="backslashreplace").decode()
    for value in sorted(set(_known()), key=len, reverse=True):
        text = text.replace(value, MASK)
    for form, without in _FORMS:
        text = form.sub(without, text)
    return text


def _known() -> Iterator[str]:
    named = {v.strip() for name, v in os.environ.items() if _SECRET_NAME.search(name)}
    for value in _remembered | {v for v in named if len(v) >= _MIN_LENGTH}:
        # Libraries show a value as it is, in quotes with its escapes, or inside a URL.
        yield from (value, repr(value)[1:-1], quote(value, safe=""), quote_plus(value))


class RedactingFormatter(logging.Formatter):
    """A log line, its traceback included, without secrets and codes that act on a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        return printable(redacted(super().format(record)))
