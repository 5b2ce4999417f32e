"""Scores made of counts (IoU, Dice, F_β): of a mask, a batch, a data set; what one answer changes.

Of all decisions in a scope let class c have T_c in truth, P_c answers and I_c of both. A score is

    S = mean over the n classes in the truth of  s_c = γ I_c / (τ T_c + P_c + ι I_c)

    | score | γ | τ | ι |
    |---|---|---|---|
    | IoU (Jaccard) | 1 | 1 | -1 |
    | Dice, which is F1 | 2 | 1 | 0 |
    | F_β | 1 + β² | β² | 0 |

What one more answer a changes, where the truth is t, is a table of two rows:

    right_t = [s_t with I + 1 and P + 1, less s_t] / n
    wrong_a = [s_a with P + 1, less s_a] / n                 for a ≠ t

so for IoU right = 1/(n U) and wrong = -I/(n U (U + 1)), U being the union. A policy π that decides
everywhere by itself then has the policy gradient Σ_d Σ_a ∇π_d(a)·table[t_d, a]: exactly, where the
counts are those of what the others were drawn to answer; and up to terms in 1/U where they are the
expected counts, I_c = Σ_{t_d = c} π_d(c) and P_c = Σ_d π_d(c), which need no drawing. With many
decisions the table is the slope of S at the expected counts: the gradient of the soft Jaccard loss
(Rahman & Wang 2016) or of the Dice loss (Milletari et al. 2016, arXiv 1606.04797).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Counts:
    """Right answers, true decisions and answers of K classes in each of S scopes.

    Attributes:
        right_SK: I.
        true_SK: T.
        answered_SK: P; as I, expected numbers of a policy need not be whole.
    """

    right_SK: Tensor
    true_SK: Tensor
    answered_SK: Tensor

    @classmethod
    def of(
        cls, probabilities_RK: Tensor, labels_R: Tensor, scopes_R: Tensor, scopes: int
    ) -> Counts:
        """Count R decisions by their scope, 0 … scopes - 1; differentiable in the probabilities.

        Answers that are given, and not drawn, have probabilities of 0 and 1.
        """
        n_classes = probabilities_RK.shape[1]
        cells_R = scopes_R * n_classes + labels_R
        zeros = probabilities_RK.new_zeros
        true_R = probabilities_RK.gather(1, labels_R[:, None])[:, 0]
        right = zeros(scopes * n_classes).index_add(0, cells_R, true_R)
        true = torch.bincount(cells_R, minlength=scopes * n_classes).to(right)
        answered_SK = (
            probabilities_RK.sum(dim=0, keepdim=True)
            if scopes == 1
            else zeros(scopes, n_classes).index_add(0, scopes_R, probabilities_RK)
        )
        return cls(right.view(scopes, -1), true.view(scopes, -1), answered_SK)

    def stacked(self) -> Tensor:
        """Return the counts as one tensor (3, S, K)."""
        return torch.stack([self.right_SK, self.true_SK, self.answered_SK])


@dataclass(frozen=True)
class CountScore:
    """A score of counts; the three numbers are γ, τ and ι."""

    gain: float
    of_true: float
    of_right: float

    def scores(self, counts: Counts) -> Tensor:
        """Return S of each scope, (S,); NaN where nothing is in the truth."""
        present_SK = counts.true_SK > 0
        each_SK = self._each(counts.right_SK, counts.true_SK, counts.answered_SK)
        return each_SK.where(present_SK, 0.0).sum(dim=1) / present_SK.sum(dim=1)

    def changes(self, counts: Counts) -> tuple[Tensor, Tensor]:
        """Return the table's right and wrong rows, (S, K) each; 0 for classes not in the truth."""
        right_SK, true_SK, answered_SK = counts.right_SK, counts.true_SK, counts.answered_SK
        present_SK = true_SK > 0
        present_S1 = present_SK.sum(dim=1, keepdim=True).clamp(min=1)
        before_SK = self._each(right_SK, true_SK, answered_SK)
        rows = (self._each(right_SK + one, true_SK, answered_SK + 1) - before_SK for one in (1, 0))
        right, wrong = (row.where(present_SK, 0.0) / present_S1 for row in rows)
        return right, wrong

    def _each(self, right_SK: Tensor, true_SK: Tensor, answered_SK: Tensor) -> Tensor:
        below_SK = self.of_true * true_SK + answered_SK + self.of_right * right_SK
        return self.gain * right_SK / below_SK.where(true_SK > 0, 1.0)
