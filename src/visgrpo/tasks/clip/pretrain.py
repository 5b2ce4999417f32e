"""Pre-train a small CLIP from random weights, so that every story can start offline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from visgrpo.data.batches import Batch
from visgrpo.data.inputs import pixel_inputs
from visgrpo.data.table import Table, join
from visgrpo.errors import UserError
from visgrpo.measures.held_out import HeldOut
from visgrpo.methods.method import LossResult, WithoutGroups
from visgrpo.models.clip import ClipClassifier, ContrastiveClip, check_templates, class_prompts
from visgrpo.models.save import label_card, save
from visgrpo.models.small import SmallClip, build_small_clip
from visgrpo.objectives.losses import contrastive_loss
from visgrpo.tasks.images import data_info, data_summary, load_data, shared_with, training_of
from visgrpo.tasks.pretrain_configs import PretrainBackboneConfig, PretrainClipConfig
from visgrpo.tasks.run import Job, Moment, Seen
from visgrpo.tasks.session import Session
from visgrpo.tasks.task import Task


@dataclass(frozen=True)
class Contrastive(WithoutGroups):
    """The contrastive loss as a method of the trainer; it has no groups."""

    captions: tuple[tuple[str, ...], ...]  # of every training row, one or several to draw from
    seed: int

    def loss(self, model: Any, batch: Batch, groups: None, step: int) -> LossResult:
        """Return the loss of a batch, with one caption drawn for each image."""
        rng = np.random.default_rng([self.seed, step])
        choices_N = [self.captions[row] for row in batch.indices_N.tolist()]
        texts = [choices[rng.integers(len(choices))] for choices in choices_N]
        distinct, caption_of_N = np.unique(texts, return_inverse=True)
        columns_N = torch.from_numpy(caption_of_N).to(batch.inputs.device)
        logits_NU = model(batch.inputs, distinct.tolist())
        loss = contrastive_loss(logits_NU.float(), columns_N)
        return LossResult(loss, {"accuracy": _matched(logits_NU, columns_N)})


class PretrainClipTask(Task):
    """Both towers of a small CLIP learn to find an image's caption in the batch, and back.

    Validation and test accuracy are zero-shot, on the class names of ``--data``.
    """

    name = "pretrain clip"
    options = PretrainClipConfig

    def run_name(self, options: PretrainClipConfig) -> str:
        return "tiny-clip"

    def set_up(self, options: PretrainClipConfig, session: Session) -> Job:
        refuse_several_processes(self.name, session)
        check_templates(options.templates)
        splits = load_data(options, session)
        classes = splits.train.classes
        train = join([splits.train, *more_training_data(options, session)])
        captions = captions_of(train, options)
        training = training_of(options, train, session)
        sizes = SmallClip(**shared_with(options, SmallClip))
        vocabulary_texts = sorted({text for choices in captions for text in choices})
        parts = build_small_clip(sizes, vocabulary_texts, options.seed)
        classifier = ClipClassifier(
            parts.model, parts.tokenizer, classes, options.templates, logit_scale="clamped"
        )
        classifier.to(session.processes.device)
        validation, test = (
            HeldOut.at_start(
                classifier, part, pixel_inputs(part, parts.preprocess), session.processes
            )
            for part in (splits.validation, splits.test)
        )

        def look(moment: Moment) -> Seen:
            if moment == "before":
                return Seen(test.start())
            classifier.forget_text()
            return Seen(test.now())

        def keep(summary: Mapping[str, Any]) -> None:
            info = {"classes": list(classes), "templates": list(options.templates)}
            card, folder = label_card(summary), session.run.path / "model"
            save(parts.model, parts, folder, card, {**info, **data_info(options)})

        return Job(
            model=ContrastiveClip(parts.model, parts.tokenizer),
            method=Contrastive(captions, options.seed),
            rows=train,
            inputs=pixel_inputs(train, parts.preprocess, options.augment),
            training=training,
            validate=validation.scalars,
            look=look,
            save=keep,
            data=data_summary(options, splits),
            start="a small CLIP from random weights",
            chosen_method="contrastive",
            title="pretrain",
        )


def captions_of(dataset: Table, config: PretrainClipConfig) -> tuple[tuple[str, ...], ...]:
    """Return the captions of every row: its own, or its class name in every template."""
    own = dataset.columns.get(config.caption_column)
    by_class = [tuple(texts) for texts in class_prompts(dataset.classes, config.templates)]
    classes = dataset.labels.tolist()
    if own is None:
        return tuple(by_class[label] for label in classes)
    return tuple(
        (str(text),) if text else by_class[label] for text, label in zip(own, classes, strict=True)
    )


def refuse_several_processes(job: str, session: Session) -> None:
    """Raise UserError where a batch would be divided."""
    if session.processes.world_size > 1:
        raise UserError(f"{job} runs in one process: its loss compares a whole batch.")


def more_training_data(
    config: PretrainClipConfig | PretrainBackboneConfig, session: Session
) -> list[Table]:
    """Return the training images of further data sets; their own splits are respected."""
    parts = []
    for spec in config.more_data:
        name, _, rows = spec.partition("@")
        other = replace(config, data=name, train_slice=rows or None)
        parts.append(load_data(other, session).train)
    return parts


def _matched(logits_NU: Tensor, columns_N: Tensor) -> Tensor:
    return (logits_NU.detach().argmax(dim=1) == columns_N).float().mean()
