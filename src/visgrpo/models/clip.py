"""CLIP and SigLIP as classifiers: a distribution over class names for each image.

    logits_k = s · ⟨image, text_k⟩,   both features of length 1, s = exp(logit_scale)

SigLIP scores pairs with a sigmoid and an additive bias; over one set of classes the softmax of the
same scores ranks them alike, and the bias, equal for every class, cancels out of it.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visgrpo.data.worlds.scenes import with_article
from visgrpo.errors import UserError
from visgrpo.models.parts import without_dropout

LogitScale = Literal["frozen", "trainable", "clamped"]
PROMPTS_AT_ONCE = 512
SHOWN = 60  # characters of a long name in messages
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
        self.notes = _prompt_notes(tokenizer, self.backbone, classes, templates)
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

        Dropout is switched off, that of new adapters too: what is drawn is scored as it was drawn.

        Decided once and not from the parameters of the moment: the trainer runs an old policy by
        putting detached weights in their place, which looks like a frozen tower.
        """
        without_dropout(self)
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
    """Return ids and mask (K·P, L).

    SigLIP learned from texts in small letters (those of SigLIP 2 its tokenizer leaves as they are),
    padded on the right, without a mask.
    """
    prompts = class_prompts(classes, templates)
    texts = [text for own in prompts for text in own]
    length = backbone.config.text_config.max_position_embeddings
    siglip = backbone.config.model_type == "siglip"
    encoded = tokenizer(
        [text.lower() for text in texts] if siglip else texts,
        padding="max_length" if siglip else True,
        padding_side="right",
        truncation=True,
        max_length=length,
        return_tensors="pt",
    )
    ids = encoded["input_ids"]
    seen: dict[bytes, str] = {}
    for name, own in zip(classes, ids.view(len(classes), -1), strict=True):
        other = seen.setdefault(own.numpy().tobytes(), name)
        if other != name:
            raise UserError(
                f'Classes "{other[:SHOWN]}…" and "{name[:SHOWN]}…" have the same prompt in the '
                f"{length} tokens that the model reads: name them so that they differ earlier."
            )
    return ids, None if siglip else encoded["attention_mask"]


def _prompt_notes(
    tokenizer: Any, backbone: Any, classes: Sequence[str], templates: Sequence[str]
) -> tuple[str, ...]:
    """Return what prompts do to class names that is not seen from the names."""
    notes = []
    underscored = [name for name in classes if "_" in name]
    if underscored:
        notes.append(
            f"in prompts, the underscores of {len(underscored)} class names are spaces, as in "
            f'"{underscored[0].replace("_", " ")}".'
        )
    texts = [text for own in class_prompts(classes, templates) for text in own]
    length = backbone.config.text_config.max_position_embeddings
    cut = [
        text
        for text, ids in zip(texts, tokenizer(texts, verbose=False)["input_ids"], strict=True)
        if len(ids) > length
    ]
    if cut:
        notes.append(
            f"{len(cut)} of {len(texts)} prompts are longer than the {length} tokens that the "
            f'model reads, and are cut, such as "{cut[0][:SHOWN]}…".'
        )
    return tuple(notes)


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


DEFAULT_TEMPLATES = ("a photo of a {}.",)
_ARTICLE_AND_NAME = re.compile(r"\b(?:a|an) \{\}", re.IGNORECASE)


def check_templates(templates: Sequence[str]) -> None:
    """Raise UserError for no template, or one without exactly one ``{}``."""
    if not templates:
        raise UserError('No prompt template: give at least one, such as "a photo of a {}."')
    for template in templates:
        if template.count("{}") != 1:
            raise UserError(
                f'Template "{template}" must hold {{}} exactly once, where the class name goes.'
            )


def fill(template: str, name: str) -> str:
    """Put a class name into a template; "a {}" becomes "an apple" where the name asks for it.

    Of synonyms separated by commas, as in ImageNet's names, the first is used.
    """
    return _put(template, _synonyms(name)[0])


def prompt_names(classes: Sequence[str]) -> list[str]:
    """Return what prompts call each class, K names.

    That is the first of its synonyms separated by commas. Classes that share their first synonym,
    letter case aside, each take the next one that no other class has, else their whole name:
    ImageNet's "maillot" and "maillot, tank suit" become "maillot" and "tank suit".
    """
    synonyms = [_synonyms(name) for name in classes]
    firsts = Counter(_as_read(own[0]) for own in synonyms)
    owners = Counter(text for own in synonyms for text in set(map(_as_read, own)))
    return [
        own[0]
        if firsts[_as_read(own[0])] == 1
        else next((text for text in own[1:] if owners[_as_read(text)] == 1), ", ".join(own))
        for own in synonyms
    ]


def class_prompts(classes: Sequence[str], templates: Sequence[str]) -> list[list[str]]:
    """Return the prompts of every class by its name of `prompt_names`, K lists of P texts.

    Raises:
        UserError: for a bad template, and for two classes whose prompts are the same texts, letter
            case aside.
    """
    check_templates(templates)
    prompts = [[_put(template, name) for template in templates] for name in prompt_names(classes)]
    seen: dict[tuple[str, ...], str] = {}
    for name, texts in zip(classes, prompts, strict=True):
        key = tuple(map(_as_read, texts))
        if key in seen:
            raise UserError(
                f'Classes "{seen[key]}" and "{name}" give the same prompt "{texts[0]}" (letter '
                "case does not count): rename one of them."
            )
        seen[key] = name
    return prompts


def _synonyms(name: str) -> list[str]:
    """Return the names that commas separate, one or more."""
    texts = [text.strip() for text in name.replace("_", " ").split(",")]
    return [text for text in texts if text] or [""]


def _as_read(text: str) -> str:
    """Return `text` as CLIP's tokenizer reads it: equal here is a tie that no training breaks."""
    return " ".join(text.lower().split())


def _put(template: str, name: str) -> str:
    capital = template[:1].isupper()
    text = _ARTICLE_AND_NAME.sub(lambda _: with_article(name), template).replace("{}", name)
    return text[:1].upper() + text[1:] if capital else text
