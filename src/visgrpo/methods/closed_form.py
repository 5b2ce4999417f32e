"""Losses of class sets whose gradient at the logits is known: no graph, one pass in the cache.

With p the policy of a row, A and w the advantages and weights of its K classes, y the true one and
r the reference, where the policy is its own old policy:

    surrogate      -Σ_k w_k A_k log p_k    has    -(w_k A_k - p_k Σ_j w_j A_j)
    KL(p ‖ r)                                     p_k (log p_k - log r_k - KL)
    -H(p)                                         p_k (log p_k + H)
    cross-entropy  -log p_y                       p_k - 1[k = y]

Rewards, advantages and weights are constants there. Where every reward is a `Shape` of p, so are
the advantages, and nothing of size (R, K) is made beside p and the gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from visgrpo.data.batches import Batch
from visgrpo.methods.groups import (
    LabelGroups,
    reward_metrics,
)
from visgrpo.methods.labels import CLIP_METRICS, LabelGRPO
from visgrpo.methods.method import Metrics
from visgrpo.objectives import categorical_kl
from visgrpo.objectives.advantages import SCALE_EPS
from visgrpo.objectives.divergences import IMPOSSIBLE
from visgrpo.rewards.labels import Shape

Part = Callable[[Tensor, slice, Tensor, float], tuple[Tensor, Metrics]]
"""Takes some of the logits, which they are, where their gradient is to be written, and what share
of the whole they are; returns share × mean loss, share × metrics, and writes share × gradient."""


@dataclass(frozen=True)
class Softmax:
    """The policy of R rows, and what is read off it at once.

    Attributes:
        probabilities_RK: p.
        relative_RK: logits less the row's largest.
        total_R1: Σ_k exp(relative): log p is relative - log total.
        entropy_R1: in nats.
    """

    probabilities_RK: Tensor
    relative_RK: Tensor
    total_R1: Tensor
    entropy_R1: Tensor

    @classmethod
    def of(cls, logits_RK: Tensor) -> Softmax:
        relative_RK = logits_RK - logits_RK.amax(dim=1, keepdim=True)
        relative_RK.clamp_(min=IMPOSSIBLE)  # a class ruled out adds 0 to the entropy, not NaN
        probabilities_RK = relative_RK.exp()
        total_R1 = probabilities_RK.sum(dim=1, keepdim=True)
        probabilities_RK /= total_R1
        mean_R1 = (probabilities_RK * relative_RK).sum(dim=1, keepdim=True)
        return cls(probabilities_RK, relative_RK, total_R1, total_R1.log() - mean_R1)

    @property
    def log_probs_RK(self) -> Tensor:
        return self.relative_RK - self.total_R1.log()

    def is_best(self, at_R1: Tensor) -> Tensor:
        """Return whether a class is the most probable one, of equal ones the first, (R, 1) float.

        A second maximum adds another 1 to the total: rows below 2 need no closer look.
        """
        best_R1 = self.relative_RK.gather(1, at_R1) == 0
        tied_R = (best_R1 & (self.total_R1 >= 2))[:, 0]
        if bool(tied_R.any()):
            best_R1[tied_R] = self.relative_RK[tied_R].argmax(dim=1, keepdim=True) == at_R1[tied_R]
        return best_R1.float()

    def measures(self, at_R1: Tensor) -> dict[str, Tensor]:
        """Return what `policy_metrics` are means of, (R, 1)."""
        normalized_R1 = self.entropy_R1 / math.log(self.probabilities_RK.shape[1])
        return {
            "entropy": self.entropy_R1,
            "entropy_normalized": normalized_R1,
            "accuracy": self.is_best(at_R1),
        }


def cross_entropy(
    logits_RK: Tensor, labels_R: Tensor, weights_R: Tensor | None, gradient_RK: Tensor, share: float
) -> tuple[Tensor, Metrics]:
    """Return the cross-entropy of rows and the policy's metrics; see `Part`."""
    now, at_R1 = Softmax.of(logits_RK), labels_R[:, None]
    nll_R1 = now.total_R1.log() - now.relative_RK.gather(1, at_R1)
    each_R1 = _each(weights_R, nll_R1, share)
    torch.mul(now.probabilities_RK, each_R1, out=gradient_RK)
    gradient_RK.scatter_add_(1, at_R1, -each_R1)
    metrics = _sums({"loss": nll_R1} | now.measures(at_R1), each_R1)
    return metrics.pop("loss"), metrics


