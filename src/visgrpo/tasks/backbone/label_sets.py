"""Images with any number of labels: `visgrpo representation --label-sets`, and what it saves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from PIL import Image

from visgrpo.data.batches import CachedInputs, InputFunction
from visgrpo.data.inputs import PixelInputs, pixel_inputs
from visgrpo.data.preprocess import Preprocess
from visgrpo.data.table import Splits
from visgrpo.errors import UserError
from visgrpo.measures.label_sets import HeldOutSets, set_measures, sets_of
from visgrpo.measures.over import logits_of
from visgrpo.methods.label_sets import SetView
from visgrpo.methods.whole_masks import WholeMaskGRPO
from visgrpo.models.backbone import Backbone, RepresentationClassifier
from visgrpo.models.load import load_representation
from visgrpo.models.parts import Parts
from visgrpo.models.save import label_card, save
from visgrpo.rewards.sets import parse_rewards
from visgrpo.tasks.backbone.options import RepresentationConfig
from visgrpo.tasks.backbone.shared import (
    Features,
    load_start,
    objective_of,
    rate_of,
    refresh_every,
    supervised_of,
)
from visgrpo.tasks.images import (
    data_summary,
    info_of,
    load_data,
    save_picture,
    training_of,
)
from visgrpo.tasks.lineage import divided
from visgrpo.tasks.options import RunConfig
from visgrpo.tasks.run import Job, Seen, Session
from visgrpo.tasks.use import rows_of
from visgrpo.tasks.use_options import EvaluateConfig, PredictConfig
from visgrpo.training.processes import Processes

KIND = "label sets"
SELECTIONS = {"reward": "reward", "accuracy": "f1", "nll": "-nll"}


def set_up(options: RepresentationConfig, session: Session) -> Job:
    """Return the job of a head that says yes or no to each label.

    Raises:
        UserError: for settings, data, models or rewards that cannot work.
    """
    run = options.part(RunConfig)
    images = divided(run, options.model, session)
    splits = load_data(images, session, KIND)
    classes = splits.train.classes
    supervised = options.method == "supervised"
    rewards = parse_rewards(options.reward, options.reward_weights, classes)
    if not supervised or rewards.of_masks:
        rewards.validate("group", (), masks=True)
    training = training_of(
        run,
        options.resolved_learning_rate(),
        splits.train,
        session,
        refresh_every=refresh_every(options, splits.train),
    )

    def new(parts: Parts) -> RepresentationClassifier:
        backbone = Backbone(parts.model)
        return RepresentationClassifier(backbone, classes, pool=options.pool, hidden=options.hidden)

    classifier, parts, _ = load_start(options, new, session)
    inputs = _inputs(classifier, parts.preprocess, splits, options, session)
    asked = rewards if rewards.of_masks else None
    validation, test = (
        HeldOutSets(classifier, getattr(splits, name), inputs[name], session.processes, asked)
        for name in ("validation", "test")
    )
    view = SetView()
    method = (
        supervised_of(options, splits.train, session, view)
        if supervised
        else options.part(
            WholeMaskGRPO,
            rewards=rewards,
            objective=objective_of(options, rewards),
            classes=classes,
            view=view,
            shards=session.processes,
        )
    )
    folder, info = session.run.path / "model", info_of(options, parts, images)
    return Job(
        model=classifier,
        method=method,
        rows=splits.train,
        inputs=inputs["train"],
        training=training,
        validate=validation.scalars,
        look=lambda moment: Seen(test.now()),
        save=lambda summary: save(
            classifier, parts, folder, label_card(summary), {**info, "task": "label-sets"}
        ),
        data=data_summary(options.data, splits),
        start=options.model,
        chosen_method=options.method,
        image_of=lambda index: save_picture(session, splits.train.images, index),
        selection=SELECTIONS[options.select or ("reward" if asked else "accuracy")],
        rate_of=rate_of(options),
    )


def _inputs(
    classifier: RepresentationClassifier,
    preprocess: Preprocess,
    splits: Splits,
    options: RepresentationConfig,
    session: Session,
) -> Mapping[str, InputFunction]:
    """Pixels, or features computed once where the backbone stays as it is."""
    features = Features(classifier, preprocess, options, session)

    def made(name: str) -> InputFunction:
        dataset = getattr(splits, name)
        if features.are_inputs:
            return CachedInputs(features.of(dataset, PixelInputs(dataset, preprocess)))
        return pixel_inputs(dataset, preprocess, options.augment if name == "train" else ())

    return {name: made(name) for name in ("train", "validation", "test")}


class SetEvaluation:
    """The measures of saved models of sets."""

    def __init__(self, config: EvaluateConfig, processes: Processes) -> None:
        self._rows = rows_of(config, KIND)
        self._size, self._processes = config.batch_size, processes
        self.title = f"{self._rows.name}, {len(self._rows)} images"

    def measures(self, row: str, name: str) -> Mapping[str, Any]:
        classifier, preprocess = _load(name, self._processes)
        rows = self._rows
        if sorted(classifier.classes) != sorted(rows.classes):
            odd = min(set(classifier.classes) ^ set(rows.classes))
            raise UserError(
                f'"{name}" answers other labels than {rows.name} has: only one has "{odd}".'
            )
        inputs = PixelInputs(rows, preprocess)
        logits_MK = logits_of(classifier, rows, inputs, self._processes, batch_size=self._size)
        order = [classifier.classes.index(label) for label in rows.classes]
        measures = set_measures(logits_MK[:, order], sets_of(rows))
        return {row: {"examples": len(rows), **measures}}


class SetPrediction:
    """The labels of an image, each with the probability that it is there."""

    def __init__(self, config: PredictConfig, processes: Processes) -> None:
        self._classifier, self._preprocess = _load(config.model, processes)
        self._top_k, self._device = config.top_k, processes.device

    @torch.no_grad()
    def __call__(self, path: str, image: Image.Image) -> dict[str, Any]:
        pixels = self._preprocess(image)[None].to(self._device)
        p_K = self._classifier(pixels)[0].sigmoid()
        classes = self._classifier.classes
        top = p_K.topk(min(self._top_k, len(classes)))
        return {
            "classes": [classes[k] for k in top.indices.tolist()],
            "probabilities": top.values.tolist(),
            "answer": [name for name, p in zip(classes, p_K.tolist(), strict=True) if p > 0.5],
        }


def _load(name: str, processes: Processes) -> tuple[RepresentationClassifier, Preprocess]:
    model, parts = load_representation(name)
    classifier = cast(RepresentationClassifier, model).to(processes.device).eval()
    return classifier, parts.preprocess
