"""How pages are filled: escaping, filters for numbers and figures."""

from __future__ import annotations

import re

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from expo_ray.reports import wording


def page_environment() -> Environment:
    """Return what renders a page: escaping by default, with the filters of the templates."""
    environment = Environment(
        loader=PackageLoader("expo_ray.reports"),
        # Everything that a model wrote passes through here: escape by default, in every template.
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_show_controls,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        alpha=wording.format_alpha,
        data=_data,
        figure=lambda drawing: Markup(drawing.inline()),  # noqa: S704 - our own drawing
        percent=wording.percent,
        p_value=wording.p_value,
        num=lambda value, decimals=3: _minus(wording.number(value, decimals)),
        signed=lambda value, decimals=3: _minus(wording.signed(value, decimals)),
        minus=_minus,
        prose=_prose,
    )
    return environment


# Control characters become visible symbols; a reader should see that they are there.
_CONTROLS = {code: 0x2400 + code for code in range(32) if code not in (9, 10)} | {127: 0x2421}


def _show_controls(value: object) -> object:
    return value.translate(_CONTROLS) if isinstance(value, str) else value


def _data(value: float | None, decimals: int = 3, sign: str = "-") -> Markup:
    """Print a rounded number that carries its exact value."""
    if value is None:
        return Markup("n/a")
    shown = _minus(wording.number(value, decimals, sign))
    return Markup('<data value="{}">{}</data>').format(repr(float(value)), shown)


def _prose(text: str) -> str:
    """Set minus signs, and keep `p < 0.001` on one line."""
    text = re.sub(r"(?<![\w-])-(?=\d)", "\N{MINUS SIGN}", text)
    return re.sub(r"p ([<=]) (?=\d)", "p\N{NO-BREAK SPACE}\\1\N{NO-BREAK SPACE}", text)


def _minus(text: str) -> str:
    # A real minus sign: a hyphen before a digit is hard to see and may break across lines.
    return text.replace("-", "\N{MINUS SIGN}")