def is_known(policy: LabelGRPO, batch: Batch) -> bool:
    """Return whether the gradient of a policy's first pass is known for rows such as these."""
    return (
        policy.takes_all_classes
        and not policy.supervised_weight
        and policy.rewards.known(batch.columns, batch.inputs.device) is None
    )


def first_pass(
    policy: LabelGRPO,
    logits_RK: Tensor,
    batch: Batch,
    step: int,
    weights_R: Tensor | None,
    gradient_RK: Tensor,
    share: float,
) -> tuple[Tensor, Metrics]:
    """Return loss and metrics of `LabelGRPO.first_pass`; see `Part`."""
    now = Softmax.of(logits_RK / policy.temperature if policy.temperature != 1.0 else logits_RK)
    at_R1 = batch.labels_N[:, None]
    true_R1 = now.probabilities_RK.gather(1, at_R1)
    each_R1 = _each(weights_R, true_R1, share)
    shapes = _shapes(policy, at_R1, true_R1)
    metrics: Metrics = {}
    if shapes is None:
        groups = policy.groups_of(now.log_probs_RK, batch, step, weights_R)
        each = {"loss": _of_groups(groups, now, each_R1, gradient_RK)}
        metrics = {n: value * share for n, value in reward_metrics(groups, policy.rewards).items()}
        reference_RK = groups.reference_log_probs_NK
    else:
        each = _of_shapes(policy, now, shapes, at_R1, each_R1, gradient_RK)
        reference_RK = policy.reference_of(batch)
    each |= now.measures(at_R1)
    each["ratio_mean"] = torch.ones_like(true_R1)
    if reference_RK is not None:
        each["kl"] = _add_kl(now, reference_RK, policy.beta * each_R1, gradient_RK)
    if policy.entropy_weight:
        spread_RK = now.probabilities_RK * (now.log_probs_RK + now.entropy_R1)
        gradient_RK += policy.entropy_weight * each_R1 * spread_RK
    if policy.temperature != 1.0:
        gradient_RK /= policy.temperature
    metrics |= _sums(each, each_R1)
    loss = metrics.pop("loss") - policy.entropy_weight * metrics["entropy"]
    if reference_RK is not None:
        loss = loss + policy.beta * metrics["kl"]
    return loss, metrics | {name: loss.new_zeros(()) for name in CLIP_METRICS}


def _add_kl(now: Softmax, reference_RK: Tensor, each_R1: Tensor, gradient_RK: Tensor) -> Tensor:
    """Return KL to the reference, (R, 1), and add ``each_R1`` of its gradient."""
    log_probs_RK = now.log_probs_RK
    kl_R1 = categorical_kl(log_probs_RK, reference_RK)[:, None]
    pull_RK = now.probabilities_RK * (log_probs_RK - reference_RK - kl_R1)
    # 0 · ∞ = 0: a class that both rule out pulls nowhere.
    gradient_RK += each_R1 * pull_RK.where(now.probabilities_RK > 0, 0.0)
    return kl_R1


def _shapes(policy: LabelGRPO, at_R1: Tensor, true_R1: Tensor) -> list[Shape] | None:
    """Return the rewards as shapes, None where they, or their advantages, are none."""
    objective = policy.objective
    if (
        policy.combination != "sum_then_normalize"
        or objective.scale not in ("std", "none")
        or objective.baseline == "leave_one_out"
    ):
        return None
    return policy.rewards.shapes(at_R1, true_R1, len(policy.classes))


