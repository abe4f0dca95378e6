"""What a person reads: the HTML report, its figures, the short table, the model card's evidence."""

from typing import TYPE_CHECKING

from expo_ray.lazy import lazy_exports

if TYPE_CHECKING:
    from expo_ray.reports.comparison_page import compare
    from expo_ray.reports.gates import gate_sentences
    from expo_ray.reports.html_report import write_report
    from expo_ray.reports.model_card import render_model_card
    from expo_ray.reports.pair_page import compare_pair
    from expo_ray.reports.parts import parts_sentence
    from expo_ray.reports.wording import summary_rows, verdict_sentence

__all__ = [
    "compare",
    "compare_pair",
    "gate_sentences",
    "parts_sentence",
    "render_model_card",
    "summary_rows",
    "verdict_sentence",
    "write_report",
]

__getattr__ = lazy_exports(
    __name__,
    {
        "compare": "comparison_page",
        "compare_pair": "pair_page",
        "gate_sentences": "gates",
        "parts_sentence": "parts",
        "render_model_card": "model_card",
        "summary_rows": "wording",
        "verdict_sentence": "wording",
        "write_report": "html_report",
    },
)
