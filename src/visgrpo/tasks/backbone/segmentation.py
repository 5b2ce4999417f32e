"""Fine-tune a backbone for a class at every pixel by GRPO-RM: `visgrpo segmentation`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image

from visgrpo.data.batches import CachedInputs, InputFunction
from visgrpo.data.inputs import SegmentationInputs, preprocessed_masks, segmentation_inputs
from visgrpo.data.preprocess import Preprocess
from visgrpo.data.roles import image_and_mask
from visgrpo.data.table import Splits, Table
from visgrpo.errors import UserError, nearest
from visgrpo.files import write_whole
from visgrpo.measures.masks import (
    HeldOutMasks,
    add_to_confusion,
    colour_mask,
    hex_palette,
    segmentation_measures,
)
from visgrpo.methods.class_set import ClassSetGRPO, PixelView
from visgrpo.methods.counts import Counting
from visgrpo.methods.method import Method
from visgrpo.methods.whole_masks import WholeMaskGRPO
from visgrpo.models.backbone import Backbone, Segmenter
from visgrpo.models.parts import Parts
from visgrpo.models.save import label_card, save
from visgrpo.models.whole import check_model_name
from visgrpo.rewards.labels import ClassCredit
from visgrpo.rewards.sets import RewardSet, parse_rewards
from visgrpo.tasks.backbone.options import OF_GRPO_RM, SegmentationConfig
from visgrpo.tasks.backbone.shared import (
    Features,
    counting_of,
    load_start,
    objective_of,
    policy_of,
    rate_of,
    refresh_every,
    supervised_of,
)
from visgrpo.tasks.images import (
    data_summary,
    info_of,
    load_data,
    run_stem,
    training_of,
    write_png,
)
from visgrpo.tasks.lineage import divided
from visgrpo.tasks.options import RunConfig
from visgrpo.tasks.run import Job, Moment, Seen, Session
from visgrpo.tasks.task import Task
from visgrpo.training.run_directory import RunDirectory

BACKGROUND_NAMES = ("background", "null")
BACKGROUND_REWARD = 0.5  # c/2, as in GRPO-RM
SELECTIONS = {None: "miou", "accuracy": "pixel_accuracy", "nll": "-nll", "reward": "reward"}


class SegmentationTask(Task):
    """A decoder on a backbone, and as much of the backbone as is wished, learn masks."""

    name = "segmentation"
    options = SegmentationConfig
    shown = ("miou", "pixel_accuracy")
    baseline: ClassVar[Mapping[str, Any] | None] = {}

    def run_name(self, options: SegmentationConfig) -> str:
        return f"segmentation-{run_stem(options.data)}-{options.method}"

    def set_up(self, options: SegmentationConfig, session: Session) -> Job:
        check_model_name(options.model)
        run = options.part(RunConfig)
        images = divided(run, options.model, session)
        named = {"classes_file": options.classes_file, "ignore_index": options.ignore_index}
        splits = load_data(images, session, "masks", **named)
        classes = splits.train.classes
        rewards = rewards_of(options, classes)
        counting = counting_of(options, rewards, session)
        session.note(*background_notes(options, classes), *variance_notes(options))
        each = refresh_every(options, splits.train)
        training = training_of(
            run, options.resolved_learning_rate(), splits.train, session, refresh_every=each
        )

        def new(parts: Parts) -> Segmenter:
            return Segmenter(Backbone(parts.model), classes, hidden=options.hidden)

        segmenter, parts, _ = load_start(options, new, session)
        preprocess = parts.preprocess.for_dense(options.image_size)
        asked = measured_rewards(options, rewards)
        inputs = _inputs(segmenter, splits, preprocess, options, session)
        validation, test = (
            HeldOutMasks(segmenter, getattr(splits, name), inputs[name], session.processes, asked)
            for name in ("validation", "test")
        )
        _say_padding(segmenter, splits, preprocess, session)
        pictures = Pictures(test, preprocess, options.pictures)

        def look(moment: Moment) -> Seen:
            if moment == "after":
                pictures.write(session.run)
            return Seen(test.now())

        folder, info = session.run.path / "model", info_of(options, parts, images)
        info |= {"image_size": options.image_size, "ignore_index": options.ignore_index}
        return Job(
            model=segmenter,
            method=_method(options, rewards, counting, segmenter, splits.train, session),
            rows=splits.train,
            inputs=inputs["train"],
            training=training,
            validate=validation.scalars,
            look=look,
            save=lambda summary: save(segmenter, parts, folder, label_card(summary), info),
            data=data_summary(options.data, splits),
            start=options.model,
            chosen_method=options.method,
            selection=SELECTIONS[options.select],
            rate_of=rate_of(options),
            memory=counting,
        )


def rewards_of(config: SegmentationConfig, classes: tuple[str, ...]) -> RewardSet:
    """Return the rewards, with the accuracy reward of background pixels lowered.

    Raises:
        UserError: for an unknown reward or background class.
    """
    rewards = parse_rewards(config.reward, config.reward_weights, classes)
    masks = config.estimator == "sampled" and (config.method != "supervised" or rewards.of_masks)
    rewards.validate("group", (), counted=True, masks=bool(masks))
    background = _background(config, classes)
    if background is None:
        return rewards
    credit_K = torch.ones(len(classes))
    credit_K[background] = BACKGROUND_REWARD
    if config.background_reward is not None:
        credit_K[background] = config.background_reward
    functions = tuple(
        ClassCredit(credit_K) if name == "hard" else function
        for name, function in zip(rewards.names, rewards.functions, strict=True)
    )
    return replace(rewards, functions=functions)


def measured_rewards(config: SegmentationConfig, rewards: RewardSet) -> RewardSet | None:
    """Return the rewards if answers can be measured by them: those of GRPO-RM are of policies.

    Raises:
        UserError: where they cannot, and are to decide the best step.
    """
    of_policies = (OF_GRPO_RM - {"hard"}) & set(config.reward)
    if config.select == "reward" and of_policies:
        raise UserError(
            f"--select reward: {min(of_policies)} is paid for how unsure a policy is, which is no "
            "measure of its masks; select by accuracy, nll or, without --select, mIoU."
        )
    return None if of_policies else rewards


def background_notes(config: SegmentationConfig, classes: tuple[str, ...]) -> tuple[str, ...]:
    """Return which class is the background, and what a right pixel of it earns."""
    background = _background(config, classes)
    if background is None or "hard" not in config.reward or config.method != "grpo-rm":
        return ()
    earned = BACKGROUND_REWARD if config.background_reward is None else config.background_reward
    return (
        f'"{classes[background]}" (id {background}) is the background: a right pixel of it earns '
        f"{earned:g}, of other classes 1.",
    )


def variance_notes(config: SegmentationConfig) -> tuple[str, ...]:
    """Return a warning where masks are drawn whole."""
    if config.estimator != "sampled" or config.method == "supervised":
        return ()
    return (
        f"each of {config.group_size} whole masks earns one number for all of its pixels, which "
        "says little of any one: expect to need many more steps, or a larger --group-size, than "
        "with miou, dice or fbeta:B, which --estimator exact takes without drawing.",
    )


def _background(config: SegmentationConfig, classes: tuple[str, ...]) -> int | None:
    if config.background is not None:
        if config.background not in classes:
            raise UserError(
                f'--background "{config.background}" is no class. '
                f"{nearest(config.background, classes)}"
            )
        return classes.index(config.background)
    if classes[0].lower() in BACKGROUND_NAMES:
        return 0
    if config.background_reward is not None:
        raise UserError(
            f'--background-reward: the first class is "{classes[0]}", not background or null; name '
            "the background with --background."
        )
    return None


def _inputs(
    segmenter: Segmenter,
    splits: Splits,
    preprocess: Preprocess,
    config: SegmentationConfig,
    session: Session,
) -> dict[str, InputFunction]:
    """Pixels and masks, or dense features computed once where the backbone stays as it is."""
    features = Features(segmenter, preprocess, config, session)

    def made(dataset: Table, augmentations: tuple[str, ...] = ()) -> InputFunction:
        if not features.are_inputs:
            return segmentation_inputs(dataset, preprocess, augmentations)
        features_M = features.of(dataset, SegmentationInputs(dataset, preprocess))
        return CachedInputs(features_M, preprocessed_masks(dataset, preprocess))

    return {
        "train": made(splits.train, config.augment),
        "validation": made(splits.validation),
        "test": made(splits.test),
    }


def _say_padding(
    segmenter: Segmenter, splits: Splits, preprocess: Preprocess, session: Session
) -> None:
    """Say where the patches reach over the edge of the images."""
    mask_HW = preprocess.mask(splits.train.masks[0], splits.train.ignore_index)
    stride = segmenter.backbone.stride
    height, width = (-(-side // stride) * stride for side in mask_HW.shape)
    if (height, width) != tuple(mask_HW.shape):
        session.say(
            f"note: images of {mask_HW.shape[0]} × {mask_HW.shape[1]} pixels are padded to "
            f"{height} × {width}: patches have {stride} pixels. The padding counts nowhere."
        )


def _method(
    config: SegmentationConfig,
    rewards: RewardSet,
    counting: Counting | None,
    segmenter: Segmenter,
    train: Table,
    session: Session,
) -> Method:
    view = PixelView(
        segmenter.backbone.stride, train.ignore_index, segmenter.upsample, config.decide_at
    )
    if config.method == "supervised":
        return supervised_of(config, train, session, view)
    if config.estimator == "sampled":
        return config.part(
            WholeMaskGRPO,
            rewards=rewards,
            objective=objective_of(config, rewards),
            classes=train.classes,
            view=view,
            shards=session.processes,
        )
    policy = policy_of(config, rewards, train.classes, session)
    return ClassSetGRPO(policy, view, counting=counting)


class Pictures:
    """Some rows of a data set, evenly spaced; their answers before are remembered when made.

    Args:
        held_out: the data set and the segmenter.
        preprocess: the segmenter's own, which gives pictures the size that masks have.
        count: pictures to draw; fewer where there are fewer rows.
    """

    def __init__(self, held_out: HeldOutMasks, preprocess: Preprocess, count: int) -> None:
        self._held_out, self._preprocess = held_out, preprocess
        rows = len(held_out.dataset)
        self._rows = np.unique(np.linspace(0, rows - 1, min(count, rows)).round().astype(int))
        self._before = held_out.answers(self._rows.tolist()) if count else []

    def write(self, run: RunDirectory) -> None:
        """Write segments.jsonl, its pictures and the palette into a run directory."""
        if not self._before:
            return
        after = self._held_out.answers(self._rows.tolist())
        if not run.writes:
            return
        classes = self._held_out.dataset.classes
        lines = [
            json.dumps(self._one(run, row, before_HW, after_HW))
            for row, before_HW, after_HW in zip(
                self._rows.tolist(), self._before, after, strict=True
            )
        ]
        write_whole(run.path / "segments.jsonl", "\n".join(lines) + "\n")
        palette = json.dumps(hex_palette(classes), indent=1, ensure_ascii=False)
        write_whole(run.path / "palette.json", palette)

    def _one(
        self, run: RunDirectory, row: int, before_HW: np.ndarray, after_HW: np.ndarray
    ) -> dict[str, Any]:
        dataset = self._held_out.dataset
        image, ids_HW = image_and_mask(dataset, row)
        truth_HW = self._preprocess.mask(ids_HW, dataset.ignore_index).numpy()
        size = (truth_HW.shape[1], truth_HW.shape[0])
        pictures = {
            "image": image if image.size == size else image.resize(size, Image.Resampling.BICUBIC),
            "truth": colour_mask(truth_HW, dataset.classes),
            "before": colour_mask(before_HW, dataset.classes),
            "after": colour_mask(after_HW, dataset.classes),
        }
        line: dict[str, Any] = {"index": row}
        for what, picture in pictures.items():
            name = f"samples/test-{row}{'' if what == 'image' else f'-{what}'}.png"
            write_png(run.path / name, picture)
            line[what] = name
        line["iou"] = {
            "before": self._mean_iou(before_HW, truth_HW),
            "after": self._mean_iou(after_HW, truth_HW),
        }
        return line

    def _mean_iou(self, answers_HW: np.ndarray, truth_HW: np.ndarray) -> float:
        """Return the mean IoU of one picture, over the classes that are in it or answered."""
        dataset = self._held_out.dataset
        K = len(dataset.classes)
        confusion_KK = torch.zeros(K, K, dtype=torch.int64)
        add_to_confusion(
            confusion_KK,
            torch.from_numpy(answers_HW),
            torch.from_numpy(truth_HW.astype(np.int64)),
            dataset.ignore_index,
        )
        return float(segmentation_measures(confusion_KK, dataset.classes)["miou"])
