"""Small models that see, from random weights, with tokenizers and image processors: offline.

A Qwen2.5-VL tells what is in a picture. To tell where, from scratch and in minutes, takes what it
does not have: a learned position for every patch, as Idefics3 has, and a token for every
coordinate.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from visgrpo.errors import UserError
from visgrpo.models.parts import Parts
from visgrpo.models.small import check_sizes, gated
from visgrpo.models.tokenizers import (
    END_OF_TURN,
    TURN,
    VISION_TOKENS,
    make_tokenizer,
    vision_token_ids,
    with_image_places,
)
from visgrpo.models.vision_families import mrope_section
from visgrpo.models.vision_families.tiles import TILE_TOKENS
from visgrpo.models.vision_language import VisionProcessor

_MERGE = 2  # patches a side that become one token, as of the large ones
_WINDOW = 4  # tokens a side that see each other in the blocks without full attention, likewise


@dataclass(frozen=True)
class SmallVisionLanguage:
    """Sizes of a small Qwen2.5-VL, or Idefics3.

    Attributes:
        layers: blocks of the language model; width, heads likewise.
        vision_layers: blocks of the vision tower; vision_width, vision_heads likewise.
        patch: side of a patch, in pixels; a token sees two by two of them.
        max_pixels: larger images are made smaller, to rows times columns of at most this; every
            image is made a square of this of an Idefics3.
        context: positions, prompt and completion together.
        vocabulary: tokens before the special ones of chat and vision, at most.
        spread: standard deviation of the random weights. The usual 0.02 leaves the attention of a
            narrow model so flat that it takes many times as long to learn where to look.
        family: what is built.
        numbers: whole numbers from 0 that are one token each.
    """

    layers: int = 2
    width: int = 96
    heads: int = 3
    vision_layers: int = 2
    vision_width: int = 96
    vision_heads: int = 3
    patch: int = 14
    max_pixels: int = 224 * 224
    context: int = 512
    vocabulary: int = 384
    spread: float = 0.02
    family: Literal["qwen2.5-vl", "idefics3"] = "qwen2.5-vl"
    numbers: int = 0


SIZES: Mapping[str, SmallVisionLanguage] = {
    "tiny": SmallVisionLanguage(width=64, heads=4, vision_width=64, vision_heads=4, spread=0.1),
    "small": SmallVisionLanguage(
        layers=8,
        width=384,
        heads=6,
        vision_layers=4,
        vision_width=192,
        vision_heads=6,
        context=1024,
        vocabulary=2048,
    ),
}


PLACING_SIZES: Mapping[str, SmallVisionLanguage] = {
    "tiny": SmallVisionLanguage(
        width=64,
        heads=4,
        vision_width=64,
        vision_heads=4,
        max_pixels=112 * 112,
        spread=0.05,
        family="idefics3",
    ),
    "small": SmallVisionLanguage(
        layers=8,
        width=384,
        heads=6,
        vision_layers=4,
        vision_width=192,
        vision_heads=6,
        max_pixels=224 * 224,
        context=1024,
        vocabulary=2048,
        family="idefics3",
    ),
}


def build_vision_language(
    documents: Iterable[str], sizes: SmallVisionLanguage, *, seed: int
) -> Parts:
    """Build the transformers classes themselves, so that everything that loads Qwen2.5-VL loads it.

    Input and output embeddings are one matrix, dropout is 0, weights are float32. One image is one
    moment (temporal patches of 1), so that no pixel is looked at twice.

    Args:
        documents: text to make the tokenizer from.

    Raises:
        UserError: for sizes that do not fit.
    """
    _check(sizes)
    squares = sizes.family == "idefics3"
    tokenizer = chat_tokenizer(
        documents,
        sizes.vocabulary,
        numbers=sizes.numbers,
        vision=TILE_TOKENS if squares else VISION_TOKENS,
    )
    if squares:
        tokenizer.chat_template = with_image_places(None, TILE_TOKENS[0])
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = (_idefics if squares else _qwen)(sizes, tokenizer)
    images = (_square_images if squares else _images)(sizes)
    processor = VisionProcessor.of(model.config, images, tokenizer)
    processor.limit(sizes.max_pixels)
    return Parts("small-vision-language", model, tokenizer, processor=processor)


def chat_tokenizer(
    documents: Iterable[str],
    vocabulary: int,
    *,
    numbers: int = 0,
    vision: Sequence[str] = VISION_TOKENS,
) -> Any:
    """Make a byte-level tokenizer that knows the special tokens of chat and vision.

    A turn's end is the end token. Unlike plain text, a rendered chat spells its special tokens.

    Args:
        numbers: whole numbers from 0 that are one token each.
        vision: tokens that only images bring.
    """
    tokenizer = make_tokenizer("bpe", documents, vocabulary=vocabulary)
    tokenizer.add_special_tokens(
        {"eos_token": END_OF_TURN, "additional_special_tokens": [TURN, *vision]}
    )
    if numbers:
        tokenizer.add_tokens(list(map(str, range(numbers))))
    tokenizer.split_special_tokens = False
    tokenizer.chat_template = with_image_places(None)
    return tokenizer


def _images(sizes: SmallVisionLanguage) -> Any:
    from transformers import Qwen2VLImageProcessorPil

    return Qwen2VLImageProcessorPil(
        patch_size=sizes.patch,
        merge_size=_MERGE,
        temporal_patch_size=1,
        min_pixels=(sizes.patch * _MERGE) ** 2,
    )


def _square_images(sizes: SmallVisionLanguage) -> Any:
    from transformers import Idefics3ImageProcessorPil

    side = {"longest_edge": _side(sizes)}
    return Idefics3ImageProcessorPil(size=dict(side), max_image_size=dict(side))


def _side(sizes: SmallVisionLanguage) -> int:
    """Return the side of a square of at most so many pixels, in whole tokens."""
    token = sizes.patch * _MERGE
    return max(1, math.isqrt(sizes.max_pixels) // token) * token


def _check(sizes: SmallVisionLanguage) -> None:
    counts = ("layers", "heads", "vision_layers", "vision_heads", "patch", "context")
    check_sizes(sizes.width, sizes.heads, **{name: getattr(sizes, name) for name in counts})
    if sizes.family == "idefics3":
        check_sizes(sizes.vision_width, sizes.vision_heads)
    elif sizes.vision_width < 1 or sizes.vision_width % (4 * sizes.vision_heads):
        raise UserError(
            f"--vision-width {sizes.vision_width} is no multiple of 4 × {sizes.vision_heads} "
            "(--vision-heads): every head turns pairs with rows and with columns."
        )


def _idefics(sizes: SmallVisionLanguage, tokenizer: Any) -> Any:
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration

    vision = {
        "initializer_range": sizes.spread,
        "num_hidden_layers": sizes.vision_layers,
        "hidden_size": sizes.vision_width,
        "num_attention_heads": sizes.vision_heads,
        "intermediate_size": 4 * sizes.vision_width,
        "image_size": _side(sizes),
        "patch_size": sizes.patch,
    }
    text = {
        "model_type": "llama",
        "initializer_range": sizes.spread,
        "num_hidden_layers": sizes.layers,
        "hidden_size": sizes.width,
        "intermediate_size": gated(sizes.width),
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.heads,
        "max_position_embeddings": sizes.context,
        "vocab_size": len(tokenizer),
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": True,
    }
    settings: dict[str, Any] = {
        "text_config": text,
        "vision_config": vision,
        "scale_factor": _MERGE,
        "image_token_id": tokenizer.convert_tokens_to_ids(TILE_TOKENS[0]),
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": True,
    }
    config = Idefics3Config(**settings)
    return Idefics3ForConditionalGeneration(config).float().eval()


def _qwen(sizes: SmallVisionLanguage, tokenizer: Any) -> Any:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    vision = {
        "initializer_range": sizes.spread,
        "depth": sizes.vision_layers,
        "hidden_size": sizes.vision_width,
        "num_heads": sizes.vision_heads,
        "intermediate_size": gated(sizes.vision_width),
        "out_hidden_size": sizes.width,
        "patch_size": sizes.patch,
        "spatial_merge_size": _MERGE,
        "temporal_patch_size": 1,
        "window_size": _WINDOW * _MERGE * sizes.patch,
        # Every second block, counted from the last, sees the whole image.
        "fullatt_block_indexes": list(range(sizes.vision_layers - 1, -1, -2))[::-1],
    }
    text = {
        "initializer_range": sizes.spread,
        "num_hidden_layers": sizes.layers,
        "hidden_size": sizes.width,
        "intermediate_size": gated(sizes.width),
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.heads,
        "max_position_embeddings": sizes.context,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": mrope_section(sizes.width // sizes.heads),
        },
        "vocab_size": len(tokenizer),
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": True,
    }
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        tie_word_embeddings=True,
        **vision_token_ids(tokenizer),
    )
    return Qwen2_5_VLForConditionalGeneration(config).float().eval()
