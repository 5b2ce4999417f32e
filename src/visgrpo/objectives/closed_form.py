"""Losses of class sets whose gradient at the logits is known: no graph, one pass in the cache.

With p the policy of a row, A and w the advantages and weights of its K classes, y the true one and
r the reference, where the policy is its own old policy:

    surrogate      -Σ_k w_k A_k log p_k    has    -(w_k A_k - p_k Σ_j w_j A_j)
    KL(p ‖ r)                                     p_k (log p_k - log r_k - KL)
    -H(p)                                         p_k (log p_k + H)
    cross-entropy  -log p_y                       p_k - 1[k = y]

Rewards, advantages and weights are constants there. Where every reward is level + peak·1[k = y] +
slope·p_k, so are the advantages, and nothing of size (R, K) is made beside p and the gradient.

R may stand for several dimensions, and classes may lie anywhere in memory: of masks they lie far
apart, and sums over a few classes are several times as fast there as over neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from visgrpo.objectives.advantages import SCALE_EPS, Baseline, Scale
from visgrpo.objectives.divergences import IMPOSSIBLE, categorical_kl


@dataclass(frozen=True)
class Softmax:
    """The policy of R rows, and what is read off it at once.

    Attributes:
        probabilities_RK: p.
        relative_RK: logits less the row's largest.
        total_R1: Σ_k exp(relative): log p is relative - log total.
    """

    probabilities_RK: Tensor
    relative_RK: Tensor
    total_R1: Tensor

    @classmethod
    def of(cls, logits_RK: Tensor) -> Softmax:
        relative_RK = logits_RK - logits_RK.amax(dim=-1, keepdim=True)
        probabilities_RK = relative_RK.exp()
        total_R1 = probabilities_RK.sum(dim=-1, keepdim=True)
        probabilities_RK /= total_R1
        return cls(probabilities_RK, relative_RK, total_R1)

    @property
    def log_probs_RK(self) -> Tensor:
        return self._possible_RK - self.total_R1.log()

    @property
    def entropy_R1(self) -> Tensor:
        """In nats."""
        mean_R1 = (self.probabilities_RK * self._possible_RK).sum(dim=-1, keepdim=True)
        return self.total_R1.log() - mean_R1

    @property
    def _possible_RK(self) -> Tensor:
        # A class ruled out adds 0 to the entropy, not 0 · ∞ = NaN.
        return self.relative_RK.clamp(min=IMPOSSIBLE)

    def is_best(self, at_R1: Tensor) -> Tensor:
        """Return whether a class is the most probable one, of equal ones the first, (R, 1) bool.

        A second maximum adds another 1 to the total: rows below 2 need no closer look.
        """
        best_R1 = self.relative_RK.gather(-1, at_R1) == 0
        tied_R = (best_R1 & (self.total_R1 >= 2))[..., 0]
        if bool(tied_R.any()):
            best_R1[tied_R] = self.relative_RK[tied_R].argmax(dim=-1, keepdim=True) == at_R1[tied_R]
        return best_R1

    def add_entropy_gradient(
        self, entropy_R1: Tensor, each_R1: Tensor, gradient_RK: Tensor
    ) -> None:
        """Add ``each_R1`` × the gradient of -H."""
        spread_RK = self.log_probs_RK.add_(entropy_R1)
        gradient_RK += spread_RK.mul_(self.probabilities_RK).mul_(each_R1)

    def add_kl_gradient(self, reference_RK: Tensor, each_R1: Tensor, gradient_RK: Tensor) -> Tensor:
        """Add ``each_R1`` × the gradient of KL to a reference, log r; return KL in nats, (R, 1)."""
        log_probs_RK = self.log_probs_RK
        kl_R1 = categorical_kl(log_probs_RK, reference_RK)[..., None]
        pull_RK = self.probabilities_RK * (log_probs_RK - reference_RK - kl_R1)
        # 0 · ∞ = 0: a class that both rule out pulls nowhere.
        gradient_RK += each_R1 * pull_RK.where(self.probabilities_RK > 0, 0.0)
        return kl_R1


def cross_entropy(now: Softmax, at_R1: Tensor, each_R1: Tensor, gradient_RK: Tensor) -> Tensor:
    """Write ``each_R1`` × the gradient of -log p at the true classes; return the losses, (R, 1)."""
    torch.mul(now.probabilities_RK, each_R1, out=gradient_RK)
    gradient_RK.scatter_add_(-1, at_R1, -each_R1)
    return now.total_R1.log() - now.relative_RK.gather(-1, at_R1)


def surrogate(now: Softmax, weighted_RK: Tensor, each_R1: Tensor, gradient_RK: Tensor) -> Tensor:
    """Write ``each_R1`` × the surrogate's gradient; return the losses, (R, 1).

    Args:
        weighted_RK: w·A, of any rewards.
    """
    total_R1 = weighted_RK.sum(dim=-1, keepdim=True)
    torch.sub(weighted_RK, now.probabilities_RK * total_R1, out=gradient_RK)
    gradient_RK *= -each_R1
    return -total_R1


@dataclass(frozen=True)
class ShapeLoss:
    """Of R rows the surrogate's loss, the rewards' deviation, and Σ_k w_k |A_k| where asked for."""

    loss_R1: Tensor
    std_R1: Tensor
    advantage_abs_R1: Tensor | None


def surrogate_of_shape(
    now: Softmax,
    at_R1: Tensor,
    level_R1: Tensor | float,
    peak_R1: Tensor | float,
    slope: float,
    each_R1: Tensor,
    gradient_RK: Tensor,
    *,
    exact: bool,
    baseline: Baseline,
    scale: Scale,
    measured: bool,
) -> ShapeLoss:
    """Write ``each_R1`` × the surrogate's gradient, of rewards level + peak·1[k = y] + slope·p_k.

    Advantages are made where the gradient will be.

    Args:
        exact: whether w is p; else it is 1/K.
        baseline: ``mean`` or ``none``.
        scale: ``std`` or ``none``.
        measured: whether the advantages' size is asked for.
    """
    p_RK, n_classes = now.probabilities_RK, now.probabilities_RK.shape[-1]
    # Less the first class's: equal rewards are exactly 0, whatever the rounding of their mean.
    first_R1 = p_RK[..., :1] * slope
    out_RK = torch.add(-first_R1, p_RK, alpha=slope, out=gradient_RK)
    out_RK.scatter_add_(-1, at_R1, torch.as_tensor(peak_R1).to(p_RK).expand_as(at_R1))
    weights_RK = p_RK if exact else None
    mean_R1 = _mean(out_RK, weights_RK)
    out_RK -= mean_R1
    std_R1 = _mean(out_RK * out_RK, weights_RK).sqrt_()
    if baseline == "none":
        out_RK += mean_R1 + first_R1 + level_R1
    if exact:
        out_RK *= p_RK  # with the weights of the estimator
    if scale == "std":
        factor_R1 = (std_R1 + SCALE_EPS).reciprocal_().masked_fill_(std_R1 == 0, 0.0)
    else:
        factor_R1 = torch.ones_like(std_R1)
    if not exact:
        factor_R1 /= n_classes
    size_R1 = factor_R1 * out_RK.abs().sum(dim=-1, keepdim=True) if measured else None
    loss_R1 = torch.zeros_like(std_R1)  # what a mean as the baseline leaves
    if baseline == "none" or exact:  # of centred advantages the total is what their mean rounded by
        total_R1 = out_RK.sum(dim=-1, keepdim=True)
        out_RK -= p_RK * total_R1
        loss_R1 = -factor_R1 * total_R1
    out_RK *= (factor_R1 * each_R1).neg_()
    return ShapeLoss(loss_R1, std_R1, size_R1)


def _mean(values_RK: Tensor, weights_RK: Tensor | None) -> Tensor:
    if weights_RK is None:
        return values_RK.mean(dim=-1, keepdim=True)
    return (weights_RK * values_RK).sum(dim=-1, keepdim=True)
