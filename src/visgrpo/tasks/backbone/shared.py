"""What `representation` and `segmentation` share: objective, start, what trains, features."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from visgrpo.data.batches import InputFunction
from visgrpo.data.kept import weights_key
from visgrpo.data.preprocess import Preprocess
from visgrpo.data.table import Table
from visgrpo.errors import UserError
from visgrpo.measures.feature_cache import cached_features
from visgrpo.measures.over import outputs_of
from visgrpo.methods.class_set import ClassSetSupervised, View
from visgrpo.methods.counts import Counting
from visgrpo.methods.labels import LabelGRPO
from visgrpo.models.backbone import RepresentationClassifier, Segmenter
from visgrpo.models.load import HEAD_FILE, load_backbone, load_representation
from visgrpo.models.options import Lora
from visgrpo.models.parts import Parts
from visgrpo.models.trains import adapt, encoder_is_frozen, keep_weights
from visgrpo.objectives import Objective, preset
from visgrpo.rewards.sets import RewardSet
from visgrpo.tasks.backbone.options import BackboneRunConfig
from visgrpo.tasks.images import losses_of
from visgrpo.tasks.run import Session

BackboneModel = RepresentationClassifier | Segmenter


def objective_of(config: BackboneRunConfig, rewards: RewardSet) -> Objective:
    """Return GRPO's objective with the options that override it.

    What a score of counts pays is a difference of scores: divided by its deviation it is none. And
    masks drawn at once differ by little but chance, which the division would blow up.
    """
    scale = {"scale": "none"} if rewards.counted or rewards.of_masks else {}
    return preset("grpo", **{**scale, **config.changes()})


def counting_of(config: BackboneRunConfig, rewards: RewardSet, session: Session) -> Counting | None:
    """Return what counts masks or batches, where a reward is a score of them.

    Raises:
        UserError: for a scope that nothing is the score of, and an estimator that cannot count.
    """
    if config.method == "supervised":
        return None
    if not rewards.counted:
        if config.scope is not None:
            raise UserError(
                f"--scope {config.scope} is what miou, dice, macro-f1 and fbeta:B are the score "
                "of: name one with --reward."
            )
        return None
    if config.estimator != "exact":
        raise UserError(
            f'Reward "{next(iter(rewards.counted))}" takes --estimator exact: classes weighted by '
            "the policy are what its counts are expected under."
        )
    return Counting(rewards, config.scope or "running", session.processes)


def policy_of(
    config: BackboneRunConfig, rewards: RewardSet, classes: tuple[str, ...], session: Session
) -> LabelGRPO:
    """Return the policy without its reference, which needs the model."""
    return config.part(
        LabelGRPO,
        rewards=rewards,
        objective=objective_of(config, rewards),
        classes=classes,
        shards=session.processes,
        beta=0.0,
    )


def supervised_of(
    config: BackboneRunConfig, train: Table, session: Session, view: View
) -> ClassSetSupervised:
    """Return what learns from labels by the losses that were asked for.

    Raises:
        UserError: for a loss of whole batches in several processes.
    """
    losses, shares_K = losses_of(config, train, session)
    return ClassSetSupervised(view, losses, shares_K, config.scope == "image")


def refresh_every(config: BackboneRunConfig, train: Table) -> int:
    """Return how many steps an old model lasts; cross-entropy asks none."""
    if config.method == "supervised":
        return 1
    return config.refresh_steps(len(train) // config.batch_size)


def load_start(
    config: BackboneRunConfig,
    new: Callable[[Parts], BackboneModel],
    session: Session,
) -> tuple[Any, Parts, bool]:
    """Load the start, choose what of it trains, and bring it to the device.

    Its own head is kept where it answers the same question.

    Args:
        new: puts a new head on a backbone.

    Returns:
        The model, its parts, and whether the head was kept.

    Raises:
        UserError: for a model that is not there or does not fit the job, and for a choice that it,
            or this number of processes, cannot follow.
    """
    torch.manual_seed(config.seed)  # the head's start
    parts = load_backbone(config.model)
    session.note(*parts.notes)
    model, kept = new(parts), False
    if (Path(config.model) / HEAD_FILE).exists():
        saved, saved_parts = load_representation(config.model)
        kept = _question(saved) == _question(model)
        if kept:
            model, parts = saved.train(), saved_parts
        session.say(
            f"The head of {config.model} is kept."
            if kept
            else f"note: the head of {config.model} has another task, classes or width: a new one."
        )
    _adapt(model, config, session)
    return model, parts, kept


def rate_of(config: BackboneRunConfig) -> Callable[[str], float]:
    """Return the share of the learning rate by the name of a parameter."""
    return lambda name: 1.0 if name.startswith("head.") else config.backbone_rate


class Features:
    """A backbone's features as they are now; of a frozen one from the cache on disk.

    Where no pixel changes either, the model takes them as its inputs from here on.
    """

    def __init__(
        self,
        model: BackboneModel,
        preprocess: Preprocess,
        config: BackboneRunConfig,
        session: Session,
    ) -> None:
        self._model, self._preprocess = model, preprocess
        self._config, self._session = config, session
        self.frozen = encoder_is_frozen(model)
        self._weights = weights_key(model.backbone) if self.frozen else ""
        self.are_inputs = self.frozen and not config.augment
        model.inputs_are_features = self.are_inputs
        if self.are_inputs:
            session.say("The backbone is frozen: its features are computed once.")

    def of(self, dataset: Any, inputs: InputFunction) -> Tensor:
        """Return the features (M, …) of a data set, given what makes its pixels."""
        model, training = self._model, self._model.training
        model.eval()
        if self.frozen:
            features_M = self._cached(dataset, inputs)
        else:
            features_M = outputs_of(model.features, dataset, inputs, self._session.processes)
        model.train(training)
        return features_M

    def _cached(self, dataset: Any, inputs: InputFunction) -> Tensor:
        model, config = self._model, self._config
        key = {
            "weights": self._weights,
            "model": model.backbone.plain.config.to_json_string(),
            "preprocess": repr(self._preprocess),
            "features": model.pool if isinstance(model, RepresentationClassifier) else "dense",
            "precision": config.computes_in,
        }
        folder = Path(config.cache).expanduser() if config.cache else None
        return cached_features(
            model.features, dataset, inputs, self._session.processes, key=key, folder=folder
        )


def _adapt(model: BackboneModel, config: BackboneRunConfig, session: Session) -> None:
    is_last = config.train == "last-blocks"
    train = f"last:{config.last_blocks}" if is_last else config.train
    torch.manual_seed(config.seed)  # the adapters' start
    adapt(model, [train], config.part(Lora))
    if session.processes.world_size > 1 and _keeps_batch_statistics(model):
        raise UserError(
            f"--train {config.train}: this {model.backbone.plain.config.model_type} normalises by "
            "the statistics of a batch, and every process would have its own: run it in one "
            "process, or take --train frozen."
        )
    keep_weights(model, config.weights)
    model.to(session.processes.device)


def _keeps_batch_statistics(model: nn.Module) -> bool:
    """Whether training moves what is neither a weight nor the same in every process."""
    return any(isinstance(part, nn.BatchNorm2d) and part.training for part in model.modules())


def _question(model: BackboneModel) -> tuple[Any, ...]:
    """What a head answers, and how."""
    return type(model), model.classes, model.hidden, getattr(model, "pool", None)
