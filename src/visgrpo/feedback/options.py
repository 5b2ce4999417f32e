"""The options with which a job learns from people's behaviour. Light to import."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Literal

from visgrpo.errors import nearest
from visgrpo.options import Options, option

FEEDBACK_REWARDS = ("clicks", "dwell", "votes", "log-votes", "preferences", "grades")
_OF_AVERAGES = ("pessimism", "half_life", "unknown", "prior_strength", "position_bias")
Scale = Literal["std", "batch_std", "mean", "none"]
_OF_VOTES = ("votes", "log-votes")


@dataclass(frozen=True)
class FeedbackOptions(Options):
    """Where feedback comes from, and what it is taken to be worth."""

    feedback: str | None = option(
        None,
        'Table of what people did: CSV, JSONL, Parquet, "sqlite:///app.db?table=votes" or '
        '"postgresql://…". See docs/feedback.md for its columns.',
    )
    query: str | None = option(
        None,
        "SQL that makes the table: in the database, or on a file, which is called events there.",
    )
    id_column: str | None = option(
        None, "Column of the images that feedback names them by, where its name is not a usual one."
    )
    drop_duplicates: bool = option(
        False, "Leave out repeated events, and count them; otherwise they stop the run."
    )
    prior_strength: float | None = option(
        None,
        "How many observations the prior is worth: impressions (by default 2), dwell times "
        "and grades (1), votes for every label (0.5), or the precision of the scores of "
        "preferences (1).",
        within="> 0",
    )
    position_bias: Literal["auto", "none"] = option(
        "auto",
        "Clicks: how often each position is looked at is estimated where the log has "
        "positions that can be compared.",
    )
    half_life: float | None = option(
        None,
        "Clicks, dwell: seconds after which an event counts half; by default all count the same.",
        within="> 0",
    )
    raters: Literal["none", "dawid-skene"] = option(
        "none", "Votes: weight people by how reliable they are, where the table says who voted."
    )
    pessimism: float = option(
        0.0, "Rewards are the posterior mean less this many standard deviations.", within=">= 0"
    )
    unknown: Literal["mask", "prior", "predict"] = option(
        "mask",
        "Labels that nobody judged for an image: left out of its group, worth the prior's "
        "mean, or what a small reward model on image features says.",
    )
    off_policy: Literal["none", "uncorrected", "ratio", "self-normalized", "doubly-robust"] = (
        option(
            "none",
            "Learn from the log itself, whose propensities are the old policy's; by default "
            "clicks are averaged to rewards and groups are the policy's own.",
        )
    )
    least_effective_share: float = option(
        0.01,
        "Off policy: refuse logs of which fewer impressions count, as a share of all.",
        within="[0, 1)",
    )

    def extra_rules(
        self, reward: tuple[str, ...], estimator: str, supervised: bool
    ) -> Iterator[str]:
        """Yield what is wrong with these options together."""
        wanted = [name for name in reward if name in FEEDBACK_REWARDS]
        if wanted and self.feedback is None:
            yield f'Reward "{wanted[0]}" is of what people did: name it with --feedback.'
        if self.feedback is None:
            yield from self._without_feedback()
            return
        if not wanted:
            yield (
                "--feedback needs a --reward that is made of it. "
                f"{nearest(reward[0], FEEDBACK_REWARDS)}"
            )
        if self.raters != "none" and not set(wanted) <= set(_OF_VOTES):
            yield f"--raters weighs votes: it does not go with --reward {wanted[0]}."
        if self.half_life is not None and not set(wanted) <= {"clicks", "dwell"}:
            yield f"--half-life is of impressions: it does not go with --reward {wanted[0]}."
        if self.position_bias == "none" and "clicks" not in wanted:
            yield f"--position-bias is of clicks: it does not go with --reward {wanted[0]}."
        if self.off_policy != "none":
            yield from self._off_policy_rules(reward, estimator, supervised)
        elif self.least_effective_share != FeedbackOptions.least_effective_share:
            yield "--least-effective-share is for learning with --off-policy: add that."

    def resting_scale(self, scale: Scale) -> Scale:
        """Return what advantages are divided by where nobody says, and a method would have this.

        Labels of an image that nobody clicked differ in how often they were shown, and in little
        else: divided by its own deviation, that would count as much as a clear verdict.
        """
        return "none" if self.feedback and scale == "std" else scale

    def _off_policy_rules(
        self, reward: tuple[str, ...], estimator: str, supervised: bool
    ) -> Iterator[str]:
        if supervised:
            yield "--off-policy is for GRPO methods: supervised training has no groups."
        if reward != ("clicks",):
            yield "--off-policy learns from logged clicks: --reward clicks, alone."
        if self.off_policy != "doubly-robust" and estimator != "exact":
            yield (
                f"--off-policy {self.off_policy} takes the labels that were shown as the group: "
                "add --estimator exact."
            )
        for name in _OF_AVERAGES:
            if getattr(self, name) != getattr(FeedbackOptions, name):
                yield (
                    f"--{name.replace('_', '-')} changes averaged rewards: it does not go with "
                    "--off-policy, which takes single clicks."
                )

    def _without_feedback(self) -> Iterator[str]:
        for each in fields(FeedbackOptions):
            if each.name in self.given():
                yield f"{self.flag(each.name)} is about feedback: name a table with --feedback."
