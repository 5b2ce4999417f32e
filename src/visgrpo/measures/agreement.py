"""How close a classifier is to people: to how their votes on an image are distributed."""

from __future__ import annotations

import torch
from torch import Tensor

from visgrpo.errors import UserError

DISAGREE_BELOW = 0.9
"""People disagree on an image where its commonest answer has a smaller share of the votes."""


def agreement(logits_MK: Tensor, votes_MK: Tensor, labels_M: Tensor) -> dict[str, float]:
    """Compare a classifier with people's votes, in float64.

    With q the share of an image's votes and π the classifier's distribution, means over the images
    that have votes:

    * `people_cross_entropy`: -Σ_k q_k log π_k, in nats;
    * `people_kl`: KL(q ‖ π), which is that less the entropy of q: 0 for people's own distribution;
    * `people_accuracy`: how often the likeliest class has the most votes (any of them, in a tie);
    * `disagreed`: the share of images on which people disagree (see `DISAGREE_BELOW`), and
      `disagreed_accuracy`, by the true label, on those; left out where there are none.

    Args:
        logits_MK: of the classifier.
        votes_MK: numbers of votes, ≥ 0; images without any are left out.
        labels_M: true class ids.

    Raises:
        UserError: shapes do not fit, or no image has votes.
    """
    if votes_MK.shape != logits_MK.shape or labels_M.shape != logits_MK.shape[:1]:
        raise UserError(
            f"Shapes do not fit: logits {tuple(logits_MK.shape)}, votes {tuple(votes_MK.shape)}, "
            f"labels {tuple(labels_M.shape)}."
        )
    voted_M = votes_MK.sum(dim=1) > 0
    if not voted_M.any():
        raise UserError("None of these images has votes, so there are no people to agree with.")
    votes_NK = votes_MK[voted_M].double()
    log_probs_NK = logits_MK[voted_M].detach().cpu().double().log_softmax(dim=1)
    answers_N, labels_N = log_probs_NK.argmax(dim=1), labels_M[voted_M]
    shares_NK = votes_NK / votes_NK.sum(dim=1, keepdim=True)
    cross_N = -(shares_NK * log_probs_NK).sum(dim=1)
    entropy_N = -torch.special.xlogy(shares_NK, shares_NK).sum(dim=1)
    most_N = votes_NK.max(dim=1).values
    popular_N = votes_NK.gather(1, answers_N[:, None])[:, 0] == most_N
    measures = {
        "people_cross_entropy": cross_N.mean().item(),
        "people_kl": (cross_N - entropy_N).mean().item(),
        "people_accuracy": popular_N.double().mean().item(),
    }
    disagreed_N = shares_NK.max(dim=1).values < DISAGREE_BELOW
    measures["disagreed"] = disagreed_N.double().mean().item()
    if disagreed_N.any():
        right_N = (answers_N == labels_N)[disagreed_N]
        measures["disagreed_accuracy"] = right_N.double().mean().item()
    return measures
