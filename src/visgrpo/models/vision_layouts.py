"""How families of vision-language models cut images up and give them places in a prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from PIL import Image

from visgrpo.data.pictures import Picture
from visgrpo.errors import UserError
from visgrpo.models.qwen_vision import VISION_TOKENS

_MOST_STRETCH = 2.0  # rounding to whole tokens stretches an image of one token or more by less
_FAKE, _GLOBAL = "<fake_token_around_image>", "<global-img>"
_MOST_TILES = 6  # a side, that Idefics3 and SmolVLM have tokens for


class Layout(Protocol):
    """One family's way with images, given its image processor."""

    @property
    def marker(self) -> str:
        """What stands for an image in a rendered chat; also the token of an image's places."""

    @property
    def placeholders(self) -> tuple[str, ...]:
        """Tokens that only images bring; not every vocabulary has all of them."""

    def picture(self, images: Any, image: Image.Image) -> Picture:
        """Preprocess one image, exactly as the image processor does."""

    def text(self, picture: Picture) -> str:
        """Return what replaces the marker of an image, exactly as the family's processor does."""

    def resizes(self, images: Any, image: Image.Image) -> bool:
        """Return whether an image is larger than the image processor lets through."""

    def limit(self, images: Any, max_pixels: int) -> None:
        """Make the image processor shrink images to at most so many pixels, in place."""

    def settings(self) -> Mapping[str, Any]:
        """Return what belongs into processor_config.json beside the image processor's settings."""


def layout_of(config: Any, images: Any, tokenizer: Any) -> Layout:
    """Return the layout of a model, by its configuration.

    Raises:
        UserError: when the image processor cuts images otherwise than the model takes them, or the
            tokenizer lacks the token that stands for one.
    """
    number, vision = config.image_token_id, config.vision_config
    if number not in tokenizer.get_vocab().values():
        raise UserError(
            f"The tokenizer has no token {number}, the model's image_token_id: the two do not "
            "belong together."
        )
    marker = tokenizer.convert_ids_to_tokens(number)
    if config.model_type == "qwen2_5_vl":
        _check_equal("patch_size", images.patch_size, vision.patch_size)
        _check_equal("temporal_patch_size", images.temporal_patch_size, vision.temporal_patch_size)
        _check_equal("merge_size", images.merge_size, vision.spatial_merge_size)
        return PatchLayout(marker, (marker, *VISION_TOKENS, "<|vision_pad|>"))
    _check_equal("max_image_size", images.max_image_size["longest_edge"], vision.image_size)
    side = vision.image_size // vision.patch_size // config.scale_factor
    sides = range(1, _MOST_TILES + 1)
    places = tuple(f"<row_{row}_col_{column}>" for row in sides for column in sides)
    return TileLayout(marker, (marker, _FAKE, _GLOBAL, *places), side**2, config.model_type)


@dataclass(frozen=True)
class PatchLayout:
    """Qwen2.5-VL: an image of any size is a grid of patches, merged to fewer tokens."""

    marker: str
    placeholders: tuple[str, ...]

    def picture(self, images: Any, image: Image.Image) -> Picture:
        try:
            made = images(images=[image], return_tensors="pt")
        except ValueError as error:  # transformers', of images more than 200 times as long as wide
            raise _too_thin(image) from error
        moments, rows, columns = made["image_grid_thw"][0].tolist()
        stretch = (rows / columns) / (image.height / image.width)
        if not 1 / _MOST_STRETCH <= stretch <= _MOST_STRETCH:
            raise _too_thin(image)
        tokens = moments * rows * columns // images.merge_size**2
        return Picture(made["pixel_values"].float(), (moments, rows, columns), tokens)

    def text(self, picture: Picture) -> str:
        return self.marker * picture.tokens

    def resizes(self, images: Any, image: Image.Image) -> bool:
        return bool(image.width * image.height > images.size["longest_edge"])

    def limit(self, images: Any, max_pixels: int) -> None:
        token = (images.patch_size * images.merge_size) ** 2
        if max_pixels < token:
            raise UserError(f"--max-pixels {max_pixels}: a token sees {token}; give that or more.")
        least = min(images.size["shortest_edge"], max_pixels)
        images.size = {"shortest_edge": least, "longest_edge": max_pixels}

    def settings(self) -> Mapping[str, Any]:
        return {"processor_class": "Qwen2_5_VLProcessor"}


@dataclass(frozen=True)
class TileLayout:
    """Idefics3 and SmolVLM: square tiles of an image, row by row, and then the whole of it small.

    Attributes:
        tokens: places of a tile.
        kind: the model's ``model_type``.
    """

    marker: str
    placeholders: tuple[str, ...]
    tokens: int
    kind: str

    def picture(self, images: Any, image: Image.Image) -> Picture:
        made = images(images=[image], return_tensors="pt", return_row_col_info=True)
        tiles = made["pixel_values"][0].float()
        rows, columns = made["rows"][0][0], made["cols"][0][0]  # 0 and 0 of an image in one piece
        return Picture(tiles, (1, max(rows, 1), max(columns, 1)), self.tokens * len(tiles))

    def text(self, picture: Picture) -> str:
        _, rows, columns = picture.grid
        tile = self.marker * self.tokens
        whole = f"{_FAKE}{_GLOBAL}{tile}{_FAKE}"
        if len(picture.pixels) == 1:
            return whole
        lines = (
            "".join(f"{_FAKE}<row_{row}_col_{column}>{tile}" for column in range(1, columns + 1))
            for row in range(1, rows + 1)
        )
        return "".join(f"{line}\n" for line in lines) + f"\n{whole}"

    def resizes(self, images: Any, image: Image.Image) -> bool:
        return bool(max(image.size) > images.size["longest_edge"])

    def limit(self, images: Any, max_pixels: int) -> None:
        side = images.max_image_size["longest_edge"]
        tiles = int(max_pixels**0.5) // side
        if not tiles:
            raise UserError(f"--max-pixels {max_pixels}: a tile has {side**2}; give that or more.")
        longest = min(tiles * side, images.size["longest_edge"])
        images.size = {"longest_edge": longest}

    def settings(self) -> Mapping[str, Any]:
        name = {"smolvlm": "SmolVLMProcessor", "idefics3": "Idefics3Processor"}[self.kind]
        return {"processor_class": name, "image_seq_len": self.tokens}


def _check_equal(name: str, of_images: int, of_model: int) -> None:
    if of_images != of_model:
        raise UserError(
            f"The image processor has {name} {of_images}, the model {of_model}: the two do not "
            "belong together; mend preprocessor_config.json."
        )


def _too_thin(image: Image.Image) -> UserError:
    return UserError(
        f"An image of {image.width} × {image.height} pixels is too thin to be cut into whole "
        "tokens without distortion: crop or pad it."
    )
