"""What differs between families of vision-language models: one class for each.

Every family has a tower that turns pixels into states, a bridge from states to features of the
language model's width, and a transformer that reads the features in the places of image tokens;
and a way of cutting images up and giving them places in a prompt.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from visgrpo.data.pictures import Picture, Pictures
from visgrpo.errors import UserError
from visgrpo.models.prompt_reading import text_positions
from visgrpo.models.tokenizers import VISION_TOKENS

_MOST_STRETCH = 2.0  # rounding to whole tokens stretches an image of one token or more by less
_FAKE, _GLOBAL = "<fake_token_around_image>", "<global-img>"
_MOST_TILES = 6  # a side, that Idefics3 and SmolVLM have tokens for


@dataclass(frozen=True)
class VisionFamily(ABC):
    """How a transformers vision-language model (…ForConditionalGeneration) is used in parts.

    What it does with a model needs none of its attributes; what it does with images, and which goes
    into worker processes without the model, needs them: :func:`with_images`.

    Attributes:
        marker: what stands for an image in a rendered chat; also the token of an image's places.
        kind: the model's ``model_type``.
        tile: places of a tile, where images are cut into tiles.
    """

    marker: str = ""
    kind: str = ""
    tile: int = 0

    @abstractmethod
    def trunk(self, model: Any) -> Any:
        """The transformer that reads text and features, without its output head."""

    @abstractmethod
    def tower(self, model: Any) -> nn.Module:
        """What makes states of pixels; it may hold the bridge."""

    @abstractmethod
    def bridge(self, model: Any) -> nn.Module:
        """The last part of the way from pixels to features."""

    @abstractmethod
    def tokens(self, model: Any, rows: int) -> int:
        """Return how many features an image of some rows of pixels has."""

    @abstractmethod
    def features(self, model: Any, pictures: Pictures) -> tuple[Tensor, ...]:
        """Return the features (tokens, D) of each image."""

    @abstractmethod
    def states(self, model: Any, pictures: Pictures) -> tuple[Tensor, ...]:
        """Return the states of each image from which the bridge makes its features."""

    @abstractmethod
    def bridged(self, model: Any, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return the features (tokens, D) of each image, of its states."""

    @abstractmethod
    def positions(
        self, model: Any, prompts_NP: Tensor, mask_NP: Tensor, pictures: Pictures | None
    ) -> tuple[Tensor, Tensor]:
        """Return the positions of prompts padded on the left, (N, P) or (3, N, P), and the next."""

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
        tile = cls._fitting(config, images)
        return cls(tokenizer.convert_ids_to_tokens(number), config.model_type, tile)

    @property
    @abstractmethod
    def placeholders(self) -> tuple[str, ...]:
        """Tokens that only images bring; not every vocabulary has all of them."""

    @abstractmethod
    def picture(self, images: Any, image: Image.Image) -> Picture:
        """Preprocess one image, exactly as the image processor does."""

    @abstractmethod
    def text(self, picture: Picture) -> str:
        """Return what replaces the marker of an image, exactly as the family's processor does."""

    @abstractmethod
    def resizes(self, images: Any, image: Image.Image) -> bool:
        """Return whether an image is larger than the image processor lets through."""

    @abstractmethod
    def limit(self, images: Any, max_pixels: int) -> None:
        """Make the image processor shrink images to at most so many pixels, in place."""

    @abstractmethod
    def settings(self) -> Mapping[str, Any]:
        """Return what belongs into processor_config.json beside the image processor's settings."""

    @classmethod
    @abstractmethod
    def _fitting(cls, config: Any, images: Any) -> int:
        """Refuse an image processor that cuts images otherwise; return the places of a tile."""

    @staticmethod
    def _text_inputs(tokens_BS: Tensor, mask_BS: Tensor) -> dict[str, Any]:
        positions_BS = (mask_BS.cumsum(dim=1) - 1).clamp(min=0)
        return {"input_ids": tokens_BS, "position_ids": positions_BS}


