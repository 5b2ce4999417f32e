"""Fine-tune a CLIP classifier with rewards over class labels: `visgrpo clip`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from visgrpo.data.batches import CachedInputs, InputFunction, batch_columns
from visgrpo.data.inputs import pixel_inputs
from visgrpo.data.read import read_split
from visgrpo.data.table import Splits, Table
from visgrpo.measures.held_out import HeldOut
from visgrpo.measures.over import logits_of, outputs_of
from visgrpo.methods.labels import LabelGRPO
from visgrpo.methods.method import Method
from visgrpo.methods.options import options_of
from visgrpo.methods.supervised import Supervised, WarmStart
from visgrpo.models.clip import ClipClassifier, class_prompts
from visgrpo.models.load import load_clip
from visgrpo.models.options import Lora
from visgrpo.models.parts import Parts, model_folder
from visgrpo.models.reference import CachedReference, Reference, live_reference
from visgrpo.models.save import label_card, save, save_adapter
from visgrpo.models.trains import LORA, adapt, encoder_is_frozen, keep_weights
from visgrpo.models.whole import check_model_name
from visgrpo.objectives import Objective, check_objective, preset
from visgrpo.rewards.sets import RewardSet, parse_rewards
from visgrpo.tasks.clip.agreement import agreements, with_rows
from visgrpo.tasks.clip.options import ClipConfig
from visgrpo.tasks.extension import WITHOUT_GROUPS, extension_of
from visgrpo.tasks.images import (
    asks_to_abstain,
    data_summary,
    info_of,
    losses_of,
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
from visgrpo.training.options import falling

REFERENCE_BYTES = 4 * 1024**3  # of log-probs kept for training images


class ClipTask(Task):
    """A CLIP classifier learns from rewards over the labels that it gives."""

    name = "clip"
    options = ClipConfig
    baseline: ClassVar[Mapping[str, Any] | None] = {"warm_start": 0, **WITHOUT_GROUPS}

    def run_name(self, options: ClipConfig) -> str:
        return f"clip-{run_stem(options.data)}-{options.method}"

    def set_up(self, options: ClipConfig, session: Session) -> Job:
        start = model_folder(options.model)
        check_model_name(start)
        run = options.part(RunConfig)
        images = divided(run, start, session)
        extension = extension_of(options, images, session)
        judged = agreements(options.reward)
        splits = with_rows(extension.splits) if judged else extension.splits
        if asks_to_abstain(options.reward):
            splits = with_no_answer(splits)
        class_prompts(splits.train.classes, options.templates)
        made = {**extension.rewards, **judged}
        rewards = parse_rewards(options.reward, options.reward_weights, splits.train.classes, made)
        objective = objective_of(options)
        supervised = options.method == "supervised"  # no groups, so rewards are metrics of images
        rewards.validate("batch" if supervised else objective.scope, batch_columns(splits.train))
        if not supervised:
            check_objective(objective, options.estimator, options.group_size)
        retained = {name: read_split(name, "test", seed=options.seed) for name in options.retention}
        training = training_of(
            run,
            options.resolved_learning_rate(),
            splits.train,
            session,
            capped=extension.few_images,
        )

        for judge in judged.values():
            judge.ask(options, splits, session)
        parts = load_clip(start)
        classifier = _classifier(parts, splits.train.classes, options, session)
        inputs = _inputs(classifier, parts, splits, options, session)
        rewards, grpo = extension.start(classifier, inputs, rewards, objective)
        validation, test = (
            HeldOut.at_start(
                classifier,
                part,
                inputs[name],
                session.processes,
                rewards,
                extension.votes(name),
                options.temperature,
            )
            for name, part in (("validation", splits.validation), ("test", splits.test))
        )
        retention = _retention(classifier, parts, retained, options, session)
        reference = _reference(classifier, splits.train, inputs["train"], options, session)

        def look(moment: Moment) -> Seen:
            if moment == "before":  # asks the rewards, too, for the first time
                measures, kept = test.start(), {name: o.start() for name, o in retention.items()}
            else:
                classifier.forget_text()
                measures, kept = test.now(), {name: o.now() for name, o in retention.items()}
            accuracies = {name: other["accuracy"] for name, other in kept.items()}
            return Seen(measures, retention=accuracies, more=extension.facts)

        return Job(
            model=classifier,
            method=method_of(
                options, objective, rewards, splits.train, reference, session, training.steps, grpo
            ),
            rows=splits.train,
            inputs=inputs["train"],
            training=training,
            validate=lambda: _with_objective(validation.scalars(), options),
            look=look,
            save=lambda summary: _save(classifier, parts, options, images, session, summary),
            data=data_summary(options.data, splits),
            start=options.model,
            chosen_method=options.method,
            selection=selection_of(options.resolved_select()),
            by_default={"select": options.resolved_select(), **options_of(objective)},
            begun=extension.begin,
            image_of=lambda index: save_picture(session, splits.train.images, index),
        )


def objective_of(config: ClipConfig) -> Objective:
    """Return the method's preset with the options that override it."""
    name = "grpo" if config.method == "supervised" else config.method.replace("-", "_")
    scale = config.scale or config.resting_scale(preset(name).scale)
    return preset(name, **{**config.changes(), "scale": scale})


def what_trains(config: ClipConfig) -> list[str]:
    """Return the words for what trains."""
    last = [f"last:{config.last_blocks}"] if config.last_blocks else []
    return [config.side, *last, *([LORA] if config.lora else [])]


