"""Contrastive losses: of images and captions that may repeat in a batch, and of views of images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


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
