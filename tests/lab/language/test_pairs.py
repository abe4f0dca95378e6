"""Pairs are made of what the model answered, by what the rules say."""

from __future__ import annotations

from expo_ray.lab.language.pairs import make_pairs, training_prompts
from expo_ray.lab.language.prompts import LanguagePrompt
from expo_ray.lab.language.settings import LanguageSettings

SETTINGS = LanguageSettings()
NO_COMMA, LOWER = '{"id": "punctuation:no_comma"}', '{"id": "change_case:english_lowercase"}'
PROMPT = LanguagePrompt(text="Say it.", kinds=("a", "b"), constraints=f"[{NO_COMMA}, {LOWER}]")


def rows(prompt_id: str, *texts: str | None) -> list[dict[str, object]]:
    return [{"prompt_id": prompt_id, "response": text} for text in texts]


def test_the_best_answer_is_preferred_to_the_worst() -> None:
    answers = rows("x", "Yes, It is", "yes it is", "yes, it is", None)
    (pair,) = make_pairs(SETTINGS, {"x": PROMPT}, answers)
    assert pair is not None
    assert (pair.prompt, pair.chosen, pair.rejected) == ("Say it.", "yes it is", "Yes, It is")
    # Whatever the order in which they were answered.
    assert make_pairs(SETTINGS, {"x": PROMPT}, answers[::-1]) == [pair]


def test_answers_of_equal_truth_are_no_pair() -> None:
    answers = rows("x", "yes it is", "so it is") + rows("other", "No, Not")
    assert make_pairs(SETTINGS, {"x": PROMPT, "y": PROMPT}, answers) == [None, None]


def test_ids_tell_the_training() -> None:
    small = SETTINGS.model_copy(update={"num_reward_prompts": 3})
    assert list(training_prompts(small, "reward_model")) == [
        f"reward_model-0000{i}" for i in range(3)
    ]
