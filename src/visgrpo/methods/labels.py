"""The label policy: groups of class labels, their rewards, and the GRPO loss on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from visgrpo.data.batches import Batch
from visgrpo.errors import UserError
from visgrpo.methods.groups import (
    REWARD_METRICS,
    LabelGroups,
    Support,
    advantages_of,
    conditioned,
    mean_over_inputs,
    places_of,
    policy_metrics,
    reward_metrics,
    subset_offsets,
    uniforms_for,
    weights_with_inputs,
)
from visgrpo.methods.method import ONE_PROCESS, LossResult, Metrics, Shards
from visgrpo.models.reference import Reference
from visgrpo.objectives import (
    Objective,
    categorical_kl,
    draw,
    entropy,
    on_policy_loss,
    weighted_sum,
)
from visgrpo.objectives.advantages import Combination, Estimator
from visgrpo.rewards.sets import RewardSet

CLIP_METRICS = ("clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean")
Model = Callable[[Tensor], Tensor]  # inputs (N, …) to logits (N, K)


@dataclass(frozen=True)
class LabelGRPO:
    """GRPO over class labels.

        L = surrogate + β·KL(π ‖ π_ref) - α·H(π) + λ·cross-entropy on labelled images

    KL and entropy are exact sums over the classes. The policy is softmax(logits / temperature),
    the same when labels are drawn and when they are scored.

    Attributes:
        rewards: the reward functions with their weights.
        objective: advantages and surrogate, see :mod:`visgrpo.objectives.presets`.
        estimator: ``sampled`` draws ``group_size`` labels; ``exact`` and ``uniform`` take them all.
        class_subset: with ``uniform``, the group is the true class and this many classes less one
            drawn among the others, anew in every step; None takes every class.
        beta: weight of the KL term, per nat. Needs a reference.
        entropy_weight: weight α of the entropy bonus, per nat.
        supervised_weight: weight λ of cross-entropy on the labelled images of a batch.
        supervised_schedule: what λ is multiplied by in a step; None for 1.
        labelled: which rows of the training set have a label the supervised part may see.
        seed: of the draws.
    """

    rewards: RewardSet
    objective: Objective
    classes: tuple[str, ...]
    shards: Shards = ONE_PROCESS
    estimator: Estimator = "sampled"
    group_size: int = 8
    class_subset: int | None = None
    temperature: float = 1.0
    beta: float = 0.0
    entropy_weight: float = 0.0
    combination: Combination = "sum_then_normalize"
    reference: Reference | None = None
    supervised_weight: float = 0.0
    supervised_schedule: Callable[[int], float] | None = None
    labelled: Callable[[Tensor], Tensor] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        self.rewards.validate(self.objective.scope, counted=True)  # whoever counts masks asks first
        if self.beta and self.reference is None:
            raise UserError("A KL weight (beta) needs a reference.")
        if self.rewards.masks and self.objective.baseline == "leave_one_out":
            _check_leave_one_out(self.objective)
        if self.class_subset is not None:
            _check_subset(self.class_subset, self.estimator, len(self.classes))
            if self.rewards.masks:
                raise UserError("A class subset needs a reward for every label: none masked.")

    @property
    def takes_all_classes(self) -> bool:
        """Whether output k of every group is class k."""
        return self.estimator != "sampled" and self.class_subset is None

    @property
    def groups_stand_alone(self) -> bool:
        """Whether a group's advantages do not depend on other groups."""
        return self.objective.scope == "group" and self.objective.scale != "batch_std"

    def log_probs(self, logits_NK: Tensor) -> Tensor:
        """Return log π (N, K) at the policy's temperature."""
        return (logits_NK.float() / self.temperature).log_softmax(dim=-1)

    @torch.no_grad()
    def rollout(self, old_model: Model, batch: Batch, step: int, *, chunk: int) -> LabelGroups:
        """Run the old policy over this process's share of a batch, ``chunk`` inputs at a time."""
        logits_NK = torch.cat([old_model(inputs) for inputs in batch.inputs.split(chunk)])
        return self.groups(logits_NK, batch, step)

    def loss(self, model: Model, batch: Batch, groups: LabelGroups | None, step: int) -> LossResult:
        """Return the loss of a batch. Without groups they come from this same forward pass."""
        logits_NK = model(batch.inputs)
        if groups is None:
            return self.first_pass(logits_NK, batch, step)
        loss, metrics = self.loss_of(logits_NK, groups)
        return LossResult(loss, metrics, groups, self.weights_of(groups))

    def first_pass(
        self,
        logits_NK: Tensor,
        batch: Batch,
        step: int,
        input_weights_N: Tensor | None = None,
    ) -> LossResult:
        """Return the loss of logits that are the old policy's as well; every ratio is 1."""
        log_probs_NK = self.log_probs(logits_NK)
        groups = self.groups_of(log_probs_NK.detach(), batch, step, input_weights_N)
        log_probs_NG = self._scored(log_probs_NK, groups)
        loss = on_policy_loss(log_probs_NG, groups.advantages_NG, weights_with_inputs(groups))
        metrics = {name: loss.new_zeros(()) for name in CLIP_METRICS}
        ones_N = torch.ones_like(logits_NK[:, 0])
        metrics["ratio_mean"] = mean_over_inputs(ones_N, groups.metric_weights_N)
        loss, more = self._with_terms(loss, logits_NK, log_probs_NK, groups)
        return LossResult(loss, metrics | more, groups, self.weights_of(groups))

    def weights_of(self, groups: LabelGroups) -> Metrics:
        """Return how much metrics count that are means over the inputs with feedback alone."""
        if groups.usable_NK is None or groups.input_weights_N is None:
            return {}
        earned = [f"rewards/{name}/mean" for name in self.rewards.names]
        names = (*CLIP_METRICS, "ratio_mean", *REWARD_METRICS, *earned)
        return dict.fromkeys(names, groups.input_weights_N.mean())

    def groups(
        self,
        logits_NK: Tensor,
        batch: Batch,
        step: int,
        input_weights_N: Tensor | None = None,
    ) -> LabelGroups:
        """Draw or enumerate the groups of this process's whole share of a batch, and score them.

        Where all classes are taken and groups stand alone, some rows of a batch will do as well.

        Args:
            logits_NK: of the old policy.
            step: which batch of the run this is; with the seed it decides the draws.
            input_weights_N: how much each input counts, see `LabelGroups`.
        """
        return self.groups_of(self.log_probs(logits_NK.detach()), batch, step, input_weights_N)

    @torch.no_grad()
    def groups_of(
        self, old_NK: Tensor, batch: Batch, step: int, input_weights_N: Tensor | None
    ) -> LabelGroups:
        """Return what `groups` does, of the old policy's log-probs."""
        support = Support.of(old_NK, self.rewards.known(batch.columns, old_NK.device))
        outputs_NG = self._outputs(support.log_probs_NK, batch, step)
        weights_NG, old_NG = self._weighted(old_NK, support, outputs_NG, batch)
        rewards_NGR = self.rewards(
            outputs_NG,
            label=batch.labels_N,
            probabilities=old_NK.exp(),
            classes=self.classes,
            **batch.columns,
        )
        return LabelGroups(
            outputs_NG=outputs_NG,
            old_log_probs_NG=old_NG,
            rewards_NGR=rewards_NGR,
            advantages_NG=advantages_of(
                rewards_NGR,
                self.rewards.weights_R,
                self.objective,
                self.combination,
                self.shards,
                support.weights_in_batch(weights_NG, outputs_NG, self.objective),
            ),
            weights_NG=weights_NG,
            reference_log_probs_NK=self.reference_of(batch),
            labels_N=batch.labels_N,
            labelled_N=self._labelled(batch, step),
            input_weights_N=support.input_weights(input_weights_N),
            coverage_N=support.coverage_N,
            usable_NK=support.usable_NK,
        )

    def loss_of(self, logits_NK: Tensor, groups: LabelGroups) -> tuple[Tensor, Metrics]:
        """Return the loss of some groups and its metrics, each a scalar mean over the groups."""
        new_NK = self.log_probs(logits_NK)
        new_NG = self._scored(new_NK, groups)
        result = self.objective.surrogate(
            new_NG.unsqueeze(-1),
            groups.old_log_probs_NG.unsqueeze(-1),
            groups.advantages_NG,
            weights_NG=weights_with_inputs(groups),
            # Of one token all aggregations are the same; this one divides by all inputs, also
            # where some of them weigh nothing.
            aggregation="sequence_mean",
        )
        # Inputs without a row count as 0 here, as they do in every other mean.
        weights_N = groups.metric_weights_N
        share = 1.0 if weights_N is None else weights_N.mean()
        metrics = {
            "clip_ratio/low_mean": result.clip_low * share,
            "clip_ratio/high_mean": result.clip_high * share,
            "clip_ratio/region_mean": (result.clip_low + result.clip_high) * share,
            "ratio_mean": result.ratio_mean * share,
        }
        loss, more = self._with_terms(result.loss, logits_NK, new_NK, groups)
        return loss, metrics | more

    def _with_terms(
        self, loss: Tensor, logits_NK: Tensor, new_NK: Tensor, groups: LabelGroups
    ) -> tuple[Tensor, Metrics]:
        """Add KL, entropy bonus and supervised part to a surrogate loss, and the other metrics."""
        # Of feedback, the images that nobody judged have labels to be accurate about all the same.
        weights_N = groups.input_weights_N if groups.usable_NK is None else None
        metrics = {
            **reward_metrics(groups, self.rewards),
            **policy_metrics(new_NK.detach(), groups.labels_N, weights_N),
        }
        if groups.reference_log_probs_NK is not None:
            kl_N = categorical_kl(new_NK, groups.reference_log_probs_NK)
            kl = mean_over_inputs(kl_N, groups.input_weights_N)
            metrics["kl"] = mean_over_inputs(kl_N.detach(), weights_N)
            loss = loss + self.beta * kl
        if self.entropy_weight:
            bonus = mean_over_inputs(entropy(new_NK), groups.input_weights_N)
            loss = loss - self.entropy_weight * bonus
        if self.supervised_weight:
            supervised = labelled_cross_entropy(logits_NK, groups.labels_N, groups.labelled_N)
            metrics["supervised_loss"] = supervised.detach()
            loss = loss + self.supervised_weight * supervised
        return loss, metrics

    def samples(self, groups: LabelGroups, rows: int) -> list[dict[str, Any]]:
        """Return the first groups as plain data for ``samples.jsonl``.

        A group of all classes is cut to the true one and the nine most probable others.
        """
        totals_NG = weighted_sum(groups.rewards_NGR, self.rewards.weights_R)
        samples = []
        for i in range(min(rows, len(groups.labels_N))):
            label = int(groups.labels_N[i])
            shown = torch.arange(groups.outputs_NG.shape[1])
            if self.takes_all_classes:
                order = groups.old_log_probs_NG[i].cpu().argsort(descending=True)
                shown = torch.cat([torch.tensor([label]), order[order != label][:9]])
                if groups.weights_NG is not None:
                    shown = shown[groups.weights_NG[i].cpu()[shown] > 0]
            outputs = groups.outputs_NG[i].cpu()[shown]
            samples.append(
                {
                    "label": self.classes[label],
                    "outputs": [self.classes[int(k)] for k in outputs],
                    "probabilities": groups.old_log_probs_NG[i].cpu()[shown].exp().tolist(),
                    "rewards": totals_NG[i].cpu()[shown].tolist(),
                    "advantages": groups.advantages_NG[i].cpu()[shown].tolist(),
                }
            )
        return samples

    def _outputs(self, old_NK: Tensor, batch: Batch, step: int) -> Tensor:
        n_inputs, n_classes = old_NK.shape
        if self.class_subset is not None:
            offsets_G = subset_offsets(self.seed, step, n_classes, self.class_subset)
            return (batch.labels_N[:, None] + offsets_G.to(batch.labels_N.device)) % n_classes
        if self.estimator != "sampled":
            return torch.arange(n_classes, device=old_NK.device).expand(n_inputs, -1)
        places_N, total = places_of(batch, self.shards), n_inputs * self.shards.world_size
        uniforms = uniforms_for(self.seed, step, places_N, total, self.group_size)
        return draw(old_NK, uniforms.to(old_NK.device))

    def _weighted(
        self, old_NK: Tensor, support: Support, outputs_NG: Tensor, batch: Batch
    ) -> tuple[Tensor | None, Tensor]:
        """Weights of the outputs, and the log-probs that ratios are taken to; each (N, G)."""
        among_NG = self._of_outputs(support.log_probs_NK, outputs_NG)
        return support.weights(self.estimator, among_NG), among_NG

    def _scored(self, log_probs_NK: Tensor, groups: LabelGroups) -> Tensor:
        """The log-probs of a group's outputs whose ratios are taken, (N, G)."""
        if groups.usable_NK is not None:
            log_probs_NK = conditioned(log_probs_NK, groups.usable_NK)
        return self._of_outputs(log_probs_NK, groups.outputs_NG)

    def _of_outputs(self, values_NK: Tensor, outputs_NG: Tensor) -> Tensor:
        return values_NK if self.takes_all_classes else values_NK.gather(1, outputs_NG)

    def reference_of(self, batch: Batch) -> Tensor | None:
        """The reference at the policy's temperature; None when nobody asks for it."""
        if self.reference is None:
            return None
        log_probs_NK = self.reference.log_probs(batch)
        if self.temperature == 1.0:
            return log_probs_NK
        return (log_probs_NK / self.temperature).log_softmax(dim=-1)

    def _labelled(self, batch: Batch, step: int) -> Tensor:
        if self.labelled is None:
            labelled_N = torch.ones_like(batch.labels_N, dtype=torch.bool)
        else:
            labelled_N = self.labelled(batch.indices_N)
        return (
            labelled_N
            if self.supervised_schedule is None
            else (labelled_N * self.supervised_schedule(step))
        )


def labelled_cross_entropy(logits_NK: Tensor, labels_N: Tensor, labelled_N: Tensor) -> Tensor:
    """Return Σ over labelled images of cross-entropy, divided by the size of the *whole* batch.

    Dividing by the batch keeps an image's weight the same however many neighbours have labels.
    """
    each_N = F.cross_entropy(logits_NK.float(), labels_N, reduction="none")
    return (each_N * labelled_N).sum() / len(labels_N)


def _check_leave_one_out(objective: Objective) -> None:
    if objective.scope == "batch" or objective.scale == "batch_std":
        raise UserError(
            "The leave-one-out baseline over a batch needs a reward for every label: give those "
            "that nobody has seen one (--unknown prior), or take advantages over groups."
        )


def _check_subset(size: int, estimator: Estimator, n_classes: int) -> None:
    if estimator != "uniform":
        raise UserError(
            f'A class subset is weighted equally: it goes with the "uniform" estimator, not with '
            f'"{estimator}".'
        )
    if not 2 <= size <= n_classes:
        raise UserError(
            f"A class subset of {size} cannot be: give 2 to {n_classes}, the number of classes."
        )
