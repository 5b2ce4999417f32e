"""LLaVA's families: tiles in a grid that fits an image, and the whole of it small before them."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from visgrpo.data.pictures import Picture, Pictures
from visgrpo.errors import UserError
from visgrpo.models.vision_families.base import VisionFamily, as_weights, check_equal


class NextVision(VisionFamily):
    """LLaVA-NeXT: padding is cut out of the tiles' features, and every row of them ends in a token.

    A picture's grid is (1, height, width) of the image itself, by which features are cut out.
    """

    processor = "LlavaNextProcessor"

    def bridge(self, model: Any) -> nn.Module:
        bridge = nn.Module()
        bridge.projector = model.model.multi_modal_projector
        bridge.newline = model.model.image_newline
        return bridge

    def states(self, model: Any, pictures: Pictures) -> tuple[Tensor, ...]:
        config = model.config
        out = model.model.vision_tower(
            as_weights(pictures.pixels, model), output_hidden_states=True
        )
        layers = config.vision_feature_layer
        chosen = [layers] if isinstance(layers, int) else layers
        states = torch.cat([out.hidden_states[layer] for layer in chosen], dim=-1)
        first = 1 if config.vision_feature_select_strategy == "default" else 0
        return states[:, first:].split(pictures.rows_I)

    def bridged(
        self, model: Any, states: tuple[Tensor, ...], pictures: Pictures
    ) -> tuple[Tensor, ...]:
        features = model.model.multi_modal_projector(torch.cat(states)).split(pictures.rows_I)
        packed, _ = model.model.pack_image_features(
            features,
            pictures.grids_I3[:, 1:],
            image_newline=model.model.image_newline,
            **self._packing(model.config),
        )
        return tuple(packed)

    def _packing(self, config: Any) -> dict[str, Any]:
        strategy = config.vision_feature_select_strategy
        return {"vision_feature_select_strategy": strategy}

    def plain_inputs(
        self, model: Any, tokens_BS: Tensor, mask_BS: Tensor, pictures: Pictures | None
    ) -> dict[str, Any]:
        inputs = self._text_inputs(tokens_BS, mask_BS)
        if pictures is None:
            return inputs
        tiles = pad_sequence(list(pictures.pixels.split(pictures.rows_I)), batch_first=True)
        return {**inputs, "pixel_values": tiles, "image_sizes": pictures.grids_I3[:, 1:]}

    @property
    def placeholders(self) -> tuple[str, ...]:
        return (self.place, "<video>")

    def picture(self, images: Any, image: Image.Image, alone: bool) -> Picture:
        made = images(images=[image], return_tensors="pt")
        tiles = made["pixel_values"][0].float()
        return self._picture(images, tiles, image)

    def _picture(self, images: Any, tiles: Tensor, image: Image.Image) -> Picture:
        side = int(self.tile**0.5)
        tokens = _kept(images, side, tiles.shape[-1], image, self.settings) + self.tile
        return Picture(tiles, (1, image.height, image.width), tokens)

    def text(self, picture: Picture) -> str:
        return self.place * picture.tokens

    def resizes(self, images: Any, image: Image.Image) -> bool:
        return all(
            image.height > height or image.width > width
            for height, width in images.image_grid_pinpoints
        )

    def limit(self, images: Any, max_pixels: int) -> None:
        raise UserError(
            "--max-pixels does not go with a LLaVA, which cuts images by the image_grid_pinpoints "
            "of its config.json."
        )

    @classmethod
    def _fitting(cls, config: Any, images: Any) -> tuple[int, dict[str, Any]]:
        vision = config.vision_config
        crop = images.crop_size or images.size
        side = crop["height"] if "height" in dict(crop) else crop["shortest_edge"]
        check_equal("size", side, vision.image_size)
        if images.image_grid_pinpoints != config.image_grid_pinpoints:
            raise UserError(
                "The image processor has other image_grid_pinpoints than the model: the two do not "
                "belong together; mend preprocessor_config.json."
            )
        tile = (vision.image_size // vision.patch_size) ** 2
        strategy = config.vision_feature_select_strategy
        settings = {"processor_class": cls.processor, "vision_feature_select_strategy": strategy}
        return tile, {**settings, **cls._more(config, tile)}

    @classmethod
    def _more(cls, config: Any, tile: int) -> dict[str, Any]:
        extra = 1 if config.vision_feature_select_strategy == "default" else 0
        patch = config.vision_config.patch_size
        return {"patch_size": patch, "num_additional_image_tokens": extra}


class OneVision(NextVision):
    """LLaVA-OneVision, which makes large grids smaller, and of several images one tile each."""

    processor = "LlavaOnevisionProcessor"

    def _packing(self, config: Any) -> dict[str, Any]:
        return {"vision_aspect_ratio": config.vision_aspect_ratio}

    def plain_inputs(
        self, model: Any, tokens_BS: Tensor, mask_BS: Tensor, pictures: Pictures | None
    ) -> dict[str, Any]:
        inputs = super().plain_inputs(model, tokens_BS, mask_BS, pictures)
        if pictures is not None:
            counts = torch.tensor([count for count in pictures.counts_N if count])
            inputs["batch_num_images"] = counts
        return inputs

    def picture(self, images: Any, image: Image.Image, alone: bool) -> Picture:
        if alone:
            return super().picture(images, image, alone)
        made = images(images=[[image, image]], return_tensors="pt")
        tiles = made["pixel_values"][0, :1].float()
        return Picture(tiles, (1, image.height, image.width), self.tile + 1)

    @classmethod
    def _more(cls, config: Any, tile: int) -> dict[str, Any]:
        return {"num_image_tokens": tile, "vision_aspect_ratio": config.vision_aspect_ratio}


def _kept(images: Any, side: int, pixels: int, image: Image.Image, settings: Any) -> int:
    """Return how many features the tiles of an image keep, those that end their rows included."""
    from transformers.image_processing_utils import select_best_resolution
    from transformers.models.llava_next.processing_llava_next import LlavaNextProcessor
    from transformers.models.llava_onevision.processing_llava_onevision import (
        LlavaOnevisionProcessor,
    )

    size = (image.height, image.width)
    best = select_best_resolution(size, images.image_grid_pinpoints)
    grid = (side, side, best[0] // pixels, best[1] // pixels)
    of = settings["processor_class"]
    known = LlavaOnevisionProcessor if of == "LlavaOnevisionProcessor" else LlavaNextProcessor
    # Their processors' own count, without the video processor that they want.
    counting: Any = known.__new__(known)
    counting.vision_aspect_ratio = settings.get("vision_aspect_ratio")
    kept, ends = counting._get_unpadded_features(*size, *grid)
    return int(kept + ends)
