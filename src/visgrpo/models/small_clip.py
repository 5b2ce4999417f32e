"""A small CLIP from random weights, with a tokenizer made from the captions: all of it offline."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from visgrpo.errors import UserError
from visgrpo.models.parts import Parts

_PAD, _START, _END = "<|pad|>", "<|startoftext|>", "<|endoftext|>"
_MAX_TEXT_TOKENS = 32


@dataclass(frozen=True)
class SmallClip:
    """Sizes of a small CLIP; both towers share width, depth and heads."""

    image_size: int = 32
    patch_size: int = 4
    width: int = 128
    layers: int = 4
    heads: int = 4
    features: int = 64
    vocabulary: int = 1000


def build_small_clip(sizes: SmallClip, captions: Iterable[str], seed: int) -> Parts:
    """Build the transformers classes themselves, so that everything that loads CLIP loads it.

    Raises:
        UserError: for sizes that do not divide.
    """
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

    if sizes.image_size % sizes.patch_size:
        raise UserError(
            f"--patch-size {sizes.patch_size} does not divide --image-size {sizes.image_size}."
        )
    if sizes.width % sizes.heads:
        raise UserError(f"--heads {sizes.heads} does not divide --width {sizes.width}.")
    tokenizer = build_tokenizer(captions, sizes.vocabulary)
    tower = {
        "hidden_size": sizes.width,
        "intermediate_size": 4 * sizes.width,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
    }
    text = {
        **tower,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": _MAX_TEXT_TOKENS,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {**tower, "image_size": sizes.image_size, "patch_size": sizes.patch_size}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=sizes.features)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = CLIPModel(config)
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": sizes.image_size},
        crop_size={"height": sizes.image_size, "width": sizes.image_size},
    )
    return Parts("small-clip", model, tokenizer, processor)


def build_tokenizer(captions: Iterable[str], vocabulary: int) -> Any:
    """Train a byte-level BPE on captions: any text can be encoded, and the captions are short.

    The end token is not number 2, for which CLIPModel keeps an old pooling rule.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from tokenizers.trainers import BpeTrainer
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    specials = [_PAD, _START, "<|unused|>", _END]
    trainer = BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=specials,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{_START} $A {_END}",
        special_tokens=[(_START, specials.index(_START)), (_END, specials.index(_END))],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=_PAD,
        bos_token=_START,
        eos_token=_END,
        model_max_length=_MAX_TEXT_TOKENS,
    )
