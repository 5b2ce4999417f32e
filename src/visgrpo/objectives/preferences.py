"""Scores from choices: the Bradley–Terry model of which of two outputs is preferred.

    P(a ≻ b) = σ(s_a - s_b)

Sources: Bradley & Terry 1952; as the loss of a reward model, Ouyang et al. 2022 (arXiv 2203.02155),
eq. 1.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def bradley_terry_loss(
    chosen_B: Tensor,
    rejected_B: Tensor,
    margin: Tensor | None = None,
    *,
    centring: float = 0.0,
) -> Tensor:
    """Return the mean negative log-likelihood of B choices, in nats: a scalar.

        mean of  -log σ(s_chosen - s_rejected - margin)  +  centring · (s_chosen + s_rejected)²

    Choices know differences of scores only: without ``centring`` a constant may be added to all.

    Args:
        chosen_B: scores of the outputs that were preferred.
        rejected_B: scores of the others.
        margin: (B,), by how much a chosen output should lead (Touvron et al. 2023, arXiv
            2307.09288, eq. 2). None: 0.
        centring: weight of the term that draws scores to 0 (Eisenstein et al. 2023, arXiv
            2312.09244).
    """
    lead_B = chosen_B - rejected_B
    if margin is not None:
        lead_B = lead_B - margin
    loss = -F.logsigmoid(lead_B).mean()
    if centring:
        loss = loss + centring * (chosen_B + rejected_B).square().mean()
    return loss
