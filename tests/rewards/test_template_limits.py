"""Templates without an end are ended: on loading, or on the chat that starts them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from transformers.utils.chat_template_utils import _compile_jinja_template

from expo_ray.errors import CheckpointError
from expo_ray.rewards import template_limits
from expo_ray.rewards.template_limits import TemplateLimitError, limit_templates, require_bounded

LOOPS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
ENDLESS = {
    "silent": LOOPS,
    "writes": LOOPS.replace("{% endfor %}", "{{ 'x' * 1000 }}{% endfor %}", 1),
    "doubles": "{% set n = namespace(x='xx') %}{% for i in range(60) %}"
    "{% set n.x = n.x ~ n.x %}{% endfor %}",
    "power": "{{ 9 ** (9 ** 9) }}",
}
FINE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"


def tokenizer(template: str | dict[str, str] | None) -> Any:
    return SimpleNamespace(chat_template=template, special_tokens_map={"bos_token": "<s>"})


@pytest.mark.parametrize("kind", ENDLESS)
def test_a_template_without_an_end_is_refused_on_loading(kind: str) -> None:
    with pytest.raises(CheckpointError, match="does not come to an end"):
        require_bounded(tokenizer({"default": FINE, "tool_use": ENDLESS[kind]}), where="model")


@pytest.mark.parametrize("template", [FINE, "{{ raise_exception('no') }}", "{{ x.y.z }}", None])
def test_templates_that_end_pass_whatever_they_end_in(template: str | None) -> None:
    require_bounded(tokenizer(template), where="model")


def test_what_a_template_does_on_one_chat_alone_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_limits, "MAX_SECONDS", 1.0)
    limit_templates()
    for kind in ("silent", "writes"):
        source = "{% if messages[0].content == 'go' %}" + ENDLESS[kind] + "{% endif %}" + FINE
        template = _compile_jinja_template(source)
        assert template.render(messages=[{"role": "user", "content": "stay"}]) == "user: stay\n"
        with pytest.raises(TemplateLimitError):
            template.render(messages=[{"role": "user", "content": "go"}])
    time.sleep(1.2)  # nothing is raised any more in a thread that has left the template


def test_the_limit_is_on_time_of_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that slept, or gave its time to others, ended a score of 300 answers once."""
    monkeypatch.setattr(template_limits, "MAX_SECONDS", 0.3)

    def pieces(num_seconds: float) -> Iterator[str]:
        time.sleep(0.8)
        yield "a"
        end = time.thread_time() + num_seconds
        while time.thread_time() < end:
            pass
        yield "b"

    assert template_limits._limited(pieces(0.05)) == "ab"
    with pytest.raises(TemplateLimitError, match=r"0\.3 s of a processor"):
        template_limits._limited(pieces(3))
    assert template_limits._limited(pieces(0.05)) == "ab"


def test_what_arrives_late_is_told_as_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of the time and the end of the template may meet."""
    for seconds in [0.001 * n for n in range(1, 40)]:
        monkeypatch.setattr(template_limits, "MAX_SECONDS", seconds)
        end = time.thread_time() + 0.02

        def piece(end: float = end) -> Iterator[str]:
            while time.thread_time() < end:
                pass
            yield "a"

        with contextlib.suppress(TemplateLimitError):
            assert template_limits._limited(piece()) == "a"
