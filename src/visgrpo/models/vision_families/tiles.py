"""Families that cut images into square tiles of one size, with the positions of plain text."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from visgrpo.data.pictures import Picture, Pictures
from visgrpo.errors import UserError
from visgrpo.models.vision_families.base import VisionFamily, as_weights, check_equal, check_tile

_FAKE, _GLOBAL = "<fake_token_around_image>", "<global-img>"
TILE_TOKENS = ("<image>", _FAKE, _GLOBAL)  # of Idefics3: of an image in one piece
_MOST_TILES = 6  # a side, that Idefics3 and SmolVLM have tokens for


class TileVision(VisionFamily):
    """Idefics3 and SmolVLM: square tiles of an image, row by row, then all of it small."""

    def trunk(self, model: Any) -> Any:
        return model.model.text_model

    def tower(self, model: Any) -> nn.Module:
        return model.model.vision_model

    def bridge(self, model: Any) -> nn.Module:
        return model.model.connector

    def states(self, model: Any, pictures: Pictures) -> tuple[Tensor, ...]:
        # Not by way of the model's own get_image_features, which leaves out a tile that is grey
        # all over: it takes it for padding.
        tiles = as_weights(pictures.pixels, model)
        patch = model.config.vision_config.patch_size
        seen = torch.ones(
            len(tiles), tiles.shape[-2] // patch, tiles.shape[-1] // patch, device=tiles.device
        )
        out = model.model.vision_model(pixel_values=tiles, patch_attention_mask=seen.bool())
        return out.last_hidden_state.split(pictures.rows_I)

    def bridged(
        self, model: Any, states: tuple[Tensor, ...], pictures: Pictures
    ) -> tuple[Tensor, ...]:
        features = self.bridge(model)(torch.cat(states))
        return tuple(part.flatten(0, 1) for part in features.split([len(s) for s in states]))

    def plain_inputs(
        self, model: Any, tokens_BS: Tensor, mask_BS: Tensor, pictures: Pictures | None
    ) -> dict[str, Any]:
        inputs = self._text_inputs(tokens_BS, mask_BS)
        if pictures is None:
            return inputs
        images = _not_grey(as_weights(pictures.pixels, model)).split(pictures.rows_I)
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
        return (self.place, _FAKE, _GLOBAL, *places)

    def picture(self, images: Any, image: Image.Image, alone: bool) -> Picture:
        made = images(images=[image], return_tensors="pt", return_row_col_info=True)
        tiles = made["pixel_values"][0].float()
        rows, columns = made["rows"][0][0], made["cols"][0][0]  # 0 and 0 of an image in one piece
        return Picture(tiles, (1, max(rows, 1), max(columns, 1)), self.tile * len(tiles))

    def text(self, picture: Picture) -> str:
        _, rows, columns = picture.grid
        tile = self.place * self.tile
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
        check_tile(max_pixels, side)
        longest = min(int(max_pixels**0.5) // side * side, images.size["longest_edge"])
        images.size = {"longest_edge": longest}

    @classmethod
    def _fitting(cls, config: Any, images: Any) -> tuple[int, dict[str, Any]]:
        vision = config.vision_config
        check_equal("max_image_size", images.max_image_size["longest_edge"], vision.image_size)
        tile = int(vision.image_size // vision.patch_size // config.scale_factor) ** 2
        name = {"smolvlm": "SmolVLMProcessor", "idefics3": "Idefics3Processor"}[config.model_type]
        return tile, {"processor_class": name, "image_seq_len": tile}


class InternVision(VisionFamily):
    """InternVL (of transformers): tiles of an image, and the whole of it small, in one row."""

    def states(self, model: Any, pictures: Pictures) -> tuple[Tensor, ...]:
        config = model.config
        out = model.model.vision_tower(
            pixel_values=as_weights(pictures.pixels, model), output_hidden_states=True
        )
        last = config.vision_feature_layer == -1
        states = out.last_hidden_state if last else out.hidden_states[config.vision_feature_layer]
        first = 1 if config.vision_feature_select_strategy == "default" else 0
        return states[:, first:].split(pictures.rows_I)

    def bridged(
        self, model: Any, states: tuple[Tensor, ...], pictures: Pictures
    ) -> tuple[Tensor, ...]:
        grid_SHWD = torch.cat(states)
        side = int(grid_SHWD.shape[1] ** 0.5)
        grid_SHWD = grid_SHWD.unflatten(1, (side, side))
        ratio = model.config.downsample_ratio
        shuffled = model.model.pixel_shuffle(grid_SHWD, scale_factor=ratio).flatten(1, 2)
        features = self.bridge(model)(shuffled).split(pictures.rows_I)
        return tuple(each.flatten(0, 1) for each in features)

    def plain_inputs(
        self, model: Any, tokens_BS: Tensor, mask_BS: Tensor, pictures: Pictures | None
    ) -> dict[str, Any]:
        inputs = self._text_inputs(tokens_BS, mask_BS)
        return inputs if pictures is None else {**inputs, "pixel_values": pictures.pixels}

    @property
    def placeholders(self) -> tuple[str, ...]:
        return (self.place, "<img>", "</img>", "<video>")

    def picture(self, images: Any, image: Image.Image, alone: bool) -> Picture:
        made = images(images=[image], return_tensors="pt", crop_to_patches=True)
        tiles = made["pixel_values"].float()
        return Picture(tiles, (1, 1, len(tiles)), self.tile * len(tiles))

    def text(self, picture: Picture) -> str:
        return f"<img>{self.place * picture.tokens}</img>"

    def resizes(self, images: Any, image: Image.Image) -> bool:
        return bool(image.width * image.height > images.max_patches * images.size["height"] ** 2)

    def limit(self, images: Any, max_pixels: int) -> None:
        side = images.size["height"]
        check_tile(max_pixels, side)
        images.max_patches = min(images.max_patches, max_pixels // side**2)
        images.min_patches = min(images.min_patches, images.max_patches)

    @classmethod
    def _fitting(cls, config: Any, images: Any) -> tuple[int, dict[str, Any]]:
        vision = config.vision_config
        (height, width), (high, wide) = vision.image_size, vision.patch_size
        check_equal("size.height", images.size["height"], height)
        check_equal("size.width", images.size["width"], width)
        tile = int((height // high) * (width // wide) * config.downsample_ratio**2)
        return tile, {"processor_class": "InternVLProcessor", "image_seq_length": tile}


class GemmaVision(VisionFamily):
    """Gemma 3: an image is one tile, whose places all see each other."""

    def ahead(self, places_NP: Tensor) -> Tensor:
        begins_NP = places_NP & ~nn.functional.pad(places_NP, (1, 0))[:, :-1]
        image_NP = begins_NP.cumsum(dim=1).masked_fill(~places_NP, 0)
        same_NPP = image_NP[:, :, None] == image_NP[:, None, :]
        return same_NPP & places_NP[:, None, :]

    def states(self, model: Any, pictures: Pictures) -> tuple[Tensor, ...]:
        out = model.model.vision_tower(pixel_values=as_weights(pictures.pixels, model))
        return out.last_hidden_state.split(pictures.rows_I)

    def bridged(
        self, model: Any, states: tuple[Tensor, ...], pictures: Pictures
    ) -> tuple[Tensor, ...]:
        return self.bridge(model)(torch.cat(states)).unbind()

    def plain_inputs(
        self, model: Any, tokens_BS: Tensor, mask_BS: Tensor, pictures: Pictures | None
    ) -> dict[str, Any]:
        inputs = self._text_inputs(tokens_BS, mask_BS)
        if pictures is None:
            return inputs
        places_BS = (tokens_BS == model.config.image_token_id).long()
        return {**inputs, "pixel_values": pictures.pixels, "token_type_ids": places_BS}

    @classmethod
    def _marker(cls, place: str) -> str:
        return "<start_of_image>"

    @property
    def placeholders(self) -> tuple[str, ...]:
        return (self.place, self.marker, "<end_of_image>")

    def picture(self, images: Any, image: Image.Image, alone: bool) -> Picture:
        made = images(images=[image], return_tensors="pt")
        return Picture(made["pixel_values"].float(), (1, 1, 1), self.tile)

    def text(self, picture: Picture) -> str:
        return f"\n\n{self.marker}{self.place * self.tile}<end_of_image>\n\n"

    def resizes(self, images: Any, image: Image.Image) -> bool:
        return bool(max(image.size) > images.size["height"])

    def limit(self, images: Any, max_pixels: int) -> None:
        check_tile(max_pixels, images.size["height"])

    @classmethod
    def _fitting(cls, config: Any, images: Any) -> tuple[int, dict[str, Any]]:
        check_equal("size.height", images.size["height"], config.vision_config.image_size)
        if images.do_pan_and_scan:
            raise UserError(
                "The image processor cuts images up (do_pan_and_scan): set it to false in "
                "preprocessor_config.json."
            )
        tile = int(config.mm_tokens_per_image)
        return tile, {"processor_class": "Gemma3Processor", "image_seq_length": tile}


def _not_grey(tiles: Tensor) -> Tensor:
    """Return tiles of which none is 0 all over, which transformers takes for padding."""
    grey = (tiles == 0).flatten(1).all(dim=1).view(-1, 1, 1, 1)
    return tiles.masked_fill(grey, torch.finfo(tiles.dtype).tiny)
