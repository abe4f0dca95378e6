"""Answers of services that may be anyone's: read up to a limit, however small they travel.

What is compressed is unpacked in pieces, so that a small answer cannot become a large one; nobody
is asked to compress.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any

import httpx

MAX_ANSWER_BYTES = 32 * 2**20
"""An answer of text, or a list of models, is a thousandth of that."""
_GZIP_OR_ZLIB = 47
_PIECE_BYTES = 2**20


def limited_request(
    client: httpx.Client, method: str, url: str, *, max_bytes: int = MAX_ANSWER_BYTES, **fields: Any
) -> httpx.Response:
    """Send a request and read its whole answer, up to a limit.

    Args:
        client: Sends it.
        method: Such as `POST`.
        url: Relative to the client's, or whole.
        max_bytes: Most bytes of the answer, unpacked.
        fields: Of the request, as httpx takes them.

    Raises:
        httpx.HTTPError: The request failed; a DecodingError where the answer is too long.
    """
    headers = {**(fields.pop("headers", None) or {}), "Accept-Encoding": "identity"}
    with client.stream(method, url, headers=headers, **fields) as response:
        body = bytearray()
        for piece in _unpacked(response):
            body += piece
            if len(body) > max_bytes:
                raise httpx.DecodingError(
                    f"the answer is longer than {max_bytes} bytes", request=response.request
                )
        plain = [(k, v) for k, v in response.headers.multi_items() if k != "content-encoding"]
        return httpx.Response(
            response.status_code, headers=plain, content=bytes(body), request=response.request
        )


def _unpacked(response: httpx.Response) -> Iterator[bytes]:
    coding = response.headers.get("content-encoding", "identity").strip().lower()
    if coding in ("", "identity"):
        yield from response.iter_raw()
        return
    if coding not in ("gzip", "x-gzip", "deflate"):
        raise httpx.DecodingError(
            f"the answer is packed as {coding[:40]!r}, which was not asked for",
            request=response.request,
        )
    unpacker = zlib.decompressobj(_GZIP_OR_ZLIB)
    for raw in response.iter_raw():
        while raw and not unpacker.eof:
            try:
                yield unpacker.decompress(raw, _PIECE_BYTES)
            except zlib.error as error:
                raise httpx.DecodingError(str(error), request=response.request) from error
            raw = unpacker.unconsumed_tail
