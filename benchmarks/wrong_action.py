"""The "wrong action" loss: reward the prediction, differentiate the true label. It unlearns.

    python benchmarks/wrong_action.py --model START --data … [every option of `visgrpo clip`]

A loss that a well-known CLIP script uses. The reward is that of the *argmax* label, the log-prob
in the loss that of the *true* label. Where the prediction is right the two are one label and all
is well. Where it is wrong the advantage is negative, and the label that it pushes down is the
true one, which nobody had chosen: the images still to be learned are taught the reverse.
The log-prob must be that of the output that earned the reward (`visgrpo.methods.labels`).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from visgrpo.arguments import parse
from visgrpo.data.batches import Batch, BatchLoader
from visgrpo.data.inputs import pixel_inputs
from visgrpo.errors import UserError
from visgrpo.measures.held_out import HeldOut, logits_of
from visgrpo.methods.groups import policy_metrics
from visgrpo.methods.labels import Model, ReferenceLike
from visgrpo.methods.method import LossResult
from visgrpo.models.card import label_card
from visgrpo.models.clip import ClipClassifier
from visgrpo.models.load import load_clip
from visgrpo.models.reference import CachedReference
from visgrpo.models.save import save
from visgrpo.models.trains import adapt
from visgrpo.objectives import advantages, categorical_kl
from visgrpo.tasks.clip.train import what_trains
from visgrpo.tasks.configs import ClipConfig
from visgrpo.tasks.ending import finish
from visgrpo.tasks.session import begin, load_data, open_session, training_options
from visgrpo.training.trainer import Trainer


@dataclass(frozen=True)
class WrongAction:
    """L = -mean_n A_n·log π(true_n) + β·KL(π ‖ π_ref), A = batch z-score of 1[argmax_n = true_n].

    One output per image, hence statistics of the batch. The ratio is 1 on a first pass, so the
    log-prob stands for the clipped ratio: their gradients are equal.
    """

    reference: ReferenceLike
    beta: float

    def rollout(self, old_model: Model, batch: Batch, step: int, *, chunk: int) -> None:
        """Nothing is drawn: the argmax is the output."""

    def loss(self, model: Model, batch: Batch, groups: None, step: int) -> LossResult:
        """Return the loss of a batch; `reward` is the share of right predictions."""
        log_probs_NK = model(batch.inputs).log_softmax(dim=-1)
        rewards_N = (log_probs_NK.argmax(dim=-1) == batch.labels_N).float()
        advantages_N = advantages(rewards_N[:, None], scope="batch").squeeze(1)
        true_N = log_probs_NK.gather(1, batch.labels_N[:, None]).squeeze(1)  # the mistake
        kl = categorical_kl(log_probs_NK, self.reference.log_probs(batch)).mean()
        loss = self.beta * kl - (advantages_N * true_N).mean()
        metrics = policy_metrics(log_probs_NK.detach(), batch.labels_N)
        return LossResult(loss, {**metrics, "reward": rewards_N.mean(), "kl": kl.detach()})

    def samples(self, groups: None, rows: int) -> list[dict[str, Any]]:
        """There are no groups to show."""
        return []


def train_wrong_action(config: ClipConfig) -> dict[str, Any]:
    """Do what `visgrpo.tasks.clip.train.train_clip` does, with this loss and a cached reference."""
    session = open_session(config, "wrong-action")
    splits = load_data(session)
    options = training_options(config, config.resolved_learning_rate(), splits.train)
    parts = load_clip(config.model)
    classifier = ClipClassifier(
        parts.model,
        parts.tokenizer,
        splits.train.classes,
        config.templates,
        logit_scale=config.logit_scale,
    )
    torch.manual_seed(config.seed)
    adapt(classifier, *what_trains(config))
    shards = session.processes
    classifier.to(shards.device)
    inputs = pixel_inputs(splits.train, parts.preprocess)
    test, validation = (
        HeldOut.at_start(classifier, split, pixel_inputs(split, parts.preprocess), shards)
        for split in (splits.test, splits.validation)
    )
    start_logits_MK = logits_of(classifier, splits.train, inputs, shards).to(shards.device)
    trainer = Trainer(
        classifier,
        WrongAction(CachedReference(start_logits_MK), config.beta),
        BatchLoader(splits.train, inputs, batch_size=config.batch_size, seed=config.seed),
        options,
        processes=shards,
        run=session.run,
        evaluate=validation.scalars,
        title="wrong action",
    )
    begin(session, "clip")
    result = trainer.train(session.checkpoint)
    classifier.eval()
    classifier.forget_text()
    info = {"start": config.model, "data": config.data, "method": "wrong action"}
    return finish(
        session,
        result,
        recipe="clip",
        method="wrong action",
        model=config.model,
        splits=splits,
        before=test.start(),
        after=test.now(),
        save=lambda summary: save(
            classifier, parts, session.run.path / "model", label_card(summary), info
        ),
    )


def main(words: Sequence[str]) -> None:
    try:
        train_wrong_action(parse(ClipConfig, "clip", words))
    except UserError as error:
        print(f"wrong_action: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main(sys.argv[1:])
