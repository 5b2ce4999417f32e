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
from dataclasses import dataclass

from torch import Tensor

from visgrpo.objectives.divergences import IMPOSSIBLE, categorical_kl


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


def add_kl(now: Softmax, reference_RK: Tensor, each_R1: Tensor, gradient_RK: Tensor) -> Tensor:
    """Return KL to the reference, (R, 1), and add ``each_R1`` of its gradient."""
    log_probs_RK = now.log_probs_RK
    kl_R1 = categorical_kl(log_probs_RK, reference_RK)[:, None]
    pull_RK = now.probabilities_RK * (log_probs_RK - reference_RK - kl_R1)
    # 0 · ∞ = 0: a class that both rule out pulls nowhere.
    gradient_RK += each_R1 * pull_RK.where(now.probabilities_RK > 0, 0.0)
    return kl_R1
