"""Keys from the environment, as files and secret stores leave them there."""

from __future__ import annotations

import os

from expo_ray.errors import ConfigError, argument
from expo_ray.redaction import remember


def read_api_key(variable: str | None, *, name: str | None = "api_key_env") -> str | None:
    """Return the API key that an environment variable holds; None asks for none.

    White space around it is dropped: files end in a newline. From here on the key is masked in
    whatever is shown.

    Args:
        variable: Name of the variable.
        name: Of the setting that named it.

    Raises:
        ConfigError: It is not set, or holds what no HTTP header can carry.
    """
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    where = variable if name is None else argument(name, variable)
    if not key:
        is_set = variable in os.environ
        raise ConfigError(
            "the environment variable of the API key is " + ("empty" if is_set else "not set"),
            where=where,
            hint=f"export {variable}=...",
        )
    remember(key)
    bad = [place for place, sign in enumerate(key) if not "\x20" <= sign <= "\x7e"]
    if bad:
        kind = "a control character" if key[bad[0]] < "\x80" else "a character outside ASCII"
        raise ConfigError(
            "the API key holds what no HTTP header can carry",
            where=where,
            got=f"{kind}, number {bad[0] + 1} of {len(key)}",
            expected="one line of printable ASCII",
            hint="is there more than the key in it, such as a second line?",
        )
    return key
