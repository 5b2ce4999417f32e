"""Losses beside GRPO: contrastive ones, uniformity of features, and preferences."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from visgrpo.errors import UserError


def contrastive_loss(logits_NU: Tensor, caption_of_N: Tensor) -> Tensor:
    """Return the symmetric InfoNCE loss of N images against the U distinct captions of a batch.

        image → text   -1/N Σ_n log softmax_u(logits_nu) at the caption of n
        text → image   -1/U Σ_u mean over the images n of caption u of log softmax_n(logits_nu)

    Encoding each caption once, and treating all its images as its positives, keeps two images of
    one class from being each other's negatives (UniCL, Yang et al. 2022, arXiv 2204.03610). When
    no caption repeats this is CLIP's loss (Radford et al. 2021).

    Args:
        logits_NU: scaled similarities.
        caption_of_N: for each image the column of its caption; every column is some image's.
    """
    to_text_NU = logits_NU.log_softmax(dim=1)
    to_image_NU = logits_NU.log_softmax(dim=0)
    positive_NU = torch.zeros_like(logits_NU)
    positive_NU.scatter_(1, caption_of_N[:, None], 1.0)
    images_of_U = positive_NU.sum(dim=0)
    image_to_text = -(positive_NU * to_text_NU).sum(dim=1).mean()
    text_to_image = -((positive_NU * to_image_NU).sum(dim=0) / images_of_U).mean()
    return (image_to_text + text_to_image) / 2


def supervised_contrastive_loss(
    vectors_VE: Tensor, group_of_V: Tensor, temperature: float
) -> Tensor:
    """Return the supervised contrastive loss of V views (Khosla et al. 2020, arXiv 2004.11362).

        mean over v of  -1/|P(v)| Σ_{p ∈ P(v)} log [ exp(z_v·z_p / τ) / Σ_{a ≠ v} exp(z_v·z_a / τ) ]

    P(v) are the other views of v's group. This is the paper's equation 2, "out", as a mean instead
    of a sum. With two views of every image, and every image a group of its own, it is SimCLR's
    NT-Xent (Chen et al. 2020, arXiv 2002.05709).

    Args:
        vectors_VE: of any length; z are these at length 1.
        group_of_V: a whole number for each view; views of one group attract each other. Every
            group needs two views or more: a view without another has no loss, and gives NaN.
        temperature: τ, above 0.
    """
    unit_VE = F.normalize(vectors_VE, dim=1)
    itself_VV = torch.eye(len(unit_VE), dtype=torch.bool, device=unit_VE.device)
    logits_VV = (unit_VE @ unit_VE.T / temperature).masked_fill(itself_VV, -torch.inf)
    log_share_VV = logits_VV.log_softmax(dim=1)
    positive_VV = (group_of_V[:, None] == group_of_V[None, :]) & ~itself_VV
    # Of a view with itself the logarithm is -inf: left out by selection, since 0 · inf is NaN.
    summed_V = log_share_VV.where(positive_VV, 0.0).sum(dim=1)
    return -(summed_V / positive_VV.sum(dim=1)).mean()


def gaussian_potential(features_ND: Tensor, *, t: float = 2.0) -> Tensor:
    """Return the log mean Gaussian potential of N features over all ordered pairs, a scalar ≤ 0.

        L = log  mean_{i ≠ j}  exp(-t ‖z_i - z_j‖²),   z = features brought to length 1

    Source: Wang & Isola 2020, arXiv 2005.10242, eq. 6. It is lowest for evenly spread features and
    0 when all coincide. The number belongs to a batch and not to an output, so as a *reward* it
    would be the same for every class of an image and have no advantage: here it is a term.

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


def bradley_terry_loss(chosen_B: Tensor, rejected_B: Tensor) -> Tensor:
    """Return the mean negative log-likelihood of B choices, in nats: a scalar.

        mean of  -log σ(s_chosen - s_rejected)

    Choices know differences of scores only: a constant may be added to all. Sources: Bradley &
    Terry 1952; as the loss of a reward model, Ouyang et al. 2022 (arXiv 2203.02155), eq. 1.

    Args:
        chosen_B: scores of the outputs that were preferred.
        rejected_B: scores of the others.
    """
    return -F.logsigmoid(chosen_B - rejected_B).mean()
