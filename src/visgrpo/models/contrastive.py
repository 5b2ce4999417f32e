"""CLIP as it is pre-trained: images against the distinct captions of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from visgrpo.models.clip import clamp_scale


class ContrastiveClip(nn.Module):
    """Similarities (N, U) of images and texts, scaled by the clamped logit scale."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        super().__init__()
        self.model = model
        self._tokenizer = tokenizer
        self._length = model.config.text_config.max_position_embeddings

    def forward(self, pixels: Tensor, texts: Sequence[str]) -> Tensor:
        """Return logits (N, U) of pixels (N, 3, H, W) and U texts."""
        encoded = self._tokenizer(
            list(texts),
            padding=True,
            truncation=True,
            max_length=self._length,
            return_tensors="pt",
        ).to(pixels.device)
        images_ND = F.normalize(self.model.get_image_features(pixels).pooler_output, dim=-1)
        texts_UD = F.normalize(
            self.model.get_text_features(
                input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"]
            ).pooler_output,
            dim=-1,
        )
        clamp_scale(self.model)
        return self.model.logit_scale.exp() * images_ND @ texts_UD.T
