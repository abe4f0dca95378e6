"""The studies there are, one record each.

Published numbers: arXiv 2404.16792v5, rewards on UltraFeedback's dev set and, where it says so, on
the prompts of AlpacaEval 2.0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from expo_ray.lab.studies.study import Arm, Model, Study

SFT = Model(kind="sft")
BASE = Model(kind="base")
# Supervised tuning of a model that has learnt the language already takes a smaller rate.
TUNED: Mapping[str, Any] = {"sft_learning_rate": 1e-3}
BASE_SFT = Model(kind="sft", parents=(BASE,), settings=TUNED)


def _aligned(fraction: float, *, parent: Model = SFT, variant: str = "", **options: Any) -> Model:
    """Return a model aligned from `parent` on a share of the preference data."""
    rate = options.pop("dpo_learning_rate", None)
    settings: dict[str, Any] = {"preference_fraction": fraction}
    if rate is not None:
        settings["dpo_learning_rate"] = rate
    return Model(
        kind="preference", parents=(parent,), settings=settings, options=options, variant=variant
    )


def _arm(name: str, aligned: Model, *, published: str = "") -> Arm:
    return Arm(name=name, initial=SFT, aligned=aligned, published=published)


_AMOUNTS = {
    "5%": (0.05, "alpha 25"),
    "10%": (0.1, "alpha 8: 3.59 to 5.82"),
    "20%": (0.2, "alpha 2.5: 4.37 to 6.08"),
    "40%": (0.4, "alpha 0.5: 5.30 to 5.80"),
    "100%": (1.0, "alpha 0.3: 6.16 to 6.52 (AlpacaEval)"),
}
_BASELINE = _arm("20%", _aligned(0.2), published="alpha 2.5: 4.37 to 6.08")

TRAINING_AMOUNT = Study(
    name="training-amount",
    title="How much training leaves how much to extrapolate",
    question="Does a pair that was aligned on less data allow, and gain from, a larger alpha?",
    arms=tuple(
        _arm(name, _aligned(fraction), published=told)
        for name, (fraction, told) in _AMOUNTS.items()
    ),
    published="The best alpha fell from 25 at 5% of the training to 0.3 at all of it; 20% with "
    "alpha 2.5 beat the whole training, extrapolated or not.",
    yardstick="100%",
    limits="Shares of the data, each with a schedule of its own, of a tiny model on one task: the "
    "paper's shares are checkpoints of one run of a 7B model.",
)

LENGTH_BIAS = Study(
    name="length-bias",
    title="Preferences that favour long answers spoil the direction",
    question="What is left to gain when training sees the pairs first whose preferred answer is "
    "the longest beside the other?",
    arms=(
        *(
            _arm(f"{n} random", _aligned(_AMOUNTS[n][0]), published=_AMOUNTS[n][1])
            for n in ("10%", "20%", "40%")
        ),
        _arm("10% biased", _aligned(0.1, longest_first=True), published="alpha 0.2: 4.62 to 4.69"),
        _arm("20% biased", _aligned(0.2, longest_first=True), published="alpha 0.4: 5.05 to 5.11"),
        _arm("40% biased", _aligned(0.4, longest_first=True), published="none: 4.90"),
    ),
    published="Trained on biased data the aligned models looked better and gained next to nothing.",
    limits="Here the preferred answer is longer in 46% of pairs, shorter in 38%, and the truth has "
    "no taste for length, as judges of chat have: a model cannot look better by being longer.",
)

EPOCHS = Study(
    name="epochs",
    title="Epochs beside alpha",
    question="Do two or three epochs over the same 20% of the data take the place of alpha?",
    arms=(
        _arm("1 epoch", _aligned(0.2), published="alpha 2.5: 4.37 to 6.08"),
        _arm("2 epochs", _aligned(0.2, num_train_epochs=2), published="alpha 0.3: 4.93 to 5.06"),
        _arm("3 epochs", _aligned(0.2, num_train_epochs=3), published="none: 4.47"),
    ),
    published="More epochs left less to gain, and no number of them reached one epoch with alpha.",
    limits="Overfitting sets in late where 800 pairs come from one rule and 2% are labelled wrong.",
)

LEARNING_RATE = Study(
    name="learning-rate",
    title="The learning rate beside alpha",
    question="Does a higher rate on the same 20% of the data take the place of alpha?",
    arms=(
        _arm("rate 1", _aligned(0.2), published="alpha 2.5: 4.37 to 6.08"),
        _arm("rate 2", _aligned(0.2, dpo_learning_rate=2e-4), published="alpha 0.5: 5.20 to 5.54"),
        _arm("rate 4", _aligned(0.2, dpo_learning_rate=4e-4), published="alpha 0.4: 5.33 to 5.52"),
    ),
    published="Twice and four times the rate gave better models before extrapolation and worse "
    "ones after it.",
    limits="Rates are multiples of the laboratory's own, 1e-4, which is not tuned as the paper's "
    "5e-7 is.",
)

OPTIMIZER = Study(
    name="optimizer",
    title="The optimizer decides what is left",
    question="Which optimizer leaves a direction that can be followed further?",
    arms=(
        _arm("AdamW", _aligned(0.2), published="alpha 2.5: 4.37 to 6.08"),
        _arm("AdaGrad", _aligned(0.2, optim="adagrad"), published="alpha 15: 3.42 to 6.25"),
        _arm("RMSprop", _aligned(0.2, optim="rmsprop"), published="alpha 0.4: 4.88 to 5.08"),
    ),
    published="AdaGrad moved least and gave the best model after extrapolation; RMSprop the worst.",
    limits="All three run at the rate that AdamW runs at, as in the paper; none is tuned.",
)

MODEL_CHOICES = Study(
    name="model-choices",
    title="Which two models make a pair",
    question="What gains, what collapses, and had `diagnose` warned?",
    arms=(
        Arm(name="SFT + DPO", initial=SFT, aligned=_aligned(0.1), published="works, 12 of 12"),
        Arm(
            name="base + SFT", initial=BASE, aligned=BASE_SFT, is_alignment_step=False,
            published="no gain, can collapse",
        ),
        Arm(
            name="two SFT, one base", initial=BASE_SFT, is_alignment_step=False,
            aligned=Model(kind="sft", parents=(BASE,), settings=TUNED, variant="-b"),
        ),
        Arm(
            name="two SFT, two bases", initial=SFT, is_alignment_step=False,
            aligned=Model(kind="sft", variant="-b"),
        ),
        Arm(
            name="two DPO, one SFT", initial=_aligned(0.1), is_alignment_step=False,
            aligned=_aligned(0.1, variant="-b"),
        ),
    ),
    published="Only an alignment step from its direct parent is meant to work; pretrained to SFT "
    "brought no gain and could collapse.",
    limits="Bases here are tiny and see nothing but the task's own text, so that a base is nearer "
    "to its SFT model than a real one is.",
)  # fmt: skip

INTERPOLATION = Study(
    name="interpolation",
    title="From the initial model through the aligned one, to collapse",
    question="Does the truth rise all the way from alpha -1, and where does it fall?",
    arms=(_arm("10%", _aligned(0.1)), _arm("100%", _aligned(1.0))),
    alphas=(-1.0, -0.75, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 8.0, 12.0, 20.0, 30.0),
    published="Between SFT and aligned the reward rose steadily in every pair; past the optimum it "
    "fell at once, and answers grew without end.",
    limits="One point per alpha and seed; between two alphas of the grid nothing is known.",
)

_PARTS = tuple(_aligned(0.1, variant=variant) for variant in ("", "-b", "-c"))


def _merged(method: str, **parameters: float) -> Model:
    options: dict[str, Any] = {"merge_method": method}
    if parameters:
        options["parameters"] = parameters
    return Model(kind="merge", parents=(SFT, *_PARTS), options=options)


BASELINES = Study(
    name="baselines",
    title="Extrapolation beside merging, at equal budget",
    question="Three alignments on 10% of the data each can be merged, or one on 30% extrapolated: "
    "what is better, and can a merge be extrapolated too?",
    arms=(
        _arm("one DPO, 30%", _aligned(0.3)),
        _arm("one DPO, 10%", _aligned(0.1)),
        _arm("soup of three", _merged("linear")),
        _arm("TIES of three", _merged("ties", density=0.5)),
        _arm("DARE of three", _merged("dare_linear", density=0.5)),
    ),
    published="The paper compares with none of them.",
    limits="Densities and weights are mergekit's usual ones and were not searched; alpha was.",
)

METHODS = Study(
    name="methods",
    title="Other ways to align",
    question="Which ways of alignment leave something to extrapolate?",
    arms=(
        _arm("DPO", _aligned(0.1)),
        _arm("IPO", _aligned(0.1, method="ipo"), published="alpha 0.5: 4.97 to 5.44"),
        _arm("KTO", _aligned(0.1, method="kto"), published="none: 3.84"),
        _arm("SimPO", _aligned(0.1, method="simpo"), published="alpha 0.1: 5.88 to 5.95"),
    ),
    published="Of seven methods on Mistral-7B all but KTO gained; by how much varied from 0.02 to "
    "0.47.",
    limits="Every method runs at one rate and its usual beta; none is tuned, so that methods are "
    "not ranked by this.",
)

# At which a tiny model learns to add: half its sums are right after SFT.
SUMS: Mapping[str, Any] = {
    "task": "sums",
    "num_sft_examples": 9600,
    "sft_batch_size": 32,
    "sft_learning_rate": 5e-3,
    "initializer_range": 0.08,
    "max_new_tokens": 24,
    "dpo_learning_rate": 5e-4,
}
SUMS_SFT = Model(kind="sft", settings=SUMS)


def _reinforced(num_steps: int) -> Arm:
    aligned = Model(
        kind="grpo", parents=(SUMS_SFT,), settings=SUMS, options={"num_steps": num_steps}
    )
    return Arm(name=f"GRPO, {num_steps} steps", initial=SUMS_SFT, aligned=aligned)


REINFORCEMENT = Study(
    name="reinforcement",
    title="Reinforcement learning on checked answers",
    question="Does training by GRPO, rewarded by a check alone, leave something to extrapolate, as "
    "training on preferences does?",
    arms=(
        _reinforced(25),
        _reinforced(50),
        _reinforced(100),
        Arm(
            name="DPO, 10%",
            initial=SUMS_SFT,
            aligned=Model(kind="preference", parents=(SUMS_SFT,), settings=SUMS),
        ),
    ),
    published="The paper has no such pair; where others extrapolated models trained on checked "
    "rewards, gains were near zero.",
    limits="Sums of small numbers and a policy that was trained for minutes: the truth here is the "
    "very check that was trained on.",
)

STUDIES: Mapping[str, Study] = {
    study.name: study
    for study in (
        TRAINING_AMOUNT,
        LENGTH_BIAS,
        EPOCHS,
        LEARNING_RATE,
        OPTIMIZER,
        MODEL_CHOICES,
        INTERPOLATION,
        BASELINES,
        METHODS,
        REINFORCEMENT,
    )
}
"""By name."""
