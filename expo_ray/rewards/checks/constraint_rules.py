"""The 25 kinds of constraints of IFEval (Zhou et al. 2023), as the paper defines them.

Where the published code asks NLTK, which downloads models, these rules are simpler: sentences end
with a full stop, a question mark or an exclamation mark before white space, but for abbreviations;
the language is told by py3langid.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Literal

from pydantic import validate_call

from expo_ray.json_text import parse_json

Relation = Literal["less than", "at least", "at most", "exactly"]
_CHOICES = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
_ABBREVIATED = re.compile(
    r"\b(?:Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|Inc|Ltd|Co|vs|etc|e\.g|i\.e|No|[A-Z]|[A-Z]\.[A-Z])\.$"
)
_POSTSCRIPTS = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}


def _holds(number: int, relation: Relation, wanted: int) -> bool:
    return {
        "less than": number < wanted,
        "at least": number >= wanted,
        "at most": number <= wanted,
        "exactly": number == wanted,
    }[relation]


def _existence(text: str, *, keywords: list[str]) -> bool:
    return all(re.search(re.escape(word), text, re.IGNORECASE) for word in keywords)


def _frequency(text: str, *, keyword: str, frequency: int, relation: Relation) -> bool:
    found = re.findall(re.escape(keyword.strip()), text, re.IGNORECASE)
    return _holds(len(found), relation, frequency)


def _forbidden_words(text: str, *, forbidden_words: list[str]) -> bool:
    return not any(
        re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE) for word in forbidden_words
    )


def _letter_frequency(
    text: str, *, letter: str, let_frequency: int, let_relation: Relation
) -> bool:
    return _holds(text.lower().count(letter.lower()), let_relation, let_frequency)


def _response_language(text: str, *, language: str) -> bool:
    return _language(text) in (None, language.lower())


def _number_sentences(text: str, *, num_sentences: int, relation: Relation) -> bool:
    return _holds(count_sentences(text), relation, num_sentences)


def _number_paragraphs(text: str, *, num_paragraphs: int) -> bool:
    parts = re.split(r"\s?\*\*\*\s?", text)
    num_filled = sum(bool(part.strip()) for part in parts)
    return all(part.strip() for part in parts[1:-1]) and num_filled == num_paragraphs


def _number_words(text: str, *, num_words: int, relation: Relation) -> bool:
    return _holds(len(re.findall(r"\w+", text)), relation, num_words)


def _nth_paragraph_first_word(
    text: str, *, num_paragraphs: int, nth_paragraph: int, first_word: str
) -> bool:
    paragraphs = re.split(r"\n\n", text)
    num_filled = sum(bool(part.strip()) for part in paragraphs)
    if not 1 <= nth_paragraph <= num_filled or not paragraphs[nth_paragraph - 1].strip():
        return False
    word = paragraphs[nth_paragraph - 1].split()[0].lstrip("'").lstrip('"')
    return num_filled == num_paragraphs and (
        re.split(r"[.,?!'\"]", word)[0].lower() == first_word.lower()
    )


def _number_placeholders(text: str, *, num_placeholders: int) -> bool:
    return len(re.findall(r"\[.*?\]", text)) >= num_placeholders


def _postscript(text: str, *, postscript_marker: str) -> bool:
    marker = postscript_marker.strip()
    pattern = _POSTSCRIPTS.get(marker, re.escape(marker.lower()))
    return re.search(pattern, text.lower()) is not None


def _number_bullet_lists(text: str, *, num_bullets: int) -> bool:
    stars = re.findall(r"^\s*\*[^\*].*$", text, re.MULTILINE)
    dashes = re.findall(r"^\s*-.*$", text, re.MULTILINE)
    return len(stars) + len(dashes) == num_bullets


def _constrained_response(text: str) -> bool:
    return any(choice in text for choice in _CHOICES)


def _number_highlighted_sections(text: str, *, num_highlights: int) -> bool:
    single = [part for part in re.findall(r"\*[^\n\*]*\*", text) if part.strip("*").strip()]
    double = [part for part in re.findall(r"\*\*[^\n\*]*\*\*", text) if part[2:-2].strip()]
    return len(single) + len(double) >= num_highlights


def _multiple_sections(text: str, *, section_spliter: str, num_sections: int) -> bool:
    marks = re.findall(rf"\s?{re.escape(section_spliter.strip())}\s?\d+\s?", text)
    return len(marks) >= num_sections


def _json_format(text: str) -> bool:
    inner = re.sub(r"\A\s*```(?:json|Json|JSON)?|```\s*\Z", "", text)
    try:
        parse_json(inner)
    except ValueError:
        return False
    return True


def _title(text: str) -> bool:
    return any(title.strip("<> ") for title in re.findall(r"<<[^\n]+>>", text))


def _two_responses(text: str) -> bool:
    parts = text.split("******")
    filled = [part.strip() for part in parts if part.strip()]
    only_ends = all(part.strip() for part in parts[1:-1])
    return only_ends and len(filled) == 2 and filled[0] != filled[1]


def _repeat_prompt(text: str, *, prompt_to_repeat: str) -> bool:
    return text.strip().lower().startswith(prompt_to_repeat.strip().lower())


def _end_checker(text: str, *, end_phrase: str) -> bool:
    return text.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def _capital_word_frequency(
    text: str, *, capital_frequency: int, capital_relation: Relation
) -> bool:
    words = re.findall(r"[^\W_]+(?:-[^\W_]+)*", text)
    return _holds(sum(word.isupper() for word in words), capital_relation, capital_frequency)


def _english_capital(text: str) -> bool:
    return text.isupper() and _language(text.lower()) in (None, "en")


def _english_lowercase(text: str) -> bool:
    return text.islower() and _language(text) in (None, "en")


def _no_comma(text: str) -> bool:
    return "," not in text


def _quotation(text: str) -> bool:
    text = text.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


def count_sentences(text: str) -> int:
    """Return how many sentences a text has."""
    ends = [match.end() for match in re.finditer(r"[.!?]+[\"')\]]*(?=\s|$)", text)]
    ends = [end for end in ends if not _ABBREVIATED.search(text[max(0, end - 12) : end])]
    rest = text[ends[-1] :] if ends else text
    return len(ends) + bool(rest.strip())


def _language(text: str) -> str | None:
    """Return the language of a text; None where it has no letters to tell it by."""
    if not any(character.isalpha() for character in text):
        return None
    import py3langid

    return str(py3langid.classify(text)[0])


_RULES = {
    "keywords:existence": _existence,
    "keywords:frequency": _frequency,
    "keywords:forbidden_words": _forbidden_words,
    "keywords:letter_frequency": _letter_frequency,
    "language:response_language": _response_language,
    "length_constraints:number_sentences": _number_sentences,
    "length_constraints:number_paragraphs": _number_paragraphs,
    "length_constraints:number_words": _number_words,
    "length_constraints:nth_paragraph_first_word": _nth_paragraph_first_word,
    "detectable_content:number_placeholders": _number_placeholders,
    "detectable_content:postscript": _postscript,
    "detectable_format:number_bullet_lists": _number_bullet_lists,
    "detectable_format:constrained_response": _constrained_response,
    "detectable_format:number_highlighted_sections": _number_highlighted_sections,
    "detectable_format:multiple_sections": _multiple_sections,
    "detectable_format:json_format": _json_format,
    "detectable_format:title": _title,
    "combination:two_responses": _two_responses,
    "combination:repeat_prompt": _repeat_prompt,
    "startend:end_checker": _end_checker,
    "change_case:capital_word_frequency": _capital_word_frequency,
    "change_case:english_capital": _english_capital,
    "change_case:english_lowercase": _english_lowercase,
    "punctuation:no_comma": _no_comma,
    "startend:quotation": _quotation,
}
RULES: dict[str, Callable[..., bool]] = {
    name: validate_call(rule)  # type: ignore[call-overload] # each takes other settings
    for name, rule in _RULES.items()
}
"""By the name that IFEval gives them: from a response, and what its `kwargs` say, to followed."""
