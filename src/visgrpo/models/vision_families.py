"""What differs between families of vision-language models: where things are, and positions.

Every family has a tower that turns pixels into states, a bridge from states to features of the
language model's width, and a transformer that reads the features in the places of image tokens.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from visgrpo.data.pictures import Pictures
from visgrpo.errors import UserError
from visgrpo.models.prompt_reading import text_positions


class VisionFamily(Protocol):
    """How a transformers vision-language model (…ForConditionalGeneration) is used in parts."""

    def trunk(self, model: Any) -> Any:
        """The transformer that reads text and features, without its output head."""

    def tower(self, model: Any) -> nn.Module:
        """What makes states of pixels; it may hold the bridge."""

    def bridge(self, model: Any) -> nn.Module:
        """The last part of the way from pixels to features."""

    def tokens(self, model: Any, rows: int) -> int:
        """Return how many features an image of some rows of pixels has."""

    def features(self, model: Any, pictures: Pictures) -> tuple[Tensor, ...]:
        """Return the features (tokens, D) of each image."""

    def states(self, model: Any, pictures: Pictures) -> tuple[Tensor, ...]:
        """Return the states of each image from which the bridge makes its features."""

    def bridged(self, model: Any, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return the features (tokens, D) of each image, of its states."""

    def positions(
        self, model: Any, prompts_NP: Tensor, mask_NP: Tensor, pictures: Pictures | None
    ) -> tuple[Tensor, Tensor]:
        """Return the positions of prompts padded on the left, (N, P) or (3, N, P), and the next."""

    def plain_inputs(
        self, model: Any, tokens_BS: Tensor, mask_BS: Tensor, pictures: Pictures | None
    ) -> dict[str, Any]:
        """Return what transformers' own model takes of whole sequences, beside the mask."""


class QwenVision:
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
            return {
                "input_ids": tokens_BS,
                "position_ids": (mask_BS.cumsum(dim=1) - 1).clamp(min=0),
            }
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


class TileVision:
    """Idefics3 and SmolVLM: tiles of one size, positions of plain text."""

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
        inputs = {
            "input_ids": tokens_BS,
            "position_ids": (mask_BS.cumsum(dim=1) - 1).clamp(min=0),
        }
        if pictures is None:
            return inputs
        images = _not_grey(_as_weights(pictures.pixels, model)).split(pictures.rows_I)
        ends = torch.tensor(pictures.counts_N).cumsum(0).tolist()
        each = [
            torch.cat(images[end - count : end]) if count else pictures.pixels[:0]
            for end, count in zip(ends, pictures.counts_N, strict=True)
        ]
        return {**inputs, "pixel_values": pad_sequence(each, batch_first=True)}


_FAMILIES: dict[str, VisionFamily] = {
    "qwen2_5_vl": QwenVision(),
    "smolvlm": TileVision(),
    "idefics3": TileVision(),
}
SEEING = tuple(_FAMILIES)  # by `model_type`


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
    return _FAMILIES[kind]


def _as_weights(pixels: Tensor, model: Any) -> Tensor:
    return pixels.to(model.dtype)


def _not_grey(tiles: Tensor) -> Tensor:
    """Return tiles of which none is 0 all over, which transformers takes for padding."""
    grey = (tiles == 0).flatten(1).all(dim=1).view(-1, 1, 1, 1)
    return tiles.masked_fill(grey, torch.finfo(tiles.dtype).tiny)
