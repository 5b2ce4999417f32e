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
from dataclasses import dataclass, replace
from typing import Any

from visgrpo.arguments import parse
from visgrpo.data.batches import Batch
from visgrpo.errors import UserError
from visgrpo.methods.groups import policy_metrics
from visgrpo.methods.labels import Model, ReferenceLike
from visgrpo.methods.method import LossResult
from visgrpo.objectives import advantages, categorical_kl
from visgrpo.tasks.clip.options import ClipConfig
from visgrpo.tasks.clip.train import ClipTask
from visgrpo.tasks.run import Job, Session


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


class WrongActionTask(ClipTask):
    """The job of `visgrpo clip` with this loss, and a cached reference."""

    def run_name(self, options: ClipConfig) -> str:
        return "wrong-action"

    def set_up(self, options: ClipConfig, session: Session) -> Job:
        job = super().set_up(replace(options, reference="cached"), session)
        method = WrongAction(job.method.reference, options.beta)
        return replace(job, method=method, chosen_method="wrong action")


def main(words: Sequence[str]) -> None:
    try:
        WrongActionTask().train(parse(ClipConfig, "clip", words))
    except UserError as error:
        print(f"wrong_action: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main(sys.argv[1:])
