"""The options of `visgrpo representation` and `visgrpo segmentation`. Light to import."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from visgrpo.errors import UserError
from visgrpo.tasks.checks import not_negative, positive, share
from visgrpo.tasks.configs import RunConfig

Shift = Literal["blur", "noise", "jpeg", "grey"]


@dataclass(frozen=True)
class BackboneRunConfig(RunConfig):
    """What both jobs with a backbone and a head have in common."""

    model: str = "facebook/dinov2-small"
    """Folder or Hub name of the backbone, or of a model that visgrpo tuned, head included."""
    method: Literal["grpo-rm", "supervised"] = "grpo-rm"
    """GRPO over the class set, or cross-entropy as the baseline: same head, data and budget."""
    baseline: bool = False
    """First train the supervised baseline of the same budget, into OUTPUT/baseline."""
    epochs: float = 20.0
    """Passes over the training images."""
    learning_rate: float | None = None
    """The head's; by default 1e-3 for a batch of 256 images and in proportion for others."""
    final_learning_rate: float = 0.01
    """Share of the learning rate that it falls to."""
    warmup: float = 0.0
    """Share of the steps in which the learning rate rises."""
    backbone_rate: float = 0.1
    """Learning rate of a backbone that trains, as a share of the head's."""
    reward: tuple[str, ...] = ("hard", "uniformity")
    """hard (the accuracy reward), uniformity, uniformity-wrong, spread, or any reward of clip."""
    reward_weights: tuple[float, ...] | None = None
    """One number for each reward; by default 1. That of hard is the c of GRPO-RM."""
    scale: Literal["std", "none"] = "std"
    """What advantages are divided by: std makes them z-scores over the classes."""
    epsilon_low: float = 0.2
    """The ratio is clipped below 1 - this."""
    epsilon_high: float = 0.2
    """The ratio is clipped above 1 + this."""
    entropy_weight: float = 0.0
    """Weight of the entropy bonus."""
    inner_passes: int = 1
    """Passes over each batch against the same old model; from 2 on the clip acts."""
    minibatches: int = 1
    """Updates that each pass is split into."""
    refresh_every: str = "1"
    """Steps after which the old model is brought up to date, or "epoch"."""
    train: Literal["frozen", "last-blocks", "lora", "full"] = "frozen"
    """What trains beside the head: nothing, the last blocks, low-rank adapters, or everything."""
    last_blocks: int = 1
    """How many blocks --train last-blocks trains."""
    lora_rank: int = 8
    """Rank of the adapters."""
    lora_alpha: float = 16.0
    """Adapters are scaled by this over their rank."""
    lora_dropout: float = 0.0
    """Dropout before the adapters."""
    hidden: int = 256
    """Width of the head's hidden layer; 0 for a linear head."""
    cache: str | None = None
    """Folder for the features of a frozen backbone; by default ~/.cache/visgrpo/features."""

    def check(self) -> None:
        super().check()
        positive(self, "inner_passes", "minibatches", "last_blocks", "lora_rank", "lora_alpha")
        not_negative(self, "epsilon_low", "epsilon_high", "entropy_weight", "backbone_rate")
        not_negative(self, "hidden")
        share(self, "lora_dropout")
        if self.baseline and self.method == "supervised":
            raise UserError("--baseline is for grpo-rm: this run is the baseline itself.")
        if self.refresh_every != "epoch" and not _is_count(self.refresh_every):
            raise UserError(
                f'--refresh-every takes a number of steps or "epoch", not "{self.refresh_every}".'
            )

    def resolved_learning_rate(self) -> float:
        """The head's learning rate, or its default."""
        return self.learning_rate or 1e-3 * self.batch_size / 256

    def refresh_steps(self, steps_per_epoch: int) -> int:
        """How many steps an old model lasts."""
        return steps_per_epoch if self.refresh_every == "epoch" else int(self.refresh_every)


