"""Losses of labels beside cross-entropy: what a policy's rewards have to beat.

With p the probabilities of a decision, y its true class and q_c the share of class c in training:

    ce        -log p_y
    smooth    cross-entropy with 0.9·1[k = y] + 0.1/K     Szegedy et al. 2016, arXiv 1512.00567
    gce       (1 - p_y^0.7) / 0.7                         Zhang & Sabuncu 2018, arXiv 1805.07836
    weighted  -log p_y / (n q_y), n classes in training   every class weighs the same
    balanced  -log softmax(z + log q)_y                   Ren et al. 2020, arXiv 2007.10740
    dice, jaccard   1 - S, S of the expected counts       see `visgrpo.objectives.counts`
    lovasz    the Lovász extension of 1 - IoU             Berman et al. 2018, arXiv 1705.08790

The first five are of each decision, the others of all decisions together.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from visgrpo.objectives.counts import Counts, CountScore

SMOOTHING = 0.1
GCE_POWER = 0.7
OF_EACH = ("ce", "smooth", "gce", "weighted", "balanced")
OF_SETS = {"dice": CountScore(2, 1, 0), "jaccard": CountScore(1, 1, -1)}


def mean_loss(
    names: Sequence[str],
    logits_RK: Tensor,
    labels_R: Tensor,
    shares_K: Tensor | None = None,
    *,
    weights_R: Tensor | None = None,
    scopes_R: Tensor | None = None,
    scopes: int = 1,
) -> Tensor:
    """Return the sum of some losses, a scalar: of each decision in the mean, of sets by scope.

    Args:
        names: any of the names above.
        shares_K: of the classes among the training labels; for weighted and balanced.
        weights_R: of the decisions, (R,) or a scalar, in losses of each; None for 1.
        scopes_R: which set a decision belongs to, 0 … scopes - 1; None for one set of all.
    """
    total = logits_RK.new_zeros(())
    for name in names:
        if name in OF_EACH:
            shares = logits_RK.new_ones(1) if shares_K is None else shares_K.to(logits_RK)
            each_R = loss_of_each(name, logits_RK, labels_R, shares)
            total = total + (each_R if weights_R is None else each_R * weights_R).mean()
        else:
            sets_R = torch.zeros_like(labels_R) if scopes_R is None else scopes_R
            total = total + loss_of_sets(name, logits_RK, labels_R, sets_R, scopes)
    return total


def loss_of_each(name: str, logits_RK: Tensor, labels_R: Tensor, shares_K: Tensor) -> Tensor:
    """Return the loss of each decision, (R,).

    Args:
        name: ce, smooth, gce, weighted or balanced.
        shares_K: of the classes among the training labels, summing to 1.
    """
    if name == "gce":
        true_R = logits_RK.softmax(dim=1).gather(1, labels_R[:, None])[:, 0]
        return (1 - true_R**GCE_POWER) / GCE_POWER
    if name == "balanced":
        logits_RK = logits_RK + shares_K.clamp(min=torch.finfo(shares_K.dtype).tiny).log()
    smoothing = SMOOTHING if name == "smooth" else 0.0
    each_R = F.cross_entropy(logits_RK, labels_R, reduction="none", label_smoothing=smoothing)
    if name == "weighted":
        each_R = each_R / (shares_K * (shares_K > 0).sum())[labels_R]
    return each_R


def loss_of_sets(
    name: str, logits_RK: Tensor, labels_R: Tensor, scopes_R: Tensor, scopes: int
) -> Tensor:
    """Return the mean over scopes of the loss of all decisions in each, a scalar.

    Args:
        name: dice, jaccard or lovasz.
        scopes_R: which scope a decision belongs to, 0 … scopes - 1; empty ones have no loss.
    """
    p_RK = logits_RK.softmax(dim=1)
    if name != "lovasz":
        counts = Counts.of(p_RK, labels_R, scopes_R, scopes)
        return 1 - OF_SETS[name].scores(counts).nanmean()
    present = scopes_R.unique().tolist()
    parts = [scopes_R == scope for scope in present]
    return torch.stack([lovasz_softmax(p_RK[here], labels_R[here]) for here in parts]).mean()


def lovasz_softmax(probabilities_RK: Tensor, labels_R: Tensor) -> Tensor:
    """Return the mean over the classes in the truth of the Lovász extension of 1 - IoU.

    For class c with errors m_d = |1[y_d = c] - p_d(c)| in falling order, Σ_i m_i (J_i - J_{i-1}),
    J_i being 1 - IoU where the i worst decisions are wrong and the others right.
    """
    losses = []
    for c in labels_R.unique().tolist():
        true_R = (labels_R == c).to(probabilities_RK)
        errors_R, order_R = (true_R - probabilities_RK[:, c]).abs().sort(descending=True)
        true_R = true_R[order_R]
        total = true_R.sum()
        left_R = total - true_R.cumsum(0)  # of the class, and right
        jaccard_R = 1 - left_R / (total + (1 - true_R).cumsum(0))
        losses.append(errors_R @ jaccard_R.diff(prepend=jaccard_R.new_zeros(1)))
    return torch.stack(losses).mean()
