"""What every family of vision-language models has: a tower, a bridge, a transformer that reads."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from PIL import Image
from torch import Tensor, nn

from visgrpo.data.pictures import Picture, Pictures
from visgrpo.errors import UserError
from visgrpo.models.prompt_reading import text_positions


@dataclass(frozen=True)
class VisionFamily(ABC):
    """How a transformers vision-language model (…ForConditionalGeneration) is used in parts.

    What it does with a model needs none of its attributes; what it does with images, and which goes
    into worker processes without the model, needs them: :func:`with_images`.

    Attributes:
        place: the token of an image's places in a prompt.
        marker: what stands for an image in a rendered chat; mostly the same.
        tile: places of a tile, where images are cut into tiles.
        settings: what belongs into processor_config.json beside the image processor's settings.
    """

    place: str = ""
    marker: str = ""
    tile: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)

    def trunk(self, model: Any) -> Any:
        """The transformer that reads text and features, without its output head."""
        return model.model.language_model

    def tower(self, model: Any) -> nn.Module:
        """What makes states of pixels; it may hold the bridge."""
        tower: nn.Module = model.model.vision_tower
        return tower

    def bridge(self, model: Any) -> nn.Module:
        """The last part of the way from pixels to features."""
        bridge: nn.Module = model.model.multi_modal_projector
        return bridge

    def features(self, model: Any, pictures: Pictures) -> tuple[Tensor, ...]:
        """Return the features (tokens, D) of each image."""
        return self.bridged(model, self.states(model, pictures), pictures)

    @abstractmethod
    def states(self, model: Any, pictures: Pictures) -> tuple[Tensor, ...]:
        """Return the states of each image from which the bridge makes its features."""

    @abstractmethod
    def bridged(
        self, model: Any, states: tuple[Tensor, ...], pictures: Pictures
    ) -> tuple[Tensor, ...]:
        """Return the features (tokens, D) of each image, of its states."""

    def inputs(self, embeds_NPD: Tensor, places_NP: Tensor, features: Tensor) -> dict[str, Tensor]:
        """Return what the trunk takes of prompts: embeddings with features in images' places."""
        filled = embeds_NPD.masked_scatter(places_NP.unsqueeze(-1), features)
        return {"inputs_embeds": filled}

    def ahead(self, places_NP: Tensor) -> Tensor | None:
        """Return which later places (N, P, P) of a prompt a place sees; None where none does."""
        return None

    def positions(
        self, model: Any, prompts_NP: Tensor, mask_NP: Tensor, pictures: Pictures | None
    ) -> tuple[Tensor, Tensor]:
        """Return the positions of prompts padded on the left, (N, P) or (3, N, P), and the next.

        They are those of plain text, but for families that say otherwise.
        """
        lengths_N = mask_NP.sum(dim=1)
        return text_positions(lengths_N, prompts_NP.shape[1]), lengths_N

    @abstractmethod
    def plain_inputs(
        self, model: Any, tokens_BS: Tensor, mask_BS: Tensor, pictures: Pictures | None
    ) -> dict[str, Any]:
        """Return what transformers' own model takes of whole sequences, beside the mask."""

    @classmethod
    def of(cls, config: Any, images: Any, tokenizer: Any) -> VisionFamily:
        """Return the family of a model with its way with images, by the model's configuration.

        Raises:
            UserError: when the image processor cuts images otherwise than the model takes them, or
                the tokenizer lacks the token that stands for one.
        """
        number = config.image_token_id
        if number not in tokenizer.get_vocab().values():
            raise UserError(
                f"The tokenizer has no token {number}, the model's image_token_id: the two do not "
                "belong together."
            )
        place = tokenizer.convert_ids_to_tokens(number)
        tile, settings = cls._fitting(config, images)
        return cls(place, cls._marker(place), tile, settings)

    @classmethod
    def _marker(cls, place: str) -> str:
        return place

    @property
    @abstractmethod
    def placeholders(self) -> tuple[str, ...]:
        """Tokens that only images bring; not every vocabulary has all of them."""

    @abstractmethod
    def picture(self, images: Any, image: Image.Image, alone: bool) -> Picture:
        """Preprocess one image, exactly as the image processor does.

        Args:
            alone: whether it is the only one of its prompt.
        """

    @abstractmethod
    def text(self, picture: Picture) -> str:
        """Return what replaces the marker of an image, exactly as the family's processor does."""

    @abstractmethod
    def resizes(self, images: Any, image: Image.Image) -> bool:
        """Return whether an image is larger than the image processor lets through."""

    @abstractmethod
    def limit(self, images: Any, max_pixels: int) -> None:
        """Make the image processor shrink images to at most so many pixels, in place."""

    def enlarge(self, images: Any, min_pixels: int) -> None:
        """Make the image processor enlarge images to at least so many pixels, in place."""
        raise UserError("--min-pixels is for Qwen-VLs: this model has one size, or one of tiles.")

    @classmethod
    @abstractmethod
    def _fitting(cls, config: Any, images: Any) -> tuple[int, dict[str, Any]]:
        """Refuse an image processor that cuts images otherwise than the model takes them.

        Returns:
            The places of a tile, and what processor_config.json says besides.
        """

    @staticmethod
    def _text_inputs(tokens_BS: Tensor, mask_BS: Tensor) -> dict[str, Any]:
        positions_BS = (mask_BS.cumsum(dim=1) - 1).clamp(min=0)
        return {"input_ids": tokens_BS, "position_ids": positions_BS}


def as_weights(pixels: Tensor, model: Any) -> Tensor:
    return pixels.to(model.dtype)


def check_equal(name: str, of_images: int, of_model: int) -> None:
    if of_images != of_model:
        raise UserError(
            f"The image processor has {name} {of_images}, the model {of_model}: the two do not "
            "belong together; mend preprocessor_config.json."
        )


def check_tile(max_pixels: int, side: int) -> None:
    """Refuse fewer pixels than a tile has.

    Raises:
        UserError: for those.
    """
    if max_pixels < side**2:
        raise UserError(f"--max-pixels {max_pixels}: a tile has {side**2}; give that or more.")
