"""The options with which a job learns from people's behaviour. Light to import."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from visgrpo.errors import UserError, nearest
from visgrpo.tasks.checks import not_negative, positive

FEEDBACK_REWARDS = ("clicks", "dwell", "votes", "log-votes", "preferences", "grades")
_OF_AVERAGES = ("pessimism", "half_life", "unknown", "prior_strength", "position_bias")
Scale = Literal["std", "batch_std", "mean", "none"]
_OF_VOTES = ("votes", "log-votes")


@dataclass(frozen=True)
class FeedbackOptions:
    """Where feedback comes from, and what it is taken to be worth."""

    feedback: str | None = None
    """Table of what people did: CSV, JSONL, Parquet, "sqlite:///app.db?table=votes" or
    "postgresql://…". See docs/feedback.md for its columns."""
    query: str | None = None
    """SQL that makes the table: in the database, or on a file, which is called events there."""
    id_column: str | None = None
    """Column of the images that feedback names them by, where its name is not a usual one."""
    drop_duplicates: bool = False
    """Leave out repeated events, and count them; otherwise they stop the run."""
    prior_strength: float | None = None
    """How many observations the prior is worth: impressions (by default 2), dwell times and
    grades (1), votes for every label (0.5), or the precision of the scores of preferences (1)."""
    position_bias: Literal["auto", "none"] = "auto"
    """Clicks: how often each position is looked at is estimated where the log has positions that
    can be compared."""
    half_life: float | None = None
    """Clicks, dwell: seconds after which an event counts half; by default all count the same."""
    raters: Literal["none", "dawid-skene"] = "none"
    """Votes: weight people by how reliable they are, where the table says who voted."""
    pessimism: float = 0.0
    """Rewards are the posterior mean less this many standard deviations."""
    unknown: Literal["mask", "prior", "predict"] = "mask"
    """Labels that nobody judged for an image: left out of its group, worth the prior's mean, or
    what a small reward model on image features says."""
    off_policy: Literal["none", "uncorrected", "ratio", "self-normalized", "doubly-robust"] = "none"
    """Learn from the log itself, whose propensities are the old policy's; by default clicks are
    averaged to rewards and groups are the policy's own."""
    least_effective_share: float = 0.01
    """Off policy: refuse logs of which fewer impressions count, as a share of all."""

    def check_extras(self, reward: tuple[str, ...], estimator: str, supervised: bool) -> None:
        """Raise UserError for options that do not go together."""
        wanted = [name for name in reward if name in FEEDBACK_REWARDS]
        if wanted and self.feedback is None:
            raise UserError(f'Reward "{wanted[0]}" is of what people did: name it with --feedback.')
        if self.feedback is None:
            self._refuse_without_feedback()
            return
        if not wanted:
            raise UserError(
                "--feedback needs a --reward that is made of it. "
                f"{nearest(reward[0], FEEDBACK_REWARDS)}"
            )
        positive(self, "prior_strength", "half_life", optional=True)
        not_negative(self, "pessimism")
        if not 0 <= self.least_effective_share < 1:
            raise UserError(
                f"--least-effective-share {self.least_effective_share} must lie in [0, 1)."
            )
        if self.raters != "none" and not set(wanted) <= set(_OF_VOTES):
            raise UserError(f"--raters weighs votes: it does not go with --reward {wanted[0]}.")
        if self.half_life is not None and not set(wanted) <= {"clicks", "dwell"}:
            raise UserError(
                f"--half-life is of impressions: it does not go with --reward {wanted[0]}."
            )
        if self.position_bias == "none" and "clicks" not in wanted:
            raise UserError(
                f"--position-bias is of clicks: it does not go with --reward {wanted[0]}."
            )
        if self.off_policy != "none":
            self._check_off_policy(reward, estimator, supervised)
        elif self.least_effective_share != FeedbackOptions.least_effective_share:
            raise UserError("--least-effective-share is for learning with --off-policy: add that.")

    def resting_scale(self, scale: Scale) -> Scale:
        """Return what advantages are divided by where nobody says, and a method would have this.

        Labels of an image that nobody clicked differ in how often they were shown, and in little
        else: divided by its own deviation, that would count as much as a clear verdict.
        """
        return "none" if self.feedback and scale == "std" else scale

    def _check_off_policy(self, reward: tuple[str, ...], estimator: str, supervised: bool) -> None:
        if supervised:
            raise UserError("--off-policy is for GRPO methods: supervised training has no groups.")
        if reward != ("clicks",):
            raise UserError("--off-policy learns from logged clicks: --reward clicks, alone.")
        if self.off_policy != "doubly-robust" and estimator != "exact":
            raise UserError(
                f"--off-policy {self.off_policy} takes the labels that were shown as the group: "
                "add --estimator exact."
            )
        for name in _OF_AVERAGES:
            if getattr(self, name) != getattr(FeedbackOptions, name):
                raise UserError(
                    f"--{name.replace('_', '-')} changes averaged rewards: it does not go with "
                    "--off-policy, which takes single clicks."
                )

    def _refuse_without_feedback(self) -> None:
        for option in fields(FeedbackOptions):
            if getattr(self, option.name) != option.default:
                flag = "--" + option.name.replace("_", "-")
                raise UserError(f"{flag} is about feedback: name a table with --feedback.")
