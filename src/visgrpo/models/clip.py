"""CLIP and SigLIP as classifiers: a distribution over class names for each image.

    logits_k = s · ⟨image, text_k⟩,   both features of length 1, s = exp(logit_scale)

SigLIP scores pairs with a sigmoid and an additive bias; over one set of classes the softmax of the
same scores ranks them alike, and the bias, equal for every class, cancels out of it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visgrpo.models.prompts import class_prompts

LogitScale = Literal["frozen", "trainable", "clamped"]
PROMPTS_AT_ONCE = 512
MAX_LOGIT_SCALE = math.log(100.0)  # CLIP's own ceiling: Radford et al. 2021, section 2.5


class ClipClassifier(nn.Module):
    """A dual encoder over K class names, each the mean of its P prompts' features.

    ``forward`` takes pixels (N, 3, H, W), or the image tower's pooled features (N, P) computed
    before, and returns logits (N, K). Text features are computed once while the text side is
    frozen; otherwise with gradient in every training step, and once per stay in evaluation mode.

    Args:
        encoder: a transformers CLIPModel or SiglipModel, perhaps inside a peft model.
        tokenizer: the checkpoint's own.
        logit_scale: ``frozen`` (the start's), ``trainable``, or ``clamped`` (trainable, never
            above 100).
    """

    def __init__(
        self,
        encoder: nn.Module,
        tokenizer: Any,
        classes: Sequence[str],
        templates: Sequence[str],
        *,
        logit_scale: LogitScale = "frozen",
    ) -> None:
        super().__init__()
        self.encoder: Any = encoder
        self.classes = tuple(classes)
        self.templates = tuple(templates)
        self.scale_mode = logit_scale
        self.inputs_are_features = False
        self._token_ids, self._token_mask = _tokenize(tokenizer, self.backbone, classes, templates)
        self._text_features_KD: Tensor | None = None
        self._pooled_prompts: Tensor | None = None  # before the projection, in order K·P
        self.note_what_trains()

    @property
    def backbone(self) -> Any:
        """The transformers model itself, out of its adapter wrapper if it has one."""
        return self.encoder.get_base_model() if self.has_adapter else self.encoder

    @property
    def has_adapter(self) -> bool:
        """Whether the encoder is a transformers model inside a peft one."""
        return hasattr(self.encoder, "get_base_model")

    @property
    def device(self) -> torch.device:
        return self.backbone.logit_scale.device

    def features(self, pixels: Tensor) -> Tensor:
        """Return the image tower's pooled features (N, P), before the projection."""
        return self.backbone.vision_model(pixel_values=pixels).pooler_output

    def embed_images(self, inputs: Tensor) -> Tensor:
        """Return image features (N, D) of length 1 from pixels, or from pooled features."""
        pooled = inputs if self.inputs_are_features else self.features(inputs)
        projection = getattr(self.backbone, "visual_projection", None)
        return F.normalize(pooled if projection is None else projection(pooled), dim=-1)

    def embed_classes(self) -> Tensor:
        """Return text features (K, D) of length 1; the mean over templates, brought to length 1."""
        if self._text_features_KD is not None:
            return self._text_features_KD
        if self.text_is_frozen or not self.training:
            with torch.no_grad():
                self._text_features_KD = self._encode_prompts().detach()
            return self._text_features_KD
        return self._encode_prompts()

    def scale(self) -> Tensor:
        """Return s, the factor on the cosine similarity: a scalar."""
        if self.scale_mode == "clamped":
            clamp_scale(self.backbone)
        return self.backbone.logit_scale.float().reshape(()).exp()

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits (N, K) in float32."""
        images_ND, texts_KD = self.embed_images(inputs), self.embed_classes()
        return self.scale() * (images_ND @ texts_KD.to(images_ND.dtype).T).float()

    def note_what_trains(self) -> None:
        """Decide which text features may be kept; call it again after changing what trains.

        Decided once and not from the parameters of the moment: the trainer runs an old policy by
        putting detached weights in their place, which looks like a frozen tower.
        """
        projection = getattr(self.backbone, "text_projection", None)
        projects = projection is not None and projection.weight.requires_grad
        tower = any(p.requires_grad for p in self.backbone.text_model.parameters())
        self._text_tower_is_frozen = not tower
        self.text_is_frozen = not (tower or projects)
        self.forget_text()

    def train(self, mode: bool = True) -> ClipClassifier:
        super().train(mode)
        if not self.text_is_frozen:
            self._text_features_KD = None  # made from weights that are about to change, or have
        return self

    def forget_text(self) -> None:
        """Drop cached text features, after the weights were replaced."""
        self._text_features_KD = self._pooled_prompts = None

    def _encode_prompts(self) -> Tensor:
        pooled = self._pool_prompts()
        projection = getattr(self.backbone, "text_projection", None)
        per_prompt = F.normalize(pooled if projection is None else projection(pooled), dim=-1)
        per_class = per_prompt.view(len(self.classes), len(self.templates), -1).mean(dim=1)
        return F.normalize(per_class, dim=-1)

    def _pool_prompts(self) -> Tensor:
        """Return the text tower's features of every prompt; kept while the tower is frozen."""
        frozen = self._text_tower_is_frozen
        if frozen and self._pooled_prompts is not None:
            return self._pooled_prompts
        ids = self._token_ids.to(self.device)
        mask = None if self._token_mask is None else self._token_mask.to(self.device)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            # In pieces where no graph is kept anyway: 21,000 classes need not fit at once.
            size = len(ids) if torch.is_grad_enabled() else PROMPTS_AT_ONCE
            pieces = zip(ids.split(size), _split(mask, size), strict=False)
            pooled = torch.cat(
                [
                    self.backbone.text_model(input_ids=some, attention_mask=its_mask).pooler_output
                    for some, its_mask in pieces
                ]
            )
        if frozen:
            self._pooled_prompts = pooled
        return pooled


def _split(mask: Tensor | None, size: int) -> Iterable[Tensor | None]:
    return itertools.repeat(None) if mask is None else mask.split(size)


@torch.no_grad()
def clamp_scale(backbone: Any) -> None:
    """Bring the logit scale back to 100 or less.

    The parameter itself is cut, as CLIP's authors did: cutting its value in the forward pass would
    leave a scale that overshot without a gradient, and save it too large.
    """
    backbone.logit_scale.clamp_(max=MAX_LOGIT_SCALE)


def _tokenize(
    tokenizer: Any, backbone: Any, classes: Sequence[str], templates: Sequence[str]
) -> tuple[Tensor, Tensor | None]:
    """Return ids and mask (K·P, L). SigLIP was trained on padded texts without a mask."""
    texts = [text for prompts in class_prompts(classes, templates) for text in prompts]
    length = backbone.config.text_config.max_position_embeddings
    siglip = backbone.config.model_type == "siglip"
    encoded = tokenizer(
        texts,
        padding="max_length" if siglip else True,
        truncation=True,
        max_length=length,
        return_tensors="pt",
    )
    return encoded["input_ids"], None if siglip else encoded["attention_mask"]