def method_of(
    config: ClipConfig,
    objective: Objective,
    rewards: RewardSet,
    train: Table,
    reference: Reference | None,
    session: Session,
    steps: int,
    grpo: Callable[..., LabelGRPO] = LabelGRPO,
) -> Method:
    """Return what is optimised: cross-entropy, GRPO, or one after the other.

    Args:
        steps: of the whole run, over which the supervised part falls if it does.
        grpo: makes groups and their loss.
    """
    labelled = _labelled(len(train), config)
    losses = losses_of(config, train, session) if config.method == "supervised" else (("ce",), None)
    supervised = Supervised(rewards, train.classes, reference, labelled, *losses)
    if config.method == "supervised":
        return supervised
    fades = config.supervised_schedule
    own: dict[str, Any] = {
        "rewards": rewards,
        "objective": objective,
        "classes": train.classes,
        "shards": session.processes,
        "reference": reference,
        "supervised_schedule": (
            None if fades == "constant" else lambda step: falling(fades, step / steps)
        ),
        "labelled": labelled,
    }
    groups = grpo(**{**config.shared(LabelGRPO), **own})
    return WarmStart(supervised, groups, config.warm_start) if config.warm_start else groups


def _classifier(
    parts: Parts, classes: tuple[str, ...], config: ClipConfig, session: Session
) -> ClipClassifier:
    """Return the start, in which what was asked for trains, on the device."""
    classifier = ClipClassifier(
        parts.model, parts.tokenizer, classes, config.templates, logit_scale=config.logit_scale
    )
    session.note(*parts.notes, *classifier.notes)
    torch.manual_seed(config.seed)  # the adapters' start
    adapt(classifier, what_trains(config), config.part(Lora))
    keep_weights(classifier, config.weights)
    return classifier.to(session.processes.device)


def _inputs(
    classifier: ClipClassifier,
    parts: Parts,
    splits: Splits,
    config: ClipConfig,
    session: Session,
) -> dict[str, InputFunction]:
    """Pixels, or features computed once where the image tower stays as it is."""
    found: dict[str, InputFunction] = {
        "train": pixel_inputs(splits.train, parts.preprocess, config.augment),
        "validation": pixel_inputs(splits.validation, parts.preprocess),
        "test": pixel_inputs(splits.test, parts.preprocess),
    }
    if not encoder_is_frozen(classifier) or config.augment:
        return found
    session.say("The image tower is frozen: its features are computed once.")
    classifier.eval()
    pooled: dict[str, InputFunction] = {
        name: CachedInputs(
            outputs_of(classifier.features, getattr(splits, name), function, session.processes)
        )
        for name, function in found.items()
    }
    classifier.inputs_are_features = True
    return pooled


def _reference(
    classifier: ClipClassifier,
    train: Table,
    inputs: InputFunction,
    config: ClipConfig,
    session: Session,
) -> Reference | None:
    if not config.beta:
        return None
    fits = 4 * len(train) * len(train.classes) <= REFERENCE_BYTES
    if config.reference == "cached" or (config.reference == "auto" and fits and not config.augment):
        processes = session.processes
        logits_MK = logits_of(classifier, train, inputs, processes)
        return CachedReference(logits_MK.to(processes.device))
    if config.method == "supervised":
        return None  # it would only be logged, and eval/kl is anyway
    with session.processes.autocast():
        reference = live_reference(classifier, config.weights)
    session.say(f"Reference: live, by {reference.kind.replace('_', ' ')}.")
    return reference


def _retention(
    classifier: ClipClassifier,
    parts: Parts,
    retained: Mapping[str, Table],
    config: ClipConfig,
    session: Session,
) -> dict[str, HeldOut]:
    """Test splits of data sets that are not tuned on, with their own classes."""
    scores = {}
    for name, dataset in retained.items():
        other = ClipClassifier(
            classifier.encoder, parts.tokenizer, dataset.classes, config.templates
        )
        other.to(session.processes.device)
        inputs = pixel_inputs(dataset, parts.preprocess)
        scores[name] = HeldOut.at_start(other, dataset, inputs, session.processes)
    return scores


def _with_objective(measures: dict[str, float], config: ClipConfig) -> dict[str, float]:
    """Add what GRPO maximises, E[reward] + α·H - β·KL, where it decides."""
    if config.resolved_select() != "objective":
        return measures
    regular = config.entropy_weight * measures["entropy"] - config.beta * measures["kl"]
    return {**measures, "objective": measures["reward"] + regular}


def _labelled(rows: int, config: ClipConfig) -> Callable[[Tensor], Tensor] | None:
    """Which training rows show their label to cross-entropy; None for all."""
    if config.labelled_fraction == 1.0:
        return None
    chosen_M = torch.zeros(rows, dtype=torch.bool)
    order = np.random.default_rng([config.seed, rows]).permutation(rows)
    chosen_M[order[: max(1, round(config.labelled_fraction * rows))]] = True
    return lambda indices_N: chosen_M[indices_N.cpu()].to(indices_N.device)


def _save(
    classifier: ClipClassifier,
    parts: Parts,
    config: ClipConfig,
    data: RunConfig,
    session: Session,
    summary: Mapping[str, Any],
) -> None:
    folder = session.run.path / "model"
    info = info_of(config, parts, data)
    save(classifier, parts, folder, label_card(summary), info)
    if config.lora and config.logit_scale == "frozen":
        save_adapter(classifier, session.run.path / "adapter", **info)
