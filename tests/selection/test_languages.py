from __future__ import annotations

import random

import numpy as np

from expo_ray.selection import languages as module
from expo_ray.selection import text_signs
from tests import samples

SENTENCES = (
    "Der schnelle braune Fuchs springt über den Hund",
    "el perro come la comida en la casa de mi abuela",
    "速い茶色の狐が怠け者の犬を飛び越える",
    "быстрая лиса прыгает через ленивую собаку",
    "MANY CAPITALS AND NOTHING ELSE",
    "être où ça, n'est-ce pas",
    r"\frac{a}{b} + 1 = 2",
    "the plants want water in the morning",
)


def made_up_texts() -> list[str]:
    rng = random.Random(0)
    mixed = [" ".join(rng.choices(SENTENCES, k=rng.randrange(6))) for _ in range(600)]
    letters = "abcdefghijklmnopqrstuvwxyz äöéß 的是不我"
    noise = ["".join(rng.choices(letters, k=rng.randrange(2500))) for _ in range(100)]
    return [*mixed, *noise, *(row["output"] for row in samples.outputs(200))]


def test_many_texts_have_the_languages_of_each() -> None:
    texts = made_up_texts()
    assert len(texts) >= module.MIN_TEXTS
    assert module._batch_identifier() is not None
    found = module.languages(texts)
    assert found == [text_signs.language(text) for text in texts]
    assert {"de", "ja", "en", "fr", None} <= set(found)


def test_probabilities_differ_by_far_less_than_the_margin() -> None:
    texts = [text for text in made_up_texts() if text]
    identifier = module._batch_identifier()
    assert identifier is not None
    _, found = identifier.classify(texts)
    plain = [
        text_signs.identifier().classify(text[: text_signs.MAX_CHARACTERS])[1] for text in texts
    ]
    assert np.abs(found - plain).max() < module._MARGIN / 20
