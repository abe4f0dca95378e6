"""What one may turn when alpha is chosen, each with its default and the reason for it.

The thresholds of the guards are in `guard_settings`.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from expo_ray.flags import Flag
from expo_ray.selection.guard_settings import GuardThresholds

SEARCH_PANEL = "Which alphas are tried"
Strategy = Literal[
    "grid",
    "racing",
    "expanding",
    "bracketing",
    "expanding+racing",
    "bracketing+racing",
]


class SelectionSettings(GuardThresholds):
    """Rules by which alpha is chosen; part of a recipe, so unknown keys are refused."""

    confidence: float = Field(
        default=0.95,
        ge=0.5,
        lt=1,
        description="Two-sided confidence of every interval; a p-value must not exceed 1 minus "
        "this.",
    )

    num_resamples: int = Field(
        default=10_000,
        ge=1000,
        description="Bootstrap resamples. At 10,000 the Monte-Carlo error of a 95% limit is "
        "below 2% of its width.",
    )

    seed: int = Field(
        default=42,
        ge=0,
        description="Seed of the bootstrap; the same tables and seed give the same selection.",
    )

    strategy: Annotated[Strategy, Flag(panel=SEARCH_PANEL, metavar="NAME")] = Field(
        default="grid",
        description="Which alphas are tried: grid, expanding, bracketing, racing, "
        "expanding+racing or bracketing+racing. `grid`: the given ones, on "
        "all prompts. `expanding`: beyond the edge of the grid while the best lies "
        "on it. `bracketing`: doubling, then halving the bracket, for lightly "
        "trained models. `racing`, alone or after a plus sign: candidates that can "
        "hardly be chosen any more answer no further prompts. All but `grid` ask "
        "the held-out prompts of alpha 0 and of those alphas alone that are to be "
        "confirmed, one after the other.",
    )

    max_alpha: Annotated[float, Flag(panel=SEARCH_PANEL)] = Field(
        default=25.0,
        gt=0,
        description="How far expanding and bracketing may go. 25 is the largest useful alpha "
        "in the paper.",
    )

    min_alpha: Annotated[float, Flag(panel=SEARCH_PANEL)] = Field(
        default=0.0,
        le=0,
        description="How far they may go backwards where nothing gains; -1 is the initial "
        "model, 0 never tries.",
    )

    max_candidates: int = Field(
        default=20,
        ge=1,
        description="Where expanding and bracketing end in any case; doubling from 0.5 to 25 "
        "and closing in takes ten to twelve.",
    )

    race_error: float = Field(
        default=0.03,
        gt=0,
        lt=0.5,
        description="Share of runs in which a race may choose another alpha than the full grid "
        "would have; later rounds of an adaptive search have a half, a third and so "
        "on of it.",
    )

    correction: Literal["holm", "bonferroni", "none"] = Field(
        default="holm",
        description="How p-values on tuning prompts allow for the number of candidates. Holm "
        "controls the same error as Bonferroni and is never weaker. The held-out "
        "tests need none: they go by a fixed sequence.",
    )

    prefer: Literal["smallest-within-noise", "best"] = Field(
        default="smallest-within-noise",
        description="Which of the eligible candidates goes to the held-out prompts. A reward "
        "model is an imperfect judge whose error grows with the distance travelled, "
        "so by default it is the smallest alpha whose gain is not significantly "
        "below the best one's (paired test between the two); `best` takes the "
        "highest mean reward.",
    )

    heldout_reserve: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Share of the error rate on held-out prompts that is kept for the next smaller "
        "candidate where the gain of one is not confirmed. At 0 the next one has its turn "
        "only where a guard stopped a candidate whose gain was significant, which costs "
        "nothing; more makes every first test stricter.",
    )

    rank_by: Literal["reward", "all-judges"] = Field(
        default_factory=lambda given: "reward" if "racing" in given["strategy"] else "all-judges",
        description="What orders the eligible candidates: `all-judges`, the mean of the scoring "
        "reward model and of those guard reward models that were not made from the "
        "pair, each in units of its spread over the aligned model's responses; "
        "`reward`, the scoring reward model alone. Ensembles are over-optimised "
        "later than each of their members (Coste et al. 2023, Eisenstein et al. "
        "2023). Gains, p-values and intervals stay those of the scoring reward "
        "model. A race drops candidates by the scoring reward model alone: there "
        "`reward` is the default, and the only choice.",
    )

    sample_statistic: Annotated[str, Flag(panel=SEARCH_PANEL, metavar="NAME")] = Field(
        default="avg",
        pattern=r"^(avg|majority|pass@[1-9][0-9]{0,3})$",
        description="What several samples of a prompt count for: avg, pass@K or majority. `avg`: "
        "the mean of their rewards. `pass@K`: the chance that one of K is right. `majority`: the "
        "reward of the answer that most give. The last two need a check as the scoring reward "
        "model; the others always count by their mean.",
    )

    min_gain: float = Field(
        default=0.0,
        ge=0,
        description="Gains up to this are not called gains; set it to the spread that batching "
        "causes in the scores of the reward model.",
    )

    no_worse_than: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default_factory=dict,
        description="Gates: what must not be lost, and how much of it may be, `{NAME: MARGIN}`. A "
        "candidate is chosen only if the interval of its paired difference to the aligned model "
        "lies above minus the margin on held-out prompts (non-inferiority). NAME is a set of "
        "prompts with `role: gate`, or a reward model besides the first, which then is no guard.",
    )

    report_only: list[str] = Field(
        default_factory=list,
        description="Reward models besides the first that neither guard nor order the candidates: "
        "what they say is told beside the choice and decides nothing. Named as gates are.",
    )

    min_pairs: int = Field(
        default=10,
        ge=2,
        description="Prompts scored under both models that a test needs, on tuning and on "
        "held-out prompts each; below ten a bootstrap interval is not worth its "
        "name.",
    )

    @model_validator(mode="after")
    def _race_by_reward(self) -> Self:
        if "racing" in self.strategy and self.rank_by != "reward":
            raise ValueError("rank_by all-judges does not go with a racing strategy")
        return self

    def above(self, spread: float | None) -> Self:
        """Return rules under which no gain up to `spread` is called one.

        Args:
            spread: How far batching alone moves a score; None where it was not measured.
        """
        if spread is None or spread <= self.min_gain:
            return self
        return self.model_copy(update={"min_gain": spread})
