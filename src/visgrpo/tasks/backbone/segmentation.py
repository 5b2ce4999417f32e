"""Fine-tune a backbone for a class at every pixel by GRPO-RM: `visgrpo segmentation`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import torch

from visgrpo.data.batches import CachedInputs, InputFunction
from visgrpo.data.inputs import SegmentationInputs, preprocessed_masks, segmentation_inputs
from visgrpo.data.preprocess import Preprocess
from visgrpo.data.segmentation import SegmentationDataset, SegmentationSplits
from visgrpo.data.segmentation_sources import load_segmentation_splits
from visgrpo.errors import UserError, nearest
from visgrpo.measures.feature_cache import weights_key
from visgrpo.measures.held_out_masks import HeldOutMasks
from visgrpo.methods.class_set import ClassSetGRPO, ClassSetSupervised
from visgrpo.methods.labels import LabelGRPO
from visgrpo.methods.method import Method
from visgrpo.methods.views import PixelView
from visgrpo.models.adapt_backbone import backbone_is_frozen
from visgrpo.models.backbone import Backbone
from visgrpo.models.backbone_loading import BackboneParts
from visgrpo.models.card import model_card
from visgrpo.models.loading import check_model_name
from visgrpo.models.representation import Segmenter
from visgrpo.models.representation_saving import save_representation
from visgrpo.rewards.labels import ClassCredit
from visgrpo.rewards.sets import RewardSet, parse_rewards
from visgrpo.tasks.backbone.pictures import Pictures
from visgrpo.tasks.backbone.shared import (
    adapt,
    frozen_features,
    load_start,
    objective_of,
    options_of,
    rate_of,
)
from visgrpo.tasks.backbone_configs import SegmentationConfig
from visgrpo.tasks.baseline import supervised_baseline
from visgrpo.tasks.ending import finish
from visgrpo.tasks.session import (
    Session,
    batches_of,
    begin,
    data_info,
    data_summary,
    open_session,
    run_stem,
    say_notes,
)
from visgrpo.training.trainer import Trainer

BACKGROUND_NAMES = ("background", "null")
BACKGROUND_REWARD = 0.5  # c/2, as in GRPO-RM


def train_segmentation(config: SegmentationConfig) -> dict[str, Any]:
    """Run the whole job and return its summary, which is also in OUTPUT/summary.json.

    Raises:
        UserError: for settings, data or rewards that cannot work.
        Interrupted: when asked to stop; the run can be resumed.
    """
    session = open_session(config, f"segmentation-{run_stem(config.data)}-{config.method}")
    check_model_name(config.model)
    splits = _load_data(config, session)
    rewards = rewards_of(config, splits.train.classes)
    options = options_of(config, splits.train, session)

    def new(parts: BackboneParts) -> Segmenter:
        return Segmenter(Backbone(parts.model), splits.train.classes, hidden=config.hidden)

    start, parts, _ = load_start(config, new, session)
    segmenter = cast(Segmenter, start)
    adapt(segmenter, config, session)
    preprocess = parts.preprocess.for_dense(config.image_size)
    inputs = _inputs(segmenter, splits, preprocess, config, session)
    held_out = {
        name: HeldOutMasks(segmenter, getattr(splits, name), inputs[name], session.processes)
        for name in ("validation", "test")
    }
    _say_padding(segmenter, splits, preprocess, session)
    before = held_out["test"].now()
    pictures = Pictures(held_out["test"], preprocess, config.pictures)
    trainer = Trainer(
        segmenter,
        _method(config, rewards, segmenter, splits.train, session),
        batches_of(config, splits.train, inputs["train"], session, config.minibatches),
        options,
        processes=session.processes,
        run=session.run,
        evaluate=held_out["validation"].scalars,
        selection="miou",
        title=config.method,
        rate_of=rate_of(config),
    )
    begin(session, "segmentation")  # only now: whatever was wrong has left no folder behind
    baseline = supervised_baseline(train_segmentation, config, session)
    session.start_trackers()
    result = trainer.train(session.checkpoint)
    segmenter.eval()
    after = held_out["test"].now()
    pictures.write(session.run)
    return finish(
        session,
        result,
        recipe="segmentation",
        method=config.method,
        model=config.model,
        data=data_summary(config, splits),
        before=before,
        after=after,
        baseline=baseline,
        save=lambda summary: _save(segmenter, parts, config, session, summary),
    )


def rewards_of(config: SegmentationConfig, classes: tuple[str, ...]) -> RewardSet:
    """Return the rewards, with the accuracy reward of background pixels lowered.

    Raises:
        UserError: for an unknown reward or background class.
    """
    rewards = parse_rewards(config.reward, config.reward_weights, classes)
    rewards.validate("group", ())
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


def _load_data(config: SegmentationConfig, session: Session) -> SegmentationSplits:
    splits = load_segmentation_splits(
        config.data,
        image_column=config.image_column,
        mask_column=config.mask_column,
        classes_file=config.classes_file,
        train_slice=config.train_slice,
        validation_fraction=config.validation_fraction,
        seed=config.seed,
        ignore_index=config.ignore_index,
        skip_bad_images=config.skip_bad_images,
    )
    say_notes(session, splits)
    return splits


def _inputs(
    segmenter: Segmenter,
    splits: SegmentationSplits,
    preprocess: Preprocess,
    config: SegmentationConfig,
    session: Session,
) -> dict[str, InputFunction]:
    """Pixels and masks, or dense features computed once where the backbone stays as it is."""
    parts = {name: getattr(splits, name) for name in ("train", "validation", "test")}
    if not backbone_is_frozen(segmenter) or config.augment:
        augmentations = {"train": config.augment}
        return {
            name: segmentation_inputs(part, preprocess, augmentations.get(name, ()))
            for name, part in parts.items()
        }
    session.say("The backbone is frozen: its features are computed once.")
    weights = weights_key(segmenter.backbone)

    def fixed(dataset: SegmentationDataset) -> CachedInputs:
        features_M = frozen_features(
            segmenter,
            dataset,
            SegmentationInputs(dataset, preprocess),
            preprocess,
            weights,
            config,
            session,
        )
        return CachedInputs(features_M, preprocessed_masks(dataset, preprocess))

    made: dict[str, InputFunction] = {name: fixed(part) for name, part in parts.items()}
    segmenter.inputs_are_features = True
    return made


def _say_padding(
    segmenter: Segmenter, splits: SegmentationSplits, preprocess: Preprocess, session: Session
) -> None:
    """Say where the patches reach over the edge of the images."""
    mask_HW = preprocess.mask(splits.train.mask(0), splits.train.ignore_index)
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
    segmenter: Segmenter,
    train: SegmentationDataset,
    session: Session,
) -> Method:
    view = PixelView(
        segmenter.backbone.stride, train.ignore_index, segmenter.upsample, config.decide_at
    )
    if config.method == "supervised":
        return ClassSetSupervised(view)
    policy = LabelGRPO(
        rewards=rewards,
        objective=objective_of(config),
        classes=train.classes,
        shards=session.processes,
        estimator=config.estimator,
        entropy_weight=config.entropy_weight,
        seed=config.seed,
    )
    return ClassSetGRPO(policy, view)


def _save(
    segmenter: Segmenter,
    parts: BackboneParts,
    config: SegmentationConfig,
    session: Session,
    summary: Mapping[str, Any],
) -> None:
    info = {
        "start": config.model,
        "method": config.method,
        **data_info(config),
        "image_size": config.image_size,
        "ignore_index": config.ignore_index,
    }
    folder = session.run.path / "model"
    save_representation(segmenter, parts, folder, model_card(summary), info)