def _of_groups(groups: LabelGroups, now: Softmax, each_R1: Tensor, gradient_RK: Tensor) -> Tensor:
    """The surrogate on advantages of any rewards, the user's own among them: losses (R, 1)."""
    assert groups.weights_NG is not None  # outputs that are enumerated have weights
    torch.mul(groups.weights_NG, groups.advantages_NG, out=gradient_RK)
    total_R1 = gradient_RK.sum(dim=1, keepdim=True)
    gradient_RK -= now.probabilities_RK * total_R1
    gradient_RK *= -each_R1
    return -total_R1


def _of_shapes(
    policy: LabelGRPO,
    now: Softmax,
    shapes: Sequence[Shape],
    at_R1: Tensor,
    each_R1: Tensor,
    gradient_RK: Tensor,
) -> dict[str, Tensor]:
    """The surrogate on advantages of shapes, which are made where the gradient will be.

    Returns:
        "loss" and what `reward_metrics` are means of, (R, 1).
    """
    p_RK, n_classes = now.probabilities_RK, now.probabilities_RK.shape[1]
    exact, no_baseline = policy.estimator == "exact", policy.objective.baseline == "none"
    true_R1 = p_RK.gather(1, at_R1)
    whole = Shape.total(shapes, policy.rewards.weights)
    out_RK = torch.mul(p_RK, whole.slope, out=gradient_RK)
    out_RK.scatter_add_(1, at_R1, whole.peak + torch.zeros_like(true_R1))
    # Equal rewards are exactly 0 from here on, whatever the rounding of their mean.
    first_R1 = out_RK[:, :1].clone()
    out_RK -= first_R1
    if exact:
        mean_R1 = (p_RK * out_RK).sum(dim=1, keepdim=True)
        out_RK -= mean_R1
        std_R1 = (p_RK * out_RK).mul_(out_RK).sum(dim=1, keepdim=True).sqrt_()
    else:
        mean_R1 = out_RK.mean(dim=1, keepdim=True)
        out_RK -= mean_R1
        std_R1 = (out_RK * out_RK).mean(dim=1, keepdim=True).sqrt_()
    if no_baseline:
        out_RK += mean_R1 + first_R1 + whole.level
    if exact:
        out_RK *= p_RK  # with the weights of the estimator
        factor_R1 = torch.ones_like(std_R1)
    else:
        factor_R1 = torch.full_like(std_R1, 1 / n_classes)
    if policy.objective.scale == "std":
        factor_R1 = (factor_R1 / (std_R1 + SCALE_EPS)).masked_fill_(std_R1 == 0, 0.0)
    each = {
        "loss": torch.zeros_like(std_R1),  # what a mean as the baseline leaves
        "reward_std": std_R1,
        "frac_reward_zero_std": (std_R1 == 0).float(),
        "advantage_abs": factor_R1 * out_RK.abs().sum(dim=1, keepdim=True),
    }
    if no_baseline or exact:  # of centred advantages the total is what their mean was rounded by
        total_R1 = out_RK.sum(dim=1, keepdim=True)
        out_RK -= p_RK * total_R1
        each["loss"] = -factor_R1 * total_R1
    out_RK *= (factor_R1 * each_R1).neg_()
    squared_R1 = (p_RK * p_RK).sum(dim=1, keepdim=True)
    names = [f"rewards/{name}/mean" for name in policy.rewards.names]
    for name, shape in zip(["reward", *names], [whole, *shapes], strict=True):
        each[name] = shape.level + shape.peak * true_R1 + shape.slope * squared_R1
    return each


def _each(weights_R: Tensor | None, like_R1: Tensor, share: float) -> Tensor:
    """What each row's own loss is multiplied by, (R, 1)."""
    scale = share / len(like_R1)
    return torch.full_like(like_R1, scale) if weights_R is None else weights_R[:, None] * scale


def _sums(each: Mapping[str, Tensor], each_R1: Tensor) -> Metrics:
    """Return the sum over rows of every value × ``each_R1``."""
    values_RM = torch.cat(tuple(each.values()), dim=1)
    return dict(zip(each, (each_R1.T @ values_RM)[0].unbind(), strict=True))
