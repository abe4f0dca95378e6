"""Prompts, responses and judgements of our own, in the forms that published ones have.

Written for this project, so that every mechanism is tested without data from elsewhere. Tests of
published figures use `tests/published_data.py`.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path

# (data set, instruction, response): prose, lists, code, a table, a letter, verses, one line.
PAIRS = (
    (
        "garden",
        "My tomato plants have yellow leaves at the bottom. What should I do?",
        "Yellow leaves at the bottom are common once fruit begins to form, and a few of them do "
        "no harm. Pinch them off so that air can move between the stems.\n\nIf the yellow climbs "
        "higher, look at three things:\n\n1. Water. Push a finger into the soil. It should be "
        "damp, not soaked. Pots dry out within a day in July.\n2. Food. A plant that bears fruit "
        "wants potassium and a little magnesium. Any feed sold for tomatoes has both.\n3. "
        "Spots. Brown rings inside the yellow point to early blight. Cut such leaves away and "
        "keep the rest dry when you water.\n\nAs a rule, water in the morning and at the root.",
    ),
    (
        "garden",
        "Is it worth keeping bees in a small town garden?",
        "It can be, if you enjoy the work for its own sake. One hive needs about an hour a week "
        "from April to August, a place that faces away from the neighbours, and water close by. "
        "Expect to spend more on boxes, a suit and a smoker than the first three years of honey "
        "would bring.\n\nTalk to the people next door before anything else. Most bees that cause "
        "quarrels were a surprise to somebody. A local club will let you stand beside an open "
        "hive once or twice, and after that you will know whether you want your own.",
    ),
    (
        "kitchen",
        "Give me a quick dinner with chickpeas and spinach.",
        "Warm two spoons of oil in a wide pan and soften one sliced onion with a pinch of salt. "
        "Add two cloves of garlic, a spoon of cumin and half a spoon of paprika, and stir for a "
        "minute until it smells good. Tip in a drained tin of chickpeas and half a tin of chopped "
        "tomatoes, and let it bubble for ten minutes. Fold in as much spinach as the pan will "
        "take, cover it until the leaves fall, and finish with lemon. Serve it with flat bread "
        "or with rice left from yesterday.",
    ),
    (
        "kitchen",
        "Which knife should a beginner buy first, and how do I keep it sharp?",
        "Buy one chef's knife with a blade of about twenty centimetres and spend what you would "
        "on a good pair of shoes. It does nine jobs of ten. A small paring knife can follow "
        "later.\n\n- Cut on wood or soft plastic, never on glass or stone.\n- Wash it by hand and "
        "dry it at once.\n- Draw it along a steel a few times every week; that only straightens "
        "the edge.\n- Grind it on a stone two or three times a year, or let a shop do so.",
    ),
    (
        "code",
        "Write a Python function that returns the longest run of equal values in a list.",
        "Here is one that walks over the list a single time:\n\n```python\ndef longest_run(values)"
        ":\n    best, count, previous = 0, 0, object()\n    for value in values:\n        count = "
        "count + 1 if value == previous else 1\n        best = max(best, count)\n        previous "
        "= value\n    return best\n```\n\nThe first `previous` is a fresh object that equals "
        "nothing, so an empty list gives zero and the first value starts a run of its own. It "
        "needs linear time and no extra memory. `itertools.groupby` would do the same in one "
        "expression, at the price of building every group.",
    ),
    (
        "code",
        "Explain what an index in a database does to someone who never wrote SQL.",
        "Think of a thick cookery book. To find every dish with plums you could read all pages, "
        "or you could look up plums at the back and turn to the six pages listed there. A "
        "database without an index reads the whole book for each question. With one it keeps a "
        "sorted list of words and the places where they occur.\n\nThe list is not free. Whoever "
        "adds a recipe must update it too, and it takes room on the shelf. That is why one builds "
        "an index for questions that are asked often, and none for the rest.",
    ),
    (
        "letters",
        "Draft a short note to my landlord about a dripping radiator.",
        "Dear Mr Okafor,\n\nthe radiator below the kitchen window has been dripping since "
        "Saturday. I have put a bowl beneath the valve and empty it each evening; about half a "
        "litre collects in a day. The floor is dry so far.\n\nCould you send someone this week? I "
        "am at home on Wednesday from four, and on Friday all day. If another time suits the "
        "plumber better, my neighbour in flat six has a key.\n\nWith kind regards,\nLena Marsh",
    ),
    (
        "letters",
        "Write a poem of eight lines about a train at night.",
        "The last train carries windows through the field,\na string of yellow rooms without a "
        "floor,\nand in each one a reader, half concealed,\nforgets the page and does not look for "
        "more.\nThe signals nod. A village comes and goes,\none lamp, one dog, the corner of a "
        "wall.\nWhat all these people think of, no one knows,\nand dark lies down again behind "
        "them all.",
    ),
    (
        "numbers",
        "Compare renting a van with paying movers for a flat of two rooms.",
        "| | Van | Movers |\n|---|---|---|\n| Cost | 90 to 140 a day, fuel on top | 600 to 1000 "
        "|\n| Time | a full day, often two | five hours |\n| Help needed | three friends | none "
        "|\n| Damage | your own risk | insured |\n\nThe van wins if you have friends with strong "
        "backs, few books and a lift. Movers win with stairs, a piano, or a job that expects you "
        "the next morning. A middle way is to carry boxes yourself during the week before and to "
        "hire two people for the heavy pieces alone.",
    ),
    (
        "numbers",
        "How long does it take to save 5000 if I put aside 180 a month?",
        "About 28 months. 180 times 27 is 4860, so 140 are still missing after that, and the next "
        "payment brings you past the goal. With interest of three percent a year it would be one "
        "month less.",
    ),
    (
        "history",
        "Why did people in the Middle Ages build so many mills?",
        "Grinding grain by hand took one person of every household several hours a day. A water "
        "mill did that work for a whole village, and whoever owned the stream could ask for a "
        "share of the flour. Lords built mills because they brought a steady income, monasteries "
        "because they freed hands for other labour. Later the same wheels drove hammers, saws and "
        "the stamps that beat rags into paper. Where rivers froze or ran dry, windmills took "
        "over from the twelfth century on, above all along the flat coasts of the north.",
    ),
    (
        "history",
        "Name the oldest object in your opinion worth seeing in a museum.",
        "A hand axe. It fits the palm so well that one understands its maker without a word.",
    ),
)


def prompts() -> list[dict[str, str]]:
    """Return rows as AlpacaEval's prompts have them."""
    return [
        {"prompt_id": f"sample-{i}", "dataset": dataset, "instruction": instruction}
        for i, (dataset, instruction, _) in enumerate(PAIRS)
    ]


