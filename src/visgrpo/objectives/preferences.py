"""Scores from choices: the Bradley–Terry model of which of two outputs is preferred.

    P(a ≻ b) = σ(s_a - s_b)

Sources: Bradley & Terry 1952; as the loss of a reward model, Ouyang et al. 2022 (arXiv 2203.02155),
eq. 1.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def bradley_terry_loss(chosen_B: Tensor, rejected_B: Tensor) -> Tensor:
    """Return the mean negative log-likelihood of B choices, in nats: a scalar.

        mean of  -log σ(s_chosen - s_rejected)

    Choices know differences of scores only: a constant may be added to all.

    Args:
        chosen_B: scores of the outputs that were preferred.
        rejected_B: scores of the others.
    """
    return -F.logsigmoid(chosen_B - rejected_B).mean()
