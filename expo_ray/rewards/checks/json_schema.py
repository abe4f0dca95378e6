"""`check:json-schema=FILE`: the response is a JSON document that keeps to a schema."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from expo_ray.errors import ConfigError
from expo_ray.json_text import parse_json
from expo_ray.rewards.checks.kind import (
    Arguments,
    BrokenCheckError,
    Check,
    Checked,
    CheckKind,
    unusable_check,
)

_FORM = "check:json-schema=FILE"
_FENCED = re.compile(r"\A\s*```(?:json)?[ \t]*\n(.*?)\n?```\s*\Z", re.DOTALL)


class JsonSchemaCheck(Check):
    """Validates a response; a fence of three backticks around all of it is taken off.

    References of the schema are looked up inside of it alone: nothing is fetched.
    """

    def __init__(self, schema: Any) -> None:
        from jsonschema.validators import validator_for
        from referencing import Registry

        self._validator = validator_for(schema)(schema, registry=Registry())

    def reward(self, checked: Checked) -> float:
        """Return whether the response keeps to the schema."""
        from referencing.exceptions import Unresolvable

        try:
            document = _document(checked.response)
        except ValueError:
            return 0.0
        try:
            return float(self._validator.is_valid(document))
        except Unresolvable as error:
            raise BrokenCheckError(f"the schema lacks what it refers to: {error}") from error

    def unreadable(self, checked: Checked) -> str | None:
        """Return that the response is no JSON."""
        try:
            _document(checked.response)
        except ValueError:
            return "no JSON"
        return None


def _document(response: str) -> Any:
    fenced = _FENCED.match(response)
    return parse_json(fenced[1] if fenced else response, parse_constant=_refuse_constant)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _parse(path: str | None) -> Arguments:
    if not path:
        raise unusable_check("check:json-schema", _FORM)
    return {"path": path}


def _pin(arguments: Arguments) -> Arguments:
    """Read the schema, so that every node has it."""
    from jsonschema.exceptions import SchemaError
    from jsonschema.validators import validator_for

    if "schema" in arguments:
        return arguments
    path = Path(arguments["path"])
    try:
        schema = parse_json(path.read_bytes())
        validator_for(schema).check_schema(schema)
    except (OSError, ValueError, SchemaError, AttributeError, TypeError) as error:
        raise ConfigError(
            "the schema of a check cannot be read",
            where=path.absolute(),
            got=getattr(error, "message", None) or getattr(error, "strerror", None) or error,
            expected="a JSON Schema in a JSON file",
        ) from error
    return {"path": str(path.absolute()), "schema": schema}


def _open(arguments: Arguments) -> Check:
    return JsonSchemaCheck(arguments["schema"])


JSON_SCHEMA = CheckKind(
    name="json-schema", form=_FORM, parse=_parse, pin=_pin, open=_open, takes_file=True
)
