"""The options of feedback: of a job that learns from it, of its summary and of replay.

Light to import.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Literal

from visgrpo.data.options import Columns, Data
from visgrpo.errors import nearest
from visgrpo.models.options import Adapt, Prompts
from visgrpo.options import Options, like, option, override
from visgrpo.training.options import Loop, Printing

FEEDBACK_REWARDS = ("clicks", "dwell", "votes", "log-votes", "preferences", "grades")
_OF_AVERAGES = ("pessimism", "half_life", "unknown", "prior_strength", "position_bias")
Scale = Literal["std", "batch_std", "mean", "none"]
_OF_VOTES = ("votes", "log-votes")


@dataclass(frozen=True)
class TableOptions(Options):
    """How a table of what people did is read."""

    heading = "Feedback"

    query: str | None = option(
        None,
        "SQL that makes the table: in the database, or on a file, which is called events there.",
    )
    drop_duplicates: bool = option(
        False, "Leave out repeated events, and count them; otherwise they are a mistake."
    )


@dataclass(frozen=True)
class ImageColumns(Options):
    """How the images of a data set are found and called."""

    heading = "Columns of a table"

    image_column = like(Columns)
    label_column = like(Columns)
    id_column = like(
        Columns,
        help="Column of the data that holds the log's names of images; by default id, image_id, "
        "path, file or the like.",
    )

    def rules(self) -> Iterator[str]:
        yield from super().rules()
        columns, no_data = "image_column label_column id_column", getattr(self, "data", "") is None
        yield from self.idle((columns, no_data, "is about --data, which is not given"))


@dataclass(frozen=True)
class LabelledByModel(ImageColumns):
    """Which images models answer about, with which labels."""

    heading = "Data"

    data: str | None = like(Data, None, "Images, in whatever visgrpo clip takes.")
    split = like(Data, "train", "Rows of data that is stored in splits, perhaps sliced.")
    classes = like(Prompts)
    templates: tuple[str, ...] | None = like(
        Prompts,
        None,
        "CLIP: prompts; by default those that each model was trained with.",
    )
    seed = like(Loop, help="Of everything random.")
    batch_size = like(Loop, 256, "Images at a time.")
    device = like(Loop)


@dataclass(frozen=True)
class FeedbackOptions(TableOptions):
    """Where feedback comes from, and what it is taken to be worth."""

    heading = "Feedback"

    feedback: str | None = option(
        None,
        'Table of what people did: CSV, JSONL, Parquet, "sqlite:///app.db?table=votes" or '
        '"postgresql://…". See docs/feedback.md for its columns.',
    )
    id_column = like(Columns)
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
        if any(name.startswith("abstain") for name in reward):
            yield "--reward abstain adds an output that no feedback speaks of: leave one out."
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


@dataclass(frozen=True)
class SummarizeConfig(Printing, TableOptions, ImageColumns):
    """Say what is in a table of feedback, what it is good for and what it lacks."""

    example = "visgrpo feedback summarize clicks.csv --data photos/"

    events: str = option(
        "",
        'CSV, JSONL, Parquet, a folder or glob of such files, "sqlite:///app.db?table=votes" '
        'or "postgresql://…". See docs/feedback.md for its columns.',
        required="a table of feedback: visgrpo feedback summarize events.parquet",
    )
    data: str | None = like(
        Data,
        None,
        "Images whose coverage to report, in whatever visgrpo clip takes; by default coverage "
        "is of the images and labels in the table.",
    )
    output = like(
        Loop, help="Write a page with plots to this file, or as feedback.html into this folder."
    )


@dataclass(frozen=True)
class ReplayConfig(Printing, TableOptions, LabelledByModel):
    """Estimate from a log how saved models would have done in place of the policy that wrote it.

    A model is taken to draw labels by its probabilities, as the log's policy drew by its
    propensities. Images that a model learned from the clicks of make it look better than it is.
    """

    example = "visgrpo feedback replay --model runs/a runs/b --log clicks.parquet --data photos/"

    model: tuple[str, ...] = like(
        Adapt,
        (),
        "Run, folder or Hub name: CLIP, or a backbone with a classification head. Give "
        "several to compare them with the first.",
        required="a model: visgrpo feedback replay --model A --log events.parquet",
    )
    log: str = option(
        "",
        "Impressions with propensities: CSV, JSONL, Parquet, "
        '"sqlite:///app.db?table=impressions" or "postgresql://…". See docs/feedback.md for '
        "its columns.",
        required="the log: visgrpo feedback replay --model A --log events.parquet",
    )
    data = override(
        None,
        "Images of the log, in whatever visgrpo clip takes; by default the files that the log "
        "names, whose paths are relative to it.",
    )
    skip_bad_images = like(
        Data,
        help="Leave out images that cannot be read, and count them; otherwise they stop the "
        "estimate.",
    )
    classes = override(
        (),
        "Labels that could be shown; by default those of --data, else those that the first "
        "model which names any was trained with, else those in the log.",
    )
    split = override("test", 'Rows of --data, perhaps sliced: "train[:2000]".')
    seed = override(
        0, "Of the folds in which click rates are predicted, and of --data that is made."
    )
    least_effective_share = like(
        FeedbackOptions,
        help="Refuse a model of which the log says less: effective sample size as a share of the "
        "impressions.",
    )
    output = like(
        Loop, help="Write a page with plots to this file, or as replay.html into this folder."
    )

    def rules(self) -> Iterator[str]:
        yield from super().rules()
        twice = [name for name, times in Counter(self.model).items() if times > 1]
        if twice:
            yield f'--model "{twice[0]}" is given twice: give every model once.'
