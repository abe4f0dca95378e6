"""`check:exact`: the response is the answer, but for white space."""

from __future__ import annotations

from expo_ray.json_text import parse_json
from expo_ray.rewards.checks.kind import Arguments, Check, Checked, CheckKind, Trial, no_argument


class ExactCheck(Check):
    """Compares texts; white space at the ends and its amount between words do not count."""

    def reward(self, checked: Checked) -> float:
        """Return whether the response is the answer, or one of a list of them."""
        said = _plain(checked.response)
        return float(any(said == _plain(answer) for answer in _answers(checked.columns["answer"])))

    def unreadable(self, checked: Checked) -> str | None:
        """Return that the response is empty."""
        return None if _plain(checked.response) else "no answer: the response is empty"

    def target_fault(self, target: str) -> str | None:
        """Return why nothing can be the answer: an empty one would reward silence."""
        if all(_plain(answer) for answer in _answers(target)):
            return None
        return "the answer is empty"


def _plain(text: str) -> str:
    return " ".join(text.split())


def _answers(target: str) -> list[str]:
    """Return the right answers: a JSON list of texts holds several."""
    if target.startswith("["):
        try:
            several = parse_json(target)
        except ValueError:
            return [target]
        if several and all(isinstance(one, str) for one in several):
            return list(several)
    return [target]


def _open(arguments: Arguments) -> Check:
    return ExactCheck()


EXACT = CheckKind(
    name="exact",
    form="check:exact",
    parse=lambda text: no_argument(text, "check:exact"),
    open=_open,
    column="answer",
    vote=lambda response: _plain(response) or None,
    trials=(
        Trial(response=" Paris\n", target="Paris", is_right=True),
        Trial(response="Rome", target="Paris", is_right=False),
        Trial(response="Paris, of course", target="Paris", is_right=False),
    ),
)
