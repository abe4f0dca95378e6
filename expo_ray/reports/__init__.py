"""What a person reads: the HTML report, its figures, the short table, the model card's evidence."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from expo_ray.reports.html_report import write_report
    from expo_ray.reports.model_card import render_model_card
    from expo_ray.reports.wording import summary_rows, verdict_sentence

__all__ = ["render_model_card", "summary_rows", "verdict_sentence", "write_report"]

_MODULES = {
    "render_model_card": "model_card",
    "summary_rows": "wording",
    "verdict_sentence": "wording",
    "write_report": "html_report",
}


def __getattr__(name: str) -> object:
    # Lazy (PEP 562): importing the package must import neither matplotlib nor pyarrow.
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
