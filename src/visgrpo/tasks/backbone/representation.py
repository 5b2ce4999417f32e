"""Fine-tune a backbone for classification by GRPO-RM: `visgrpo representation`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch

from visgrpo.data.batches import CachedInputs, InputFunction, batch_columns
from visgrpo.data.inputs import PixelInputs, pixel_inputs, shifted
from visgrpo.data.preprocess import Preprocess
from visgrpo.data.read import read
from visgrpo.data.table import Splits, Table
from visgrpo.errors import UserError
from visgrpo.measures.held_out import HeldOut
from visgrpo.measures.over import logits_of
from visgrpo.measures.probes import Labelled, feature_measures, retention_measure
from visgrpo.methods.class_set import ClassSetGRPO, ImageView
from visgrpo.methods.counts import Counting
from visgrpo.methods.labels import LabelGRPO
from visgrpo.methods.method import Method
from visgrpo.models.backbone import Backbone, RepresentationClassifier
from visgrpo.models.parts import Parts
from visgrpo.models.reference import CachedReference
from visgrpo.models.save import label_card, save
from visgrpo.models.whole import check_model_name
from visgrpo.objectives import check_objective
from visgrpo.rewards.sets import RewardSet, parse_rewards
from visgrpo.tasks.backbone import label_sets
from visgrpo.tasks.backbone.options import OF_GRPO_RM, RepresentationConfig
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
    asks_to_abstain,
    data_summary,
    info_of,
    load_data,
    run_stem,
    save_picture,
    selection_of,
    training_of,
    with_no_answer,
)
from visgrpo.tasks.lineage import divided
from visgrpo.tasks.options import RunConfig
from visgrpo.tasks.run import Job, Moment, Seen, Session
from visgrpo.tasks.task import Task

SPLITS = ("train", "validation", "test")


class RepresentationTask(Task):
    """A head on a backbone, and as much of the backbone as is wished, learn classes of images."""

    name = "representation"
    options = RepresentationConfig
    shown = ("accuracy", "knn.20", "softmax_regression")
    baseline: ClassVar[Mapping[str, Any] | None] = {"beta": 0.0, "feature_uniformity": 0.0}

    def run_name(self, options: RepresentationConfig) -> str:
        return f"representation-{run_stem(options.data)}-{options.method}"

    def set_up(self, options: RepresentationConfig, session: Session) -> Job:
        if options.feature_uniformity and session.processes.world_size > 1:
            raise UserError(
                "--feature-uniformity compares the images of a whole batch: it runs in one process."
            )
        check_model_name(options.model)
        if options.label_sets:
            return label_sets.set_up(options, session)
        run = options.part(RunConfig)
        images = divided(run, options.model, session)
        splits = load_data(images, session)
        if asks_to_abstain(options.reward):
            splits = with_no_answer(splits)
        classes = splits.train.classes
        rewards = parse_rewards(options.reward, options.reward_weights, classes)
        rewards.validate("group", batch_columns(splits.train), counted=True)
        counting = counting_of(options, rewards, session)
        if options.scope == "image":
            raise UserError(
                "--scope image is of masks: an image has one label here; take batch or running."
            )
        check_objective(objective_of(options, rewards), options.estimator, options.group_size)
        policy = policy_of(options, rewards, classes, session)
        each = refresh_every(options, splits.train)
        training = training_of(
            run, options.resolved_learning_rate(), splits.train, session, refresh_every=each
        )
        retained = {name: read(name, seed=options.seed) for name in options.retention}

        def new(parts: Parts) -> RepresentationClassifier:
            backbone = Backbone(parts.model)
            return RepresentationClassifier(
                backbone, classes, pool=options.pool, hidden=options.hidden
            )

        classifier, parts, has_answers = load_start(options, new, session)
        if options.beta and not has_answers:
            raise UserError(
                "--beta: KL to a start whose head is random would hold the model back from "
                "learning; start from a model that visgrpo tuned on these classes, or leave --beta "
                "at 0."
            )
        asked = None if OF_GRPO_RM.issuperset(options.reward) else rewards
        if options.select == "reward":
            asked = rewards
        held_out = _HeldOut(options, session, classifier, parts.preprocess, splits, retained, asked)
        inputs = held_out.inputs["train"]
        folder, info = session.run.path / "model", info_of(options, parts, images)
        return Job(
            model=classifier,
            method=_method(options, policy, counting, classifier, splits.train, inputs, session),
            rows=splits.train,
            inputs=inputs,
            training=training,
            validate=held_out.validation.scalars,
            look=held_out.look,
            save=lambda summary: save(classifier, parts, folder, label_card(summary), info),
            data=data_summary(options.data, splits),
            start=options.model,
            chosen_method=options.method,
            image_of=lambda index: save_picture(session, splits.train.images, index),
            selection=selection_of(
                options.select or ("accuracy" if options.by_labels else "reward")
            ),
            rate_of=rate_of(options),
            memory=counting,
        )


def _method(
    config: RepresentationConfig,
    policy: LabelGRPO,
    counting: Counting | None,
    classifier: RepresentationClassifier,
    train: Table,
    inputs: InputFunction,
    session: Session,
) -> Method:
    if config.method == "supervised":
        return supervised_of(config, train, session, ImageView())
    if config.beta:
        logits_MK = logits_of(classifier, train, inputs, session.processes)
        reference = CachedReference(logits_MK.to(session.processes.device))
        policy = replace(policy, beta=config.beta, reference=reference)
    if config.estimator == "sampled":
        return policy
    uniformity = config.feature_uniformity
    return ClassSetGRPO(policy, feature_uniformity=uniformity, counting=counting)


class _HeldOut:
    """The images as the model sees them, and the measures of its head and of its features.

    Args:
        retained: data sets that are not tuned on, whose features are measured too.
        rewards: that answers are measured by; None for none.
    """

    def __init__(
        self,
        config: RepresentationConfig,
        session: Session,
        classifier: RepresentationClassifier,
        preprocess: Preprocess,
        splits: Splits,
        retained: Mapping[str, Splits],
        rewards: RewardSet | None = None,
    ) -> None:
        self._config, self._processes = config, session.processes
        self._classifier, self._preprocess = classifier, preprocess
        self._parts = {name: getattr(splits, name) for name in SPLITS}
        self._retained = retained
        self._features = Features(classifier, preprocess, config, session)
        self._measured: dict[str, Any] | None = None
        self.inputs = {name: self._inputs_of(name) for name in SPLITS}
        self.validation, self._test = (
            HeldOut.at_start(
                classifier, self._parts[name], self.inputs[name], session.processes, rewards
            )
            for name in ("validation", "test")
        )

    def look(self, moment: Moment) -> Seen:
        measures = self._test.start() if moment == "before" else self._test.now()
        measures |= self._feature_measures()
        return Seen(measures, shifts=self._shifts(), retention=self._retention())

    def _inputs_of(self, split: str) -> InputFunction:
        """What the model takes of a split: features that were computed once, or pixels."""
        dataset = self._parts[split]
        if self._features.are_inputs:
            return self._computed(dataset)
        augmentations = self._config.augment if split == "train" else ()
        return pixel_inputs(dataset, self._preprocess, augmentations)

    def _computed(self, dataset: Table) -> CachedInputs:
        return CachedInputs(self._features.of(dataset, PixelInputs(dataset, self._preprocess)))

    def _feature_measures(self) -> dict[str, Any]:
        """Measure the backbone's features now; of a frozen one, only once."""
        probes = self._config.probes()
        if not probes:
            return {}
        if self._measured is None or not self._features.frozen:
            rows = {name: self._labelled(self._parts[name], name) for name in SPLITS}
            classes, device = len(self._parts["train"].classes), self._processes.device
            self._measured = feature_measures(**rows, classes=classes, probes=probes, device=device)
        return self._measured

    def _labelled(self, dataset: Table, split: str | None = None) -> Labelled:
        """The features of a data set with its labels.

        Args:
            split: of which the inputs at hand will do, unless they change from epoch to epoch.
        """
        made = self.inputs[split] if split is not None else None
        if not isinstance(made, CachedInputs):
            made = None
        if made is not None and self._features.are_inputs:
            features_MD = made.inputs_M
        else:
            pixels = made or PixelInputs(dataset, self._preprocess)
            features_MD = self._features.of(dataset, pixels)
        return Labelled(features_MD, torch.from_numpy(dataset.labels))

    def _shifts(self) -> dict[str, dict[str, float]]:
        """Measure the head on shifted test images."""
        measures: dict[str, dict[str, float]] = {}
        for name in dict.fromkeys(self._config.shifts):
            dataset = shifted(self._parts["test"], name, seed=self._config.seed)
            made: InputFunction = PixelInputs(dataset, self._preprocess)
            if self._features.are_inputs:
                made = self._computed(dataset)
            logits_MK = logits_of(self._classifier, dataset, made, self._processes)
            right_M = logits_MK.argmax(dim=1) == torch.from_numpy(dataset.labels)
            measures[name] = {"accuracy": right_M.double().mean().item()}
        return measures

    def _retention(self) -> dict[str, float]:
        """Measure the features by kNN on data sets that are not tuned on."""
        return {
            name: retention_measure(
                self._labelled(splits.train),
                self._labelled(splits.test),
                classes=len(splits.train.classes),
            )
            for name, splits in self._retained.items()
        }
