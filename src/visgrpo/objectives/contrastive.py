"""The contrastive loss of image and text features, with captions that may repeat in a batch."""

from __future__ import annotations

import torch
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
