"""JSON out, JSON in: a service that scores, asked again where it may answer the next time."""

from __future__ import annotations

import time
from typing import Any

import httpx

from expo_ray.http_text import limited_request
from expo_ray.json_text import parse_json

_NUM_ATTEMPTS = 3
_RETRIED_STATUSES = {408, 409, 429, 500, 502, 503, 504}


def post_json(client: httpx.Client, url: str, body: Any) -> Any:
    """Send an object and return what is answered.

    Args:
        client: Of `http_client`.
        url: Relative to the client's, or whole.
        body: The object.

    Raises:
        httpx.HTTPError: The request failed, after further attempts where they make sense.
        ValueError: The answer is no JSON.
    """
    for attempt in range(_NUM_ATTEMPTS):
        last = attempt == _NUM_ATTEMPTS - 1
        try:
            response = limited_request(client, "POST", url, json=body)
        except httpx.TransportError:
            if last:
                raise
        else:
            if response.status_code not in _RETRIED_STATUSES or last:
                return parse_json(response.raise_for_status().content)
        time.sleep(2**attempt)
    raise AssertionError("the last attempt returns or raises")