def outputs(num_rows: int = len(PAIRS), *, generator: str = "ours") -> list[dict[str, str]]:
    """Return rows as AlpacaEval's outputs have them.

    Args:
        num_rows: The first are `PAIRS` as they stand; further ones join sentences of them at
            random, so that their lengths spread as those of published responses do (log-normal,
            a median of about 1,100 characters).
        generator: The name of the model.
    """
    rng = random.Random(0)
    sentences = [part for _, _, response in PAIRS for part in response.split(". ")]
    texts = [response for _, _, response in PAIRS]
    while len(texts) < num_rows:
        text, length = "", rng.lognormvariate(7.0, 0.9)
        while len(text) < length:
            text += rng.choice(sentences) + ". "
        texts.append(text[: round(length)])
    return [
        {
            "dataset": PAIRS[i % len(PAIRS)][0],
            "instruction": PAIRS[i % len(PAIRS)][1],
            "output": text,
            "generator": generator,
        }
        for i, text in enumerate(texts[:num_rows])
    ]


def annotations(preferences: Sequence[float]) -> list[dict[str, object]]:
    """Return judgements as AlpacaEval publishes them, one per preference (1 to 2: ours wins)."""
    return [
        {
            "instruction": row["instruction"],
            "output_1": "The baseline's answer.",
            "generator_1": "baseline",
            "output_2": row["output"],
            "generator_2": row["generator"],
            "annotator": "ours",
            "preference": preference,
        }
        for row, preference in zip(outputs(len(preferences)), preferences, strict=True)
    ]


def write_lines(path: Path, rows: Iterable[object]) -> Path:
    """Write rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
