"""How the site is built: `make docs`, strict (a warning is a failure), and without a network.

Called as `python -m sphinx` in the repository, so that `tests.floors` is found.
"""

from __future__ import annotations

import re
from typing import is_typeddict

from pydantic import BaseModel
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging

import expo_ray
from tests import floors_picture
from tests.floors import FLOORS

project = "expo_ray"
author = "the expo_ray authors"
version = release = expo_ray.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinxcontrib.typer",
]
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = f"expo_ray {release}"
html_static_path = ["_static"]
html_css_files = ["wide.css"]
html_show_copyright = False

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
toc_object_entries_show_parents = "hide"
python_maximum_signature_line_length = 80

# Types of the standard library and of other packages: their documentation is not fetched.
nitpick_ignore_regex = [("py:.*", r"(pathlib|collections|typing|pydantic)\..*")]

_CODE = re.compile(r"(?<!`)`([^`]+)`(?!`)")


def _read_docstring(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Read backticks as Markdown does, and add the fields of a settings model."""
    lines[:] = _CODE.sub(r"``\1``", "\n".join(lines)).split("\n")
    if isinstance(obj, type) and issubclass(obj, BaseModel):
        for field, info in obj.model_fields.items():
            default = "required" if info.is_required() else f"default ``{info.get_default()!r}``"
            lines += ["", f"``{field}``", f"   {info.description or ''} ({default})"]


def _leave_out_constructors(
    app: Sphinx, what: str, name: str, obj: object, *rest: object
) -> tuple[str, str] | None:
    """Results are made by the functions, and settings are listed: no signature says it better."""
    return ("", "") if what == "class" and not is_typeddict(obj) else None


def _draw_floors(app: Sphinx) -> None:
    """Draw the picture of each storey, for the page about the architecture."""
    folder = app.srcdir / "_build" / "floors"
    folder.mkdir(parents=True, exist_ok=True)
    for storey in FLOORS:
        (folder / f"{storey}.svg").write_text(floors_picture.draw(storey), "utf-8")


def _check_public_names(app: Sphinx, env: BuildEnvironment) -> None:
    """Every name of `expo_ray.__all__` stands in the Python API, with a docstring."""
    documented = env.domains.python_domain.objects
    for name in expo_ray.__all__:
        if f"expo_ray.{name}" not in documented or not getattr(expo_ray, name).__doc__:
            logging.getLogger(__name__).warning("expo_ray.%s is public and not documented", name)


def setup(app: Sphinx) -> None:
    """Connect what stands above."""
    app.connect("builder-inited", _draw_floors)
    app.connect("autodoc-process-docstring", _read_docstring, priority=400)  # before napoleon
    app.connect("autodoc-process-signature", _leave_out_constructors)
    app.connect("env-check-consistency", _check_public_names)