@dataclass(frozen=True)
class RepresentationConfig(BackboneRunConfig):
    """Fine-tune a vision backbone and a projection head for classification, by GRPO-RM."""

    batch_size: int = 1024
    """Images of a step, over all processes."""
    pool: Literal["cls", "mean", "both"] = "cls"
    """Features of an image: the class token, the mean of its patches, or both."""
    estimator: Literal["uniform", "exact", "sampled"] = "uniform"
    """Every class weighted equally (GRPO-RM) or by the old model, or --group-size drawn ones."""
    group_size: int = 8
    """Classes drawn for each image by the sampled estimator."""
    class_subset: int | None = None
    """Take the true class and this many less one others, drawn anew in every step, as the group."""
    beta: float = 0.0
    """Weight of KL(policy ‖ start); needs a start that has a head already."""
    feature_uniformity: float = 0.0
    """Weight of the log mean Gaussian potential of the features before the last layer."""
    probe: tuple[Literal["knn", "softmax-regression", "none"], ...] = ("knn", "softmax-regression")
    """Classifiers that judge the backbone's own features, before and after."""
    shifts: tuple[Shift, ...] = ()
    """Shifted copies of the test images to evaluate on, before and after."""
    retention: tuple[str, ...] = ()
    """Data sets that are not tuned on: kNN accuracy of their features, before and after."""

    def check(self) -> None:
        super().check()
        positive(self, "group_size")
        positive(self, "class_subset", optional=True)
        not_negative(self, "beta", "feature_uniformity")
        if self.class_subset is not None and self.estimator != "uniform":
            raise UserError("--class-subset goes with --estimator uniform: its classes are equal.")
        if self.feature_uniformity and self.estimator == "sampled":
            raise UserError("--feature-uniformity goes with --estimator uniform or exact.")
        if "none" in self.probe and len(self.probe) > 1:
            raise UserError("--probe none goes alone.")
        if self.beta and self.augment:
            raise UserError(
                "--beta compares with the start's answer to each image, made once: drop --augment."
            )
        if self.feature_uniformity and (self.accumulation > 1 or self.minibatches > 1):
            raise UserError(
                "--feature-uniformity compares the images of a whole batch: it does not go with "
                "--accumulation or --minibatches."
            )
        if self.feature_uniformity and self.batch_size < 2:
            raise UserError("--feature-uniformity compares images: --batch-size must be 2 or more.")

    def probes(self) -> tuple[str, ...]:
        """The probes that were asked for."""
        return () if "none" in self.probe else tuple(dict.fromkeys(self.probe))


@dataclass(frozen=True)
class SegmentationConfig(BackboneRunConfig):
    """Fine-tune a vision backbone and a decoder for a class at every pixel, by GRPO-RM."""

    data: str = "shapes"
    """Built-in (shapes), a folder, or the name of a Hub data set; with images and masks."""
    mask_column: str | None = None
    """Column of the masks, where its name is not a usual one."""
    classes_file: str | None = None
    """Class names, one on each line; by default the classes.txt beside the data."""
    ignore_index: int = 255
    """Mask value of pixels that have no label."""
    image_size: tuple[int, int] | None = None
    """Height and width that images and masks are resized to; by default their own."""
    batch_size: int = 256
    """Images of a step, over all processes."""
    hidden: int = 64
    """Width of the decoder's hidden layer; 0 for a linear decoder."""
    decide_at: Literal["patch", "pixel"] = "patch"
    """Where the loss is taken: at patches, by their most frequent label, or at every pixel."""
    background: str | None = None
    """Name of the background class; by default the first class if it is called so, or null."""
    background_reward: float | None = None
    """What a right answer earns there, as a share of what hard pays elsewhere; by default 0.5."""
    estimator: Literal["uniform", "exact"] = "uniform"
    """Every class weighted equally (GRPO-RM) or by the old model."""
    pictures: int = 8
    """Test images drawn with their masks before and after, for the page."""

    def check(self) -> None:
        super().check()
        not_negative(self, "background_reward", optional=True)
        not_negative(self, "pictures")
        lowers_background = self.background_reward is not None or self.background is not None
        if lowers_background and "hard" not in self.reward:
            raise UserError(
                "--background and --background-reward lower what hard pays: there is no hard among "
                "the rewards. credit:FILE pays by class."
            )
        if self.label_column is not None:
            raise UserError(
                "--label-column: images of this job have masks; name theirs with --mask-column."
            )
        for side in self.image_size or ():
            if side < 1:
                raise UserError(f"--image-size takes height and width in pixels, not {side}.")


def _is_count(text: str) -> bool:
    return text.isdecimal() and int(text) > 0
