"""How evenly features lie on the sphere, as a loss: the log mean Gaussian potential.

    L = log  mean_{i ≠ j}  exp(-t ‖z_i - z_j‖²),   z = features brought to length 1

Source: Wang & Isola 2020, arXiv 2005.10242, eq. 6. It is lowest for evenly spread features and 0
when all coincide. The number belongs to a batch and not to an output, so as a *reward* it would be
the same for every class of an image and have no advantage: here it is a differentiable term.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from visgrpo.errors import UserError


def gaussian_potential(features_ND: Tensor, *, t: float = 2.0) -> Tensor:
    """Return the log mean Gaussian potential of N features over all ordered pairs, a scalar ≤ 0.

    Raises:
        UserError: for fewer than two features, which form no pair.
    """
    n_inputs = len(features_ND)
    if n_inputs < 2:
        raise UserError("Feature uniformity compares pairs: it needs two images or more.")
    with torch.autocast(features_ND.device.type, enabled=False):  # bf16 is too rough for them
        z_ND = F.normalize(features_ND.float(), dim=-1)
        # On the sphere ‖x - y‖² = 2 - 2⟨x, y⟩.
        exponents_NN = 2 * t * (z_ND @ z_ND.T - 1)
    itself = torch.eye(n_inputs, dtype=torch.bool, device=z_ND.device)
    pairs = exponents_NN.masked_fill(itself, -torch.inf)
    return pairs.flatten().logsumexp(dim=0) - math.log(n_inputs * (n_inputs - 1))
