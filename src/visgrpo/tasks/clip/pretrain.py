"""Pre-train a small CLIP from random weights, so that every story can start offline."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from visgrpo.data.batches import Batch, BatchLoader
from visgrpo.data.dataset import ImageDataset
from visgrpo.data.inputs import pixel_inputs
from visgrpo.data.joining import join
from visgrpo.errors import UserError
from visgrpo.measures.held_out import HeldOut
from visgrpo.methods.method import LossResult, WithoutGroups
from visgrpo.models.card import model_card
from visgrpo.models.clip import ClipClassifier
from visgrpo.models.contrastive import ContrastiveClip
from visgrpo.models.prompts import check_templates, class_prompts
from visgrpo.models.saving import save_parts
from visgrpo.models.small_clip import SmallClip, build_small_clip
from visgrpo.objectives.losses import contrastive_loss
from visgrpo.tasks.ending import finish
from visgrpo.tasks.pretrain_configs import PretrainBackboneConfig, PretrainClipConfig
from visgrpo.tasks.session import (
    Session,
    begin,
    data_info,
    data_summary,
    load_data,
    open_session,
    training_options,
)
from visgrpo.training.trainer import Trainer


@dataclass(frozen=True)
class Contrastive(WithoutGroups):
    """The contrastive loss as a method of the trainer; it has no groups."""

    captions: tuple[tuple[str, ...], ...]  # of every training row, one or several to draw from
    seed: int

    def loss(self, model: Any, batch: Batch, groups: None, step: int) -> LossResult:
        """Return the loss of a batch, with one caption drawn for each image."""
        rng = np.random.default_rng([self.seed, step])
        rows = batch.indices_N.tolist()
        texts = [choices[rng.integers(len(choices))] for choices in self._choices(rows)]
        distinct, caption_of_N = np.unique(texts, return_inverse=True)
        columns_N = torch.from_numpy(caption_of_N).to(batch.inputs.device)
        logits_NU = model(batch.inputs, distinct.tolist())
        loss = contrastive_loss(logits_NU.float(), columns_N)
        return LossResult(loss, {"accuracy": _matched(logits_NU, columns_N)})

    def _choices(self, rows: list[int]) -> list[tuple[str, ...]]:
        return [self.captions[row] for row in rows]


def pretrain_clip(config: PretrainClipConfig) -> dict[str, Any]:
    """Run the whole job and return its summary.

    Validation and test accuracy are zero-shot, on the class names of ``--data``.

    Raises:
        UserError: for settings or data that cannot work.
    """
    session = open_session(config, "tiny-clip")
    if session.processes.world_size > 1:
        raise UserError("pretrain clip runs in one process: its loss compares a whole batch.")
    check_templates(config.templates)
    splits = load_data(config, session)
    train = join([splits.train, *more_training_data(config, session)])
    captions = captions_of(train, config)
    options = training_options(config, config.resolved_learning_rate(), train)
    sizes = SmallClip(
        image_size=config.image_size,
        patch_size=config.patch_size,
        width=config.width,
        layers=config.layers,
        heads=config.heads,
        features=config.features,
        vocabulary=config.vocabulary,
    )
    vocabulary_texts = sorted({text for choices in captions for text in choices})
    parts = build_small_clip(sizes, vocabulary_texts, config.seed)
    classifier = ClipClassifier(
        parts.model,
        parts.tokenizer,
        splits.train.classes,
        config.templates,
        logit_scale="clamped",
    )
    classifier.to(session.processes.device)
    pixels = {
        name: pixel_inputs(part, parts.preprocess)
        for name, part in (("validation", splits.validation), ("test", splits.test))
    }
    held_out = {
        name: HeldOut.at_start(classifier, getattr(splits, name), inputs, session.processes)
        for name, inputs in pixels.items()
    }
    trainer = Trainer(
        ContrastiveClip(parts.model, parts.tokenizer),
        Contrastive(captions, config.seed),
        BatchLoader(
            train,
            pixel_inputs(train, parts.preprocess, config.augment),
            batch_size=config.batch_size,
            seed=config.seed,
            workers=config.workers,
        ),
        options,
        processes=session.processes,
        run=session.run,
        evaluate=held_out["validation"].scalars,
        title="pretrain",
    )
    begin(session, "pretrain clip")
    session.start_trackers()
    result = trainer.train(session.checkpoint)
    classifier.forget_text()
    info = {
        "classes": list(splits.train.classes),
        "templates": list(config.templates),
        **data_info(config),
    }
    return finish(
        session,
        result,
        recipe="pretrain clip",
        method="contrastive",
        model="a small CLIP from random weights",
        data=data_summary(config, splits),
        before=held_out["test"].start(),
        after=held_out["test"].now(),
        save=lambda summary: save_parts(
            parts.model, parts, session.run.path / "model", model_card(summary), info
        ),
    )


def captions_of(dataset: ImageDataset, config: PretrainClipConfig) -> tuple[tuple[str, ...], ...]:
    """Return the captions of every row: its own, or its class name in every template."""
    own = dataset.columns.get(config.caption_column)
    by_class = [tuple(texts) for texts in class_prompts(dataset.classes, config.templates)]
    classes = dataset.labels.tolist()
    if own is None:
        return tuple(by_class[label] for label in classes)
    return tuple(
        (str(text),) if text else by_class[label] for text, label in zip(own, classes, strict=True)
    )


def more_training_data(
    config: PretrainClipConfig | PretrainBackboneConfig, session: Session
) -> list[ImageDataset]:
    """Return the training images of further data sets; their own splits are respected."""
    parts = []
    for spec in config.more_data:
        name, _, rows = spec.partition("@")
        other = replace(config, data=name, train_slice=rows or None)
        parts.append(load_data(other, session).train)
    return parts


def _matched(logits_NU: Tensor, columns_N: Tensor) -> Tensor:
    return (logits_NU.detach().argmax(dim=1) == columns_N).float().mean()
