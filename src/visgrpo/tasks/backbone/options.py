"""The options of `visgrpo representation` and `visgrpo segmentation`. Light to import."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from visgrpo.data.options import Masks
from visgrpo.models.options import Adapt
from visgrpo.options import like, option, override
from visgrpo.tasks.clip.options import ClipConfig
from visgrpo.tasks.options import Rivals

OF_GRPO_RM = {"hard", "uniformity", "uniformity-wrong", "spread"}
Shift = Literal["blur", "noise", "jpeg", "grey"]


@dataclass(frozen=True)
class BackboneRunConfig(Adapt, Rivals):
    """What both jobs with a backbone and a head have in common."""

    heading = "Backbone and head"

    combination = advantage_baseline = temperature = override(hidden=True)

    model: str = override(
        "facebook/dinov2-small",
        "Folder or Hub name of the backbone, or of a model that visgrpo tuned, head included.",
    )
    method: Literal["grpo-rm", "supervised"] = override(
        "grpo-rm",
        "GRPO over the class set, or cross-entropy as the baseline: same head, data and budget.",
    )
    select: Literal["reward", "accuracy", "nll"] | None = option(
        None,
        "What decides the best step on validation data; by default mIoU of masks, and of images "
        "accuracy where the rewards are those of GRPO-RM and in supervised runs, else the reward.",
    )
    epochs = override(20.0, "Passes over the training images.")
    learning_rate = override(
        help="The head's; by default 1e-3 for a batch of 256 images and in proportion for others."
    )
    final_learning_rate = override(0.01, "Share of the learning rate that it falls to.")
    warmup = override(0.0, "Share of the steps in which the learning rate rises.")
    backbone_rate: float = option(
        0.1, "Learning rate of a backbone that trains, as a share of the head's.", within=">= 0"
    )
    reward = override(
        ("hard", "uniformity"),
        "hard (the accuracy reward), uniformity, uniformity-wrong, spread, or any reward of clip; "
        "with --estimator exact also miou, dice, macro-f1 or fbeta:B, scores of whole masks.",
    )
    reward_weights = override(
        help="One number for each reward; by default 1. That of hard is the c of GRPO-RM."
    )
    scope: Literal["image", "batch", "running"] | None = override(  # type: ignore[assignment]
        None,
        "What miou, dice, macro-f1 and fbeta are the score of: each image, the batch, or (the "
        "default) the last ten batches or so.",
        choices=("image", "batch", "running"),
    )
    scale = override(
        None,
        "What advantages are divided by: by default std, which makes them z-scores over the "
        "classes, and none where a score of counts is among the rewards.",
        choices=("std", "none"),
    )
    epsilon_low = override(0.2, "The ratio is clipped below 1 - this.")
    epsilon_high = override(0.2, "The ratio is clipped above 1 + this.")
    inner_passes = override(
        help="Passes over each batch against the same old model; from 2 on the clip acts."
    )
    refresh_every = override(
        "1",
        'Steps after which the old model is brought up to date, or "epoch".',
        of=str,
        within="",
    )
    train: Literal["frozen", "last-blocks", "lora", "full"] = override(
        "frozen",
        "What trains beside the head: nothing, the last blocks, low-rank adapters, or everything.",
    )
    last_blocks = like(ClipConfig, 1, "How many blocks --train last-blocks trains.", within="> 0")
    hidden: int = option(
        256, "Width of the head's hidden layer; 0 for a linear head.", within=">= 0"
    )
    cache: str | None = option(
        None, "Folder for the features of a frozen backbone; by default ~/.cache/visgrpo/features."
    )

    def rules(self) -> Iterator[str]:
        yield from super().rules()
        if self.refresh_every != "epoch" and not _is_count(self.refresh_every):
            yield f'--refresh-every takes a number of steps or "epoch", not "{self.refresh_every}".'

    def changes(self) -> dict[str, Any]:
        """Return what these options change of the objective; --scope is of scores of counts."""
        return {name: value for name, value in super().changes().items() if name != "scope"}

    @property
    def by_labels(self) -> bool:
        """Whether labels are the point: in supervised runs, and of the rewards of GRPO-RM."""
        return self.method == "supervised" or OF_GRPO_RM.issuperset(self.reward)

    def resolved_learning_rate(self) -> float:
        """The head's learning rate, or its default."""
        return self.learning_rate or 1e-3 * self.batch_size / 256

    def refresh_steps(self, steps_per_epoch: int) -> int:
        """How many steps an old model lasts."""
        return steps_per_epoch if self.refresh_every == "epoch" else int(self.refresh_every)


