"""Fine-tune a backbone for classification by GRPO-RM: `visgrpo representation`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

from visgrpo.data.batches import InputFunction, batch_columns
from visgrpo.data.dataset import ImageDataset
from visgrpo.data.sources import load_splits
from visgrpo.errors import UserError
from visgrpo.measures.held_out import HeldOut, logits_of
from visgrpo.methods.class_set import ClassSetGRPO, ClassSetSupervised
from visgrpo.methods.labels import LabelGRPO
from visgrpo.methods.method import Method
from visgrpo.models.backbone import Backbone
from visgrpo.models.backbone_loading import BackboneParts
from visgrpo.models.card import model_card
from visgrpo.models.loading import check_model_name
from visgrpo.models.reference import CachedReference
from visgrpo.models.representation import RepresentationClassifier
from visgrpo.models.representation_saving import save_representation
from visgrpo.objectives import check_objective
from visgrpo.rewards.sets import RewardSet, parse_rewards
from visgrpo.tasks.backbone.feature_job import FeatureJob
from visgrpo.tasks.backbone.shared import (
    adapt,
    load_start,
    objective_of,
    options_of,
    rate_of,
)
from visgrpo.tasks.backbone_configs import RepresentationConfig
from visgrpo.tasks.baseline import supervised_baseline
from visgrpo.tasks.ending import finish
from visgrpo.tasks.session import (
    Session,
    batches_of,
    begin,
    data_info,
    data_summary,
    load_data,
    open_session,
    run_stem,
    save_picture,
)
from visgrpo.training.trainer import Trainer


def train_representation(config: RepresentationConfig) -> dict[str, Any]:
    """Run the whole job and return its summary, which is also in OUTPUT/summary.json.

    Raises:
        UserError: for settings, data or rewards that cannot work.
        Interrupted: when asked to stop; the run can be resumed.
    """
    session = open_session(config, f"representation-{run_stem(config.data)}-{config.method}")
    if config.feature_uniformity and session.processes.world_size > 1:
        raise UserError(
            "--feature-uniformity compares the images of a whole batch: it runs in one process."
        )
    check_model_name(config.model)
    splits = load_data(config, session)
    rewards = parse_rewards(config.reward, config.reward_weights, splits.train.classes)
    rewards.validate("group", batch_columns(splits.train))
    check_objective(objective_of(config), config.estimator, config.group_size)
    policy = _policy(config, rewards, splits.train.classes, session)
    options = options_of(config, splits.train, session)
    retained = {name: load_splits(name, seed=config.seed) for name in config.retention}

    def new(parts: BackboneParts) -> RepresentationClassifier:
        return RepresentationClassifier(
            Backbone(parts.model), splits.train.classes, pool=config.pool, hidden=config.hidden
        )

    start, parts, has_answers = load_start(config, new, session)
    classifier = cast(RepresentationClassifier, start)
    if config.beta and not has_answers:
        raise UserError(
            "--beta: KL to a start whose head is random would hold the model back from learning; "
            "start from a model that visgrpo tuned on these classes, or leave --beta at 0."
        )
    adapt(classifier, config, session)
    job = FeatureJob(config, session, classifier, parts, splits, retained)
    inputs = {name: job.inputs(name) for name in ("train", "validation", "test")}
    held_out = {
        name: HeldOut.at_start(classifier, getattr(splits, name), inputs[name], session.processes)
        for name in ("validation", "test")
    }
    before = {**held_out["test"].start(), **job.feature_measures(inputs)}
    shifts_before, retention_before = job.shifts(), job.retention()
    trainer = Trainer(
        classifier,
        _method(config, policy, classifier, splits.train, inputs["train"], session),
        batches_of(config, splits.train, inputs["train"], session, config.minibatches),
        options,
        processes=session.processes,
        run=session.run,
        evaluate=held_out["validation"].scalars,
        title=config.method,
        image_of=lambda index: save_picture(session, splits.train.images, index),
        rate_of=rate_of(config),
    )
    begin(session, "representation")  # only now: whatever was wrong has left no folder behind
    baseline = supervised_baseline(
        train_representation, config, session, beta=0.0, feature_uniformity=0.0
    )
    session.start_trackers()
    result = trainer.train(session.checkpoint)
    classifier.eval()
    return finish(
        session,
        result,
        recipe="representation",
        method=config.method,
        model=config.model,
        data=data_summary(config, splits),
        before=before,
        after={**held_out["test"].now(), **job.feature_measures(inputs)},
        baseline=baseline,
        retention=_pairs(retention_before, job.retention()),
        shifts=_pairs(shifts_before, job.shifts()),
        save=lambda summary: _save(classifier, parts, config, session, summary),
    )


def _policy(
    config: RepresentationConfig, rewards: RewardSet, classes: tuple[str, ...], session: Session
) -> LabelGRPO:
    """Return the policy without its reference, which needs the model."""
    return LabelGRPO(
        rewards=rewards,
        objective=objective_of(config),
        classes=classes,
        shards=session.processes,
        estimator=config.estimator,
        group_size=config.group_size,
        class_subset=config.class_subset,
        entropy_weight=config.entropy_weight,
        seed=config.seed,
    )


def _method(
    config: RepresentationConfig,
    policy: LabelGRPO,
    classifier: RepresentationClassifier,
    train: ImageDataset,
    inputs: InputFunction,
    session: Session,
) -> Method:
    if config.method == "supervised":
        return ClassSetSupervised()
    if config.beta:
        logits_MK = logits_of(classifier, train, inputs, session.processes)
        reference = CachedReference(logits_MK.to(session.processes.device))
        policy = replace(policy, beta=config.beta, reference=reference)
    if config.estimator == "sampled":
        return policy
    return ClassSetGRPO(policy, feature_uniformity=config.feature_uniformity)


def _pairs(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: {"before": before[name], "after": after[name]} for name in before}


def _save(
    classifier: RepresentationClassifier,
    parts: BackboneParts,
    config: RepresentationConfig,
    session: Session,
    summary: Mapping[str, Any],
) -> None:
    info = {
        "start": config.model,
        "method": config.method,
        **data_info(config),
    }
    folder = session.run.path / "model"
    save_representation(classifier, parts, folder, model_card(summary), info)
