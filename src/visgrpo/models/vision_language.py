"""A vision-language model as a policy: images and messages in, tokens out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from visgrpo.data.kept import Kept, weights_key
from visgrpo.data.pictures import Picture, Pictures
from visgrpo.data.text import Prompt, render, token_ids
from visgrpo.errors import UserError
from visgrpo.models.language import Critic, Engine, LanguageModel
from visgrpo.models.prompt_reading import ReadPrompts, padding, read_prompts, recomputed
from visgrpo.models.vision_families import VisionFamily, family_of, with_images

FEATURE_BYTES = 2**30
# What of the way from pixels to features is the same in every step: none of it, up to the tower's
# states, or all.
Frozen = Literal["nothing", "states", "features"]


class FeatureCache:
    """What a frozen tower makes of images, by their keys, up to a number of bytes.

    What comes when it is full is not kept: the first images of a run are those of the first epoch,
    which come again. What is kept is on the disk too, for other stages and runs.

    Args:
        folder: on the disk; None for none.
    """

    def __init__(self, budget_bytes: int, folder: Path | None = None) -> None:
        self.budget_bytes, self.bytes, self.folder = budget_bytes, 0, folder
        self._kept: dict[str, Tensor] = {}
        self._holds: Frozen = "nothing"
        self._disk: Kept | None = None

    def hold(self, frozen: Frozen, key: Callable[[], Mapping[str, str]] = dict) -> None:
        """Forget what was kept when more or less was frozen: it is of another kind, or stale.

        Args:
            key: says what makes it, see `Kept`; asked for the disk alone.
        """
        if frozen == self._holds:
            return
        self._kept, self.bytes, self._holds = {}, 0, frozen
        on_disk = self.folder is not None and self.budget_bytes > 0 and frozen != "nothing"
        self._disk = Kept(self.folder, key()) if on_disk else None

    def fetch(self, keys: Iterable[str], device: torch.device) -> None:
        """Take from the disk what is not at hand of some keys."""
        asked = [key.encode() for key in keys if key and key not in self._kept]
        if self._disk is not None and asked:
            for name, tensor in self._disk.read(asked):
                self.keep(name.decode(), tensor.to(device))

    def store(self, keys: Iterable[str]) -> None:
        """Bring to the disk what was kept of some keys."""
        made = {key.encode(): self._kept[key] for key in keys if key in self._kept}
        if self._disk is not None and made:
            self._disk.write(made)

    def get(self, key: str) -> Tensor | None:
        return self._kept.get(key)

    def keep(self, key: str, made: Tensor) -> None:
        """Keep a tensor under a key that is not empty, where there is room."""
        if not key or key in self._kept or self.bytes + made.nbytes > self.budget_bytes:
            return
        self._kept[key] = made.clone()  # a slice would hold all of its batch
        self.bytes += made.nbytes


class VisionLanguageModel(LanguageModel):
    """A transformers vision-language model, perhaps inside peft adapters.

    Every image goes through the tower once for a prompt, whatever the number of its completions,
    and once for all steps while the tower is frozen.

    Attributes:
        feature_bytes: of features of a frozen tower that are kept, at most.
        folder: where they are kept for other stages and runs, too; None for nowhere.
    """

    def __init__(
        self,
        lm: Any,
        critic: Critic | None = None,
        engine: Engine = "shared",
        feature_bytes: int = FEATURE_BYTES,
        folder: Path | None = None,
    ) -> None:
        super().__init__(lm, critic, engine)
        self.family = family_of(self.plain)
        self.cache = FeatureCache(feature_bytes, folder)

    def like(self, lm: Any) -> VisionLanguageModel:
        """Return another model that is used in the same way.

        It has features of its own, unless what makes them is frozen in both and the same.
        """
        budget, folder = self.cache.budget_bytes, self.cache.folder
        other = VisionLanguageModel(lm, None, self.engine, budget, folder)
        if self.frozen() == other.frozen() == "features":
            other.cache = self.cache
        return other

    @property
    def trunk(self) -> Any:
        return self.family.trunk(self.plain)

    def _recomputing(self, trunk: Any) -> AbstractContextManager[None]:
        return recomputed(trunk, self.family.tower(self.plain)) if self.recompute else nullcontext()

    def features(self, pictures: Pictures) -> list[Tensor]:
        """Return the features (tokens, D) of each image, with gradient where something trains.

        Of a frozen tower, its states are kept if the bridge behind it trains, else its features.
        """
        model, family, frozen = self.plain, self.family, self.frozen()
        self.cache.hold(frozen, self._frozen_key)
        if frozen == "nothing":
            return list(family.features(model, pictures))
        if frozen == "states":
            states = tuple(self._kept(pictures, family.states))
            return list(family.bridged(model, states, pictures))
        return self._kept(pictures, family.features)

    def frozen(self) -> Frozen:
        """Return how much of the way from pixels to features does not train, and can be kept."""
        bridge = list(self.family.bridge(self.plain).parameters())
        inside = set(map(id, bridge))
        tower = (p for p in self.family.tower(self.plain).parameters() if id(p) not in inside)
        if any(p.requires_grad for p in tower):
            return "nothing"
        return "states" if any(p.requires_grad for p in bridge) else "features"

    def _frozen_key(self) -> dict[str, str]:
        """Return what features or states depend on beside the image."""
        model, frozen, device = self.plain, self.frozen(), self.device.type
        tower, bridge = self.family.tower(model), self.family.bridge(model)
        cast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else ""
        return {
            "tower": weights_key(tower, but=bridge),
            "bridge": weights_key(bridge) if frozen == "features" else "",
            "model": model.config.to_json_string(),
            "made": frozen,
            "precision": str(cast),
        }

    @torch.no_grad()
    def _kept(self, pictures: Pictures, make: Any) -> list[Tensor]:
        """Return what a frozen part makes of each image; what is not kept yet is made together."""
        self.cache.fetch(pictures.keys, self.device)
        found = [self.cache.get(key) for key in pictures.keys]
        missing = [i for i, kept in enumerate(found) if kept is None]
        if missing:
            made = make(self.plain, pictures.images(missing))
            for i, tensor in zip(missing, made, strict=True):
                self.cache.keep(pictures.keys[i], tensor)
                found[i] = tensor
            self.cache.store(pictures.keys[i] for i in missing)
        return [tensor for tensor in found if tensor is not None]

    def _read(
        self, prompts_NP: Tensor, lengths_N: Tensor, pictures: Pictures | None
    ) -> ReadPrompts:
        model, trunk = self.plain, self.trunk
        embeds_NPD = trunk.get_input_embeddings()(prompts_NP)
        places_NP = prompts_NP == model.config.image_token_id
        self._check_places(places_NP, pictures)
        inputs, ahead_NPP = {"inputs_embeds": embeds_NPD}, None
        if pictures is not None:
            features = torch.cat(self.features(pictures)).to(embeds_NPD.dtype)
            inputs = self.family.inputs(embeds_NPD, places_NP, features)
            ahead_NPP = self.family.ahead(places_NP)
        mask_NP = (~padding(lengths_N, prompts_NP.shape[1])).long()
        positions, next_N = self.family.positions(model, prompts_NP, mask_NP, pictures)
        return read_prompts(trunk, lengths_N, positions, next_N, ahead_NPP, **inputs)

    def _plain_inputs(
        self, tokens_BS: Tensor, mask_BS: Tensor, pictures: Pictures | None, group_size: int
    ) -> dict[str, Any]:
        self._check_places(tokens_BS == self.plain.config.image_token_id, pictures, group_size)
        repeated = pictures.repeated(group_size) if pictures is not None else None
        return self.family.plain_inputs(self.plain, tokens_BS, mask_BS, repeated)

    def _check_places(
        self, places_NP: Tensor, pictures: Pictures | None, group_size: int = 1
    ) -> None:
        """Refuse prompts whose image tokens are not as many as the images' features."""
        places_N = places_NP.sum(dim=1).tolist()[::group_size]
        tokens_N = self._tokens(pictures, len(places_N))
        for row, (places, tokens) in enumerate(zip(places_N, tokens_N, strict=True)):
            if places != tokens:
                raise UserError(
                    f"Prompt {row} of the batch has {places} image tokens for {tokens} features of "
                    "its images: its text must hold one place for each image and no image token "
                    "of its own."
                )

    def _tokens(self, pictures: Pictures | None, prompts: int) -> list[int]:
        """Return how many features the images of each prompt have."""
        if pictures is None:
            return [0] * prompts
        counts, image = [], 0
        for number in pictures.counts_N:
            counts.append(sum(pictures.tokens_I[image : image + number]))
            image += number
        return counts