@dataclass(frozen=True)
class RepresentationConfig(BackboneRunConfig):
    """Fine-tune a vision backbone and a projection head for classification, by GRPO-RM."""

    example = "visgrpo representation --model facebook/dinov2-small --data photos/ --train lora"
    common = (
        "data model method train reward epochs batch_size learning_rate baseline output seed "
        "resume dry_run"
    )

    batch_size = override(1024, "Images of a step, over all processes.")
    label_sets: bool = option(
        False,
        "Images have any number of labels, lists in the label column, and each is answered yes or "
        "no; rewards are of whole sets, drawn --group-size at a time: f1, jaccard or your own.",
    )
    pool: Literal["cls", "mean", "both"] = option(
        "cls", "Features of an image: the class token, the mean of its patches, or both."
    )
    estimator = override(
        "uniform",
        "Every class weighted equally (GRPO-RM) or by the old model, or --group-size drawn ones.",
    )
    group_size = override(help="Classes drawn for each image by the sampled estimator.")
    class_subset: int | None = option(
        None,
        "Take the true class and this many less one others, drawn anew in every step, as the "
        "group.",
        within="> 0",
    )
    beta = override(0.0, "Weight of KL(policy ‖ start); needs a start that has a head already.")
    feature_uniformity: float = option(
        0.0,
        "Weight of the log mean Gaussian potential of the features before the last layer.",
        within=">= 0",
    )
    probe: tuple[Literal["knn", "knn-weighted", "softmax-regression", "none"], ...] = option(
        ("knn", "softmax-regression"),
        "Classifiers that judge the backbone's own features, before and after.",
    )
    shifts: tuple[Shift, ...] = option(
        (), "Shifted copies of the test images to evaluate on, before and after."
    )
    retention = like(
        ClipConfig,
        help="Data sets that are not tuned on: kNN accuracy of their features, before and after.",
    )

    def rules(self) -> Iterator[str]:
        yield from super().rules()
        if self.class_subset is not None and self.estimator != "uniform":
            yield "--class-subset goes with --estimator uniform: its classes are equal."
        if self.feature_uniformity and self.estimator == "sampled":
            yield "--feature-uniformity goes with --estimator uniform or exact."
        if self.label_sets:
            yield from self._rules_of_sets()
        if "none" in self.probe and len(self.probe) > 1:
            yield "--probe none goes alone."
        if self.beta and self.augment:
            yield (
                "--beta compares with the start's answer to each image, made once: drop --augment."
            )
        if self.feature_uniformity and (self.accumulation > 1 or self.minibatches > 1):
            yield (
                "--feature-uniformity compares the images of a whole batch: it does not go with "
                "--accumulation or --minibatches."
            )
        if self.feature_uniformity and self.batch_size < 2:
            yield "--feature-uniformity compares images: --batch-size must be 2 or more."

    def _rules_of_sets(self) -> Iterator[str]:
        of_one = "shifts retention beta feature_uniformity class_subset"
        yield from self.idle((of_one, True, "is of images with one label each, not --label-sets"))
        if self.method == "supervised":
            return
        if self.estimator != "sampled":
            yield "--label-sets draws whole sets: add --estimator sampled."
        if self.reward == RepresentationConfig.reward:
            yield "--label-sets takes rewards of whole sets: add --reward f1, or jaccard."

    def probes(self) -> tuple[str, ...]:
        """The probes that were asked for."""
        return () if "none" in self.probe else tuple(dict.fromkeys(self.probe))


@dataclass(frozen=True)
class SegmentationConfig(Masks, BackboneRunConfig):
    """Fine-tune a vision backbone and a decoder for a class at every pixel, by GRPO-RM."""

    example = "visgrpo segmentation --model facebook/dinov2-small --data scans/ --train last-blocks"
    common = (
        "data model method train reward epochs batch_size learning_rate baseline output seed "
        "resume dry_run"
    )

    mask_column = override(hidden=False)
    group_size = override(help="Masks drawn for each image by the sampled estimator.")
    beta = override(hidden=True)

    data = override(
        "shapes",
        "Built-in (shapes), a folder, or the name of a Hub data set; with images and masks.",
    )
    batch_size = override(256, "Images of a step, over all processes.")
    hidden = override(64, "Width of the decoder's hidden layer; 0 for a linear decoder.")
    decide_at: Literal["patch", "pixel"] = option(
        "patch",
        "Where the loss is taken: at patches, by their most frequent label, or at every pixel.",
    )
    background: str | None = option(
        None,
        "Name of the background class; by default the first class if it is called so, or null.",
    )
    background_reward: float | None = option(
        None,
        "What a right answer earns there, as a share of what hard pays elsewhere; by default 0.5.",
        within=">= 0",
    )
    estimator = override(
        "uniform",
        "Every class weighted equally (GRPO-RM) or by the old model; or --group-size whole masks "
        "are drawn, for your own functions of masks.",
    )
    pictures: int = option(
        8, "Test images drawn with their masks before and after, for the page.", within=">= 0"
    )

    def rules(self) -> Iterator[str]:
        yield from super().rules()
        lowers_background = self.background_reward is not None or self.background is not None
        if lowers_background and "hard" not in self.reward:
            yield (
                "--background and --background-reward lower what hard pays: there is no hard among "
                "the rewards. credit:FILE pays by class."
            )
        if self.label_column is not None:
            yield "--label-column: images of this job have masks; name theirs with --mask-column."
        for side in self.image_size or ():
            if side < 1:
                yield f"--image-size takes height and width in pixels, not {side}."


def _is_count(text: str) -> bool:
    return text.isdecimal() and int(text) > 0
