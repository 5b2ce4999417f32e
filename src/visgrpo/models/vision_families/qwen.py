"""Qwen's families: patches of images of any size, and positions in rows and columns."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn

from visgrpo.data.pictures import Picture, Pictures
from visgrpo.errors import UserError
from visgrpo.models.tokenizers import VISION_TOKENS
from visgrpo.models.vision_families.base import VisionFamily, as_weights, check_equal

_MOST_STRETCH = 2.0  # rounding to whole tokens stretches an image of one token or more by less


class Qwen2Vision(VisionFamily):
    """Qwen2-VL: patches of images of any size, positions in time, rows and columns."""

    processor: ClassVar[str] = "Qwen2VLProcessor"

    def trunk(self, model: Any) -> Any:
        return model.model.language_model

    def tower(self, model: Any) -> nn.Module:
        return model.model.visual

    def bridge(self, model: Any) -> nn.Module:
        return model.model.visual.merger

    def states(self, model: Any, pictures: Pictures) -> tuple[Tensor, ...]:
        visual = model.model.visual
        out = visual(as_weights(pictures.pixels, model), grid_thw=pictures.grids_I3)
        return self._by_token(model, out.last_hidden_state).split(pictures.tokens_I)

    def bridged(
        self, model: Any, states: tuple[Tensor, ...], pictures: Pictures
    ) -> tuple[Tensor, ...]:
        features = self.bridge(model)(torch.cat(states).flatten(0, 1))
        return features.split(pictures.tokens_I)

    def _by_token(self, model: Any, states: Tensor) -> Tensor:
        """Put the states of a token's patches together."""
        return states.unflatten(0, (-1, model.model.visual.spatial_merge_size**2))

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

    @property
    def placeholders(self) -> tuple[str, ...]:
        return (self.place, *VISION_TOKENS, "<|vision_pad|>")

    def picture(self, images: Any, image: Image.Image, alone: bool) -> Picture:
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
        return self.place * picture.tokens

    def resizes(self, images: Any, image: Image.Image) -> bool:
        return bool(image.width * image.height > images.size["longest_edge"])

    def limit(self, images: Any, max_pixels: int) -> None:
        token = (images.patch_size * images.merge_size) ** 2
        if max_pixels < token:
            raise UserError(f"--max-pixels {max_pixels}: a token sees {token}; give that or more.")
        least = min(images.size["shortest_edge"], max_pixels)
        images.size = {"shortest_edge": least, "longest_edge": max_pixels}

    def enlarge(self, images: Any, min_pixels: int) -> None:
        most = images.size["longest_edge"]
        if min_pixels > most:
            raise UserError(f"--min-pixels {min_pixels}: images have {most} at most; give fewer.")
        images.size = {"shortest_edge": min_pixels, "longest_edge": most}

    @classmethod
    def _fitting(cls, config: Any, images: Any) -> tuple[int, dict[str, Any]]:
        vision = config.vision_config
        check_equal("patch_size", images.patch_size, vision.patch_size)
        check_equal("temporal_patch_size", images.temporal_patch_size, vision.temporal_patch_size)
        check_equal("merge_size", images.merge_size, vision.spatial_merge_size)
        return 0, {"processor_class": cls.processor}


class QwenVision(Qwen2Vision):
    """Qwen2.5-VL, whose tower sees images window by window."""

    processor = "Qwen2_5_VLProcessor"

    def states(self, model: Any, pictures: Pictures) -> tuple[Tensor, ...]:
        from transformers.vision_utils import get_vision_window_index

        visual = model.model.visual
        out = visual(as_weights(pictures.pixels, model), grid_thw=pictures.grids_I3)
        # States stand window by window there. The merger works on each token's patches alone, so
        # that they can be put into the image's order before it.
        order, _ = get_vision_window_index(
            pictures.grids_I3,
            spatial_merge_size=visual.spatial_merge_size,
            window_size=visual.window_size,
            patch_size=visual.patch_size,
        )
        states = self._by_token(model, out.last_hidden_state)[order.argsort()]
        return states.split(pictures.tokens_I)


class Qwen3Vision(Qwen2Vision):
    """Qwen3-VL: states of several depths of the tower reach the first layers of the trunk.

    Features of all depths stand side by side, those of the last first: (tokens, (1 + L) · D). It is
    DeepStack (Meng et al. 2024, arXiv:2406.04334).
    """

    processor = "Qwen3VLProcessor"

    def bridge(self, model: Any) -> nn.Module:
        visual = model.model.visual
        return nn.ModuleList([visual.deepstack_merger_list, visual.merger])

    def states(self, model: Any, pictures: Pictures) -> tuple[Tensor, ...]:
        visual = model.model.visual
        out = visual(
            as_weights(pictures.pixels, model),
            grid_thw=pictures.grids_I3,
            output_hidden_states=True,
        )
        depths = [out.hidden_states[1 + depth] for depth in visual.deepstack_visual_indexes]
        states = torch.stack([out.last_hidden_state, *depths], dim=1)
        return self._by_token(model, states).split(pictures.tokens_I)

    def bridged(
        self, model: Any, states: tuple[Tensor, ...], pictures: Pictures
    ) -> tuple[Tensor, ...]:
        visual = model.model.visual
        by_depth = torch.cat(states).flatten(0, 1).unbind(dim=1)
        mergers = [visual.merger, *visual.deepstack_merger_list]
        features = [merge(one.contiguous()) for merge, one in zip(mergers, by_depth, strict=True)]
        return torch.cat(features, dim=-1).split(pictures.tokens_I)

    def inputs(self, embeds_NPD: Tensor, places_NP: Tensor, features: Tensor) -> dict[str, Any]:
        last, *deeper = features.split(embeds_NPD.shape[-1], dim=-1)
        filled = super().inputs(embeds_NPD, places_NP, last)
        return {**filled, "visual_pos_masks": places_NP, "deepstack_visual_embeds": deeper}


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


def _too_thin(image: Image.Image) -> UserError:
    return UserError(
        f"An image of {image.width} × {image.height} pixels is too thin to be cut into whole "
        "tokens without distortion: crop or pad it."
    )