Messages = Sequence[Mapping[str, Any]]
_PROBE = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}]


class VisionProcessor:
    """The image processor and the tokenizer of one model; goes into worker processes by pickle.

    A checkpoint's own processor class wants a video processor, and with it torchvision; these two
    do not, and are all that images need.

    Attributes:
        tokenizer: of transformers, with a chat template that takes images.
        images: its image processor, of transformers' pillow kind.
        placeholder_ids: tokens that stand for images or around them and are never to be drawn: the
            model looks for features at them.
    """

    def __init__(self, images: Any, tokenizer: Any, family: VisionFamily) -> None:
        self.images, self.tokenizer, self._family = images, tokenizer, family
        vocabulary = tokenizer.get_vocab()
        known = {vocabulary[token] for token in family.placeholders if token in vocabulary}
        self.placeholder_ids = tuple(sorted(known))
        self._image_id = vocabulary[family.marker]

    @classmethod
    def of(cls, config: Any, images: Any, tokenizer: Any) -> VisionProcessor:
        """Put together what belongs to the model of a configuration.

        Raises:
            UserError: for parts of different models, and a chat template that takes no images.
        """
        processor = cls(images, tokenizer, with_images(config, images, tokenizer))
        processor._check_template()
        return processor

    def picture(self, image: Image.Image, alone: bool = True) -> Picture:
        """Return an image as the vision tower takes it: what the image processor makes of it.

        Args:
            alone: whether it is the only one of its prompt.

        Raises:
            UserError: for an image so thin that whole tokens would distort it.
        """
        return self._family.picture(self.images, image, alone)

    def resizes(self, image: Image.Image) -> bool:
        """Return whether an image is larger than the model takes, and will be made smaller."""
        return self._family.resizes(self.images, image)

    def limit(self, max_pixels: int) -> None:
        """Let images of at most so many pixels through, and make larger ones smaller.

        Where small images are enlarged, it is to no more than this either.

        Raises:
            UserError: for fewer pixels than the vision tower takes at least.
        """
        self._family.limit(self.images, max_pixels)

    def enlarge(self, min_pixels: int) -> None:
        """Make images of fewer pixels larger.

        Raises:
            UserError: for a family that does not, and for more than images may have at most.
        """
        self._family.enlarge(self.images, min_pixels)

    def prompt_ids(self, messages: Messages, pictures: Sequence[Picture]) -> np.ndarray:
        """Return the int32 ids of messages, with the header of the answer and places for images.

        Args:
            messages: their content is a string, or a list of {"type": "image"} and
                {"type": "text", "text": …}.
            pictures: the images, in the order of their places.

        Raises:
            UserError: when there are more or fewer images than places, and when a text spells the
                image token.
        """
        places = sum(_images_in(message) for message in messages)
        if places != len(pictures):
            raise UserError(
                f"The messages have places for {places} image(s), but {len(pictures)} came along: "
                "give one image for each place."
            )
        return token_ids([self._rendered(messages, pictures)], self.tokenizer)[0]

    def save_pretrained(self, folder: Path) -> None:
        """Write the image processor and its settings, as plain transformers loads them."""
        self.images.save_pretrained(folder)
        settings = json.dumps(dict(self._family.settings), indent=1)
        (folder / "processor_config.json").write_text(settings, encoding="utf-8")

    def _rendered(self, messages: Messages, pictures: Sequence[Picture]) -> str:
        text = render(cast(Prompt, messages), self.tokenizer)
        first, *rest = text.split(self._family.marker)
        if len(rest) != len(pictures):
            raise UserError(
                f"{len(pictures)} image(s) are in the messages, but {self._family.marker} is "
                f"{len(rest)} times in the chat: take it out of the texts."
            )
        places = [self._family.text(picture) for picture in pictures]
        return first + "".join(a + b for a, b in zip(places, rest, strict=True))

    def _check_template(self) -> None:
        """Refuse a chat template that passes images over, or that takes nothing but strings."""
        marker = self._family.marker
        refusal = UserError(
            f"The tokenizer's chat template does not write {marker} for an image in a message: "
            "give it the template of the model's own processor."
        )
        try:
            text = render(cast(Prompt, _PROBE), self.tokenizer)
        except TypeError as error:  # of a template that adds the list of parts to a string
            raise refusal from error
        if text.count(marker) != 1:
            raise refusal
        if self._image_id not in token_ids([text], self.tokenizer)[0]:
            raise UserError(
                f'The tokenizer cuts {marker} up: set "split_special_tokens" to false in its '
                "tokenizer_config.json."
            )


def _images_in(message: Mapping[str, Any]) -> int:
    content = message["content"]
    if isinstance(content, str):
        return 0
    return sum(part["type"] == "image" for part in content)
