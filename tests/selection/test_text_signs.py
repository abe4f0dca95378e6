from __future__ import annotations

import json
from pathlib import Path

import pytest

from expo_ray.selection.text_signs import changes_language, echoes, language, leaks_markers
from tests import samples

PROMPT = "Explain to a child in simple words why the sky is blue during the day."
ANSWER = (
    "Sunlight holds all colours of the rainbow. Tiny bits of air throw the blue part around more "
    "than the rest, so blue light reaches your eyes from everywhere above you."
)
GERMAN = (
    "Im Licht der Sonne stecken alle Farben des Regenbogens. Die Luft wirft den blauen Teil "
    "staerker umher als den Rest, und so kommt er von ueberall in dein Auge."
)

# PROMPT and ANSWER in Chinese.
CHINESE_PROMPT = (
    "\u8bf7\u7528\u7b80\u5355\u7684\u8bed\u8a00\u5411\u5b69\u5b50\u89e3\u91ca\u4e3a\u4ec0"
    "\u4e48\u767d\u5929\u7684\u5929\u7a7a\u662f\u84dd\u8272\u7684\u3002"
)
CHINESE_ANSWER = (
    "\u9633\u5149\u91cc\u6709\u5f69\u8679\u7684\u6240\u6709\u989c\u8272\u3002\u7a7a\u6c14"
    "\u4e2d\u7684\u5fae\u7c92\u628a\u84dd\u5149\u6563\u5c04\u5f97\u6700\u591a\uff0c\u6240"
    "\u4ee5\u5230\u5904\u90fd\u80fd\u770b\u5230\u84dd\u5149\u3002"
)


def test_echoes() -> None:
    assert echoes(PROMPT, PROMPT)
    assert echoes(PROMPT, f"Sure! {PROMPT.upper()}")
    assert not echoes(PROMPT, ANSWER)
    assert not echoes(PROMPT, f"Explain why the sky is blue: {ANSWER}")
    assert not echoes(PROMPT, "why the sky is blue")  # too short to count
    assert not echoes("", "")


def test_an_echo_needs_no_spaces() -> None:
    assert echoes(CHINESE_PROMPT, CHINESE_PROMPT)
    assert echoes(CHINESE_PROMPT, f"Sure! {CHINESE_PROMPT}")
    assert not echoes(CHINESE_PROMPT, CHINESE_ANSWER)
    assert not echoes(CHINESE_PROMPT, CHINESE_PROMPT[-13:] + CHINESE_ANSWER)
    assert not echoes(CHINESE_PROMPT, CHINESE_PROMPT[-13:])  # too short to count


@pytest.mark.parametrize(
    "marker",
    [
        *("<|im_end|>", "<|eot_id|>", "[INST]", "<</SYS>>", "</s>", "<start_of_turn>", "<unk>"),
        *("<\uff5cend\uff5c>", "### Instruction:", "[TOOL_CALLS]", "<unused12>", "<|fim-end|>"),
    ],
)
def test_markers_leak(marker: str) -> None:
    assert leaks_markers("hello", f"Hello.\n{marker}\nuser")
    assert not leaks_markers(f"what does {marker} mean?\n{marker}", f"It ends a turn:\n{marker}")


def test_ordinary_text_has_no_markers() -> None:
    for text in ("a <b>bold</b> word", "x < 3 and y > 4", "a | b", "list[0]", "## Title", "<s3>"):
        assert not leaks_markers("", text), text


def test_languages() -> None:
    assert language(ANSWER) == "en"
    assert language(GERMAN) == "de"
    assert language("blue") is None
    assert language("1234 5678 " * 30) is None
    assert changes_language(PROMPT, GERMAN)
    assert not changes_language(PROMPT, ANSWER)
    assert not changes_language("why?", GERMAN)  # the question does not tell


def test_our_responses_show_no_sign() -> None:
    for row in samples.outputs():
        for sign in (echoes, leaks_markers, changes_language):
            assert not sign(row["instruction"], row["output"]), row


def test_published_responses_show_few_signs(published_data: Path) -> None:
    """Five published models, the extrapolated ones among them: the guards' thresholds hold."""
    rates = []
    for path in sorted((published_data / "alpaca_eval" / "outputs").glob("*.json")):
        rows = json.loads(path.read_text("utf-8"))
        pairs = [(row["instruction"], row["output"]) for row in rows]
        counts = [sum(sign(*pair) for pair in pairs) for sign in (echoes, leaks_markers)]
        drifts = sum(changes_language(*pair) for pair in pairs[:200]) / 200
        rates.append((counts[0] / len(pairs), counts[1] / len(pairs), drifts))
    assert len(rates) == 5
    for echoed, leaked, drifted in rates:
        assert echoed < 0.05 and leaked < 0.01 and drifted < 0.05
    # Between models, as a guard compares them.
    for column, threshold in enumerate((0.05, 0.01, 0.02)):
        values = [rate[column] for rate in rates]
        assert max(values) - min(values) < threshold