class QwenVision(VisionFamily):
    """Qwen2.5-VL: patches of images of any size, positions in time, rows and columns."""

    def trunk(self, model: Any) -> Any:
        return model.model.language_model

    def tower(self, model: Any) -> nn.Module:
        return model.model.visual

    def bridge(self, model: Any) -> nn.Module:
        return model.model.visual.merger

    def tokens(self, model: Any, rows: int) -> int:
        return rows // model.model.visual.spatial_merge_size**2

    def features(self, model: Any, pictures: Pictures) -> tuple[Tensor, ...]:
        out = model.model.visual(_as_weights(pictures.pixels, model), grid_thw=pictures.grids_I3)
        return out.pooler_output.split(self._tokens(model, pictures))

    def states(self, model: Any, pictures: Pictures) -> tuple[Tensor, ...]:
        from transformers.vision_utils import get_vision_window_index

        visual = model.model.visual
        out = visual(_as_weights(pictures.pixels, model), grid_thw=pictures.grids_I3)
        # States stand window by window there. The merger works on each token's patches alone, so
        # that they can be put into the image's order before it.
        order, _ = get_vision_window_index(
            pictures.grids_I3,
            spatial_merge_size=visual.spatial_merge_size,
            window_size=visual.window_size,
            patch_size=visual.patch_size,
        )
        states = out.last_hidden_state.unflatten(0, (len(order), -1))[order.argsort()]
        return states.split(self._tokens(model, pictures))

    def bridged(self, model: Any, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        features = self.bridge(model)(torch.cat(states).flatten(0, 1))
        return features.split([len(each) for each in states])

    def positions(
        self, model: Any, prompts_NP: Tensor, mask_NP: Tensor, pictures: Pictures | None
    ) -> tuple[Tensor, Tensor]:
        positions_3NP, shift_N1 = model.model.get_rope_index(
            prompts_NP,
            mm_token_type_ids=self._image_places(model, prompts_NP),
            image_grid_thw=None if pictures is None else pictures.grids_I3,
            attention_mask=mask_NP,
        )
        return positions_3NP, mask_NP.sum(dim=1) + shift_N1.squeeze(1)

    def plain_inputs(
        self, model: Any, tokens_BS: Tensor, mask_BS: Tensor, pictures: Pictures | None
    ) -> dict[str, Any]:
        if pictures is None:
            return self._text_inputs(tokens_BS, mask_BS)
        return {
            "input_ids": tokens_BS,
            "pixel_values": pictures.pixels,
            "image_grid_thw": pictures.grids_I3,
            # Without them the model takes every place for text, and says nothing.
            "mm_token_type_ids": self._image_places(model, tokens_BS),
        }

    @staticmethod
    def _image_places(model: Any, tokens: Tensor) -> Tensor:
        return (tokens == model.config.image_token_id).int()

    def _tokens(self, model: Any, pictures: Pictures) -> list[int]:
        return [self.tokens(model, rows) for rows in pictures.rows_I]

    @property
    def placeholders(self) -> tuple[str, ...]:
        return (self.marker, *VISION_TOKENS, "<|vision_pad|>")

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

    @classmethod
    def _fitting(cls, config: Any, images: Any) -> int:
        vision = config.vision_config
        _check_equal("patch_size", images.patch_size, vision.patch_size)
        _check_equal("temporal_patch_size", images.temporal_patch_size, vision.temporal_patch_size)
        _check_equal("merge_size", images.merge_size, vision.spatial_merge_size)
        return 0


class TileVision(VisionFamily):
    """Idefics3 and SmolVLM: square tiles of an image, row by row, and then the whole of it small.

    Positions are those of plain text.
    """

    def trunk(self, model: Any) -> Any:
        return model.model.text_model

    def tower(self, model: Any) -> nn.Module:
        return model.model.vision_model

    def bridge(self, model: Any) -> nn.Module:
        return model.model.connector

    def tokens(self, model: Any, rows: int) -> int:
        return rows * model.model.image_seq_len

    def features(self, model: Any, pictures: Pictures) -> tuple[Tensor, ...]:
        return self.bridged(model, self.states(model, pictures))

    def states(self, model: Any, pictures: Pictures) -> tuple[Tensor, ...]:
        # Not by way of the model's own get_image_features, which leaves out a tile that is grey
        # all over: it takes it for padding.
        tiles = _as_weights(pictures.pixels, model)
        patch = model.config.vision_config.patch_size
        seen = torch.ones(
            len(tiles), tiles.shape[-2] // patch, tiles.shape[-1] // patch, device=tiles.device
        )
        out = model.model.vision_model(pixel_values=tiles, patch_attention_mask=seen.bool())
        return out.last_hidden_state.split(pictures.rows_I)

    def bridged(self, model: Any, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        features = self.bridge(model)(torch.cat(states))
        return tuple(part.flatten(0, 1) for part in features.split([len(s) for s in states]))

    def positions(
        self, model: Any, prompts_NP: Tensor, mask_NP: Tensor, pictures: Pictures | None
    ) -> tuple[Tensor, Tensor]:
        lengths_N = mask_NP.sum(dim=1)
        return text_positions(lengths_N, prompts_NP.shape[1]), lengths_N

    def plain_inputs(
        self, model: Any, tokens_BS: Tensor, mask_BS: Tensor, pictures: Pictures | None
    ) -> dict[str, Any]:
        inputs = self._text_inputs(tokens_BS, mask_BS)
        if pictures is None:
            return inputs
        images = _not_grey(_as_weights(pictures.pixels, model)).split(pictures.rows_I)
        ends = torch.tensor(pictures.counts_N).cumsum(0).tolist()
        each = [
            torch.cat(images[end - count : end]) if count else pictures.pixels[:0]
            for end, count in zip(ends, pictures.counts_N, strict=True)
        ]
        return {**inputs, "pixel_values": pad_sequence(each, batch_first=True)}

    @property
    def placeholders(self) -> tuple[str, ...]:
        sides = range(1, _MOST_TILES + 1)
        places = (f"<row_{row}_col_{column}>" for row in sides for column in sides)
        return (self.marker, _FAKE, _GLOBAL, *places)

    def picture(self, images: Any, image: Image.Image) -> Picture:
        made = images(images=[image], return_tensors="pt", return_row_col_info=True)
        tiles = made["pixel_values"][0].float()
        rows, columns = made["rows"][0][0], made["cols"][0][0]  # 0 and 0 of an image in one piece
        return Picture(tiles, (1, max(rows, 1), max(columns, 1)), self.tile * len(tiles))

    def text(self, picture: Picture) -> str:
        _, rows, columns = picture.grid
        tile = self.marker * self.tile
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
        return {"processor_class": name, "image_seq_len": self.tile}

    @classmethod
    def _fitting(cls, config: Any, images: Any) -> int:
        vision = config.vision_config
        _check_equal("max_image_size", images.max_image_size["longest_edge"], vision.image_size)
        return int(vision.image_size // vision.patch_size // config.scale_factor) ** 2


_FAMILIES: dict[str, type[VisionFamily]] = {
    "qwen2_5_vl": QwenVision,
    "smolvlm": TileVision,
    "idefics3": TileVision,
}
SEEING = tuple(_FAMILIES)  # by `model_type`


def mrope_section(head_dim: int) -> list[int]:
    """Return how many frequencies turn with time, rows and columns: 1 : 1.5 : 1.5, as Qwen2.5-VL's.

    A head of 128 has [16, 24, 24], one of 64 has [8, 12, 12]. On text the three positions are one,
    and the sections change nothing.

    Raises:
        UserError: for heads that are too narrow, or of odd width.
    """
    frequencies, odd = divmod(head_dim, 2)
    space = 3 * frequencies // 8
    if odd or not space:
        raise UserError(
            f"Heads {head_dim} wide cannot tell time, rows and columns apart: 6 or more, an even "
            "number, are needed."
        )
    return [frequencies - 2 * space, space, space]


def family_of(model: Any) -> VisionFamily:
    """Return how a transformers model is used.

    Raises:
        UserError: for a kind of model that is not known here.
    """
    kind = model.config.model_type
    if kind not in _FAMILIES:
        raise UserError(
            f"A {kind} model is not known here as one that sees: take one of "
            f"{', '.join(_FAMILIES)}, or join a vision tower and a language model."
        )
    return _FAMILIES[kind]()


def with_images(config: Any, images: Any, tokenizer: Any) -> VisionFamily:
    """Return the family of a configuration's model, with its way with images.

    Raises:
        UserError: when image processor, tokenizer and model do not belong together.
    """
    return _FAMILIES[config.model_type].of(config, images, tokenizer)


def _as_weights(pixels: Tensor, model: Any) -> Tensor:
    return pixels.to(model.dtype)


def _not_grey(tiles: Tensor) -> Tensor:
    """Return tiles of which none is 0 all over, which transformers takes for padding."""
    grey = (tiles == 0).flatten(1).all(dim=1).view(-1, 1, 1, 1)
    return tiles.masked_fill(grey, torch.finfo(tiles.dtype).tiny)


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
