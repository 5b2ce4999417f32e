"""Images and messages to what a vision-language model reads: pixels, and ids with places for them.

A checkpoint's own processor class wants a video processor, and with it torchvision; its image
processor and its tokenizer do not, and are all that images need.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image

from visgrpo.data.pictures import Picture
from visgrpo.data.text import Prompt, render, token_ids
from visgrpo.errors import UserError
from visgrpo.models.vision_language.families import VisionFamily, with_images

Messages = Sequence[Mapping[str, Any]]
_PROBE = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}]


class VisionProcessor:
    """The image processor and the tokenizer of one model; goes into worker processes by pickle.

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

    def picture(self, image: Image.Image) -> Picture:
        """Return an image as the vision tower takes it: what the image processor makes of it.

        Raises:
            UserError: for an image so thin that whole tokens would distort it.
        """
        return self._family.picture(self.images, image)

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
        settings = json.dumps(self._family.settings(), indent=1)
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
