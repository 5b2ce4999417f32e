"""Small models from random weights, of the classes that large ones have: everything works offline.

A CLIP with a tokenizer made from the captions, a backbone, a language model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

from visgrpo.errors import UserError, nearest
from visgrpo.models.parts import Parts

_PAD, _START, _END = "<|pad|>", "<|startoftext|>", "<|endoftext|>"
_MAX_TEXT_TOKENS = 32


def check_sizes(width: int, heads: int, /, **at_least_one: int) -> None:
    """Refuse heads that do not divide the width, and any other size below 1, by its option."""
    for option, value in at_least_one.items():
        if value < 1:
            raise UserError(f"--{option.replace('_', '-')} {value}: give 1 or more.")
    if width < 1 or width % heads:
        raise UserError(f"--heads {heads} does not divide --width {width}.")


def gated(width: int) -> int:
    """Return a gated MLP's width: three matrices of 8/3 weigh what two of 4 times the width do."""
    return 8 * -(-width // 3)


def _check_patches(sizes: SmallClip | SmallBackbone) -> None:
    if sizes.image_size % sizes.patch_size:
        raise UserError(
            f"--patch-size {sizes.patch_size} does not divide --image-size {sizes.image_size}."
        )


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

    _check_patches(sizes)
    check_sizes(sizes.width, sizes.heads)
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
    return Parts("small-clip", model, tokenizer, processor=processor)


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


_IMAGENET_MEAN = [0.485, 0.456, 0.406]
_IMAGENET_STD = [0.229, 0.224, 0.225]
_STEM_STRIDE = 4  # a ResNet's first convolution and its pooling


@dataclass(frozen=True)
class SmallBackbone:
    """Sizes of a small backbone.

    Attributes:
        family: ``dinov2``, a ViT; or ``resnet``, of basic blocks.
        patch_size: pixels of a patch; of a ResNet its total stride, 4 and doubled by every stage
            after the first.
        width: of the features; a ResNet's earlier stages have half of the next one's.
        layers: blocks; of a ResNet in each stage.
        heads: of attention; a ResNet has none.
    """

    family: Literal["dinov2", "resnet"] = "dinov2"
    image_size: int = 32
    patch_size: int = 4
    width: int = 128
    layers: int = 4
    heads: int = 4


def build_small_backbone(sizes: SmallBackbone, seed: int) -> Parts:
    """Build the transformers classes themselves, so that everything that loads them loads it.

    Raises:
        UserError: for sizes that do not divide.
    """
    from transformers import BitImageProcessorPil

    _check_patches(sizes)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = _resnet(sizes) if sizes.family == "resnet" else _dinov2(sizes)
    processor = BitImageProcessorPil(
        size={"shortest_edge": sizes.image_size},
        crop_size={"height": sizes.image_size, "width": sizes.image_size},
        image_mean=_IMAGENET_MEAN,
        image_std=_IMAGENET_STD,
    )
    return Parts(f"small-{sizes.family}", model, processor=processor)


def _dinov2(sizes: SmallBackbone) -> Any:
    from transformers import Dinov2Config, Dinov2Model

    check_sizes(sizes.width, sizes.heads)
    return Dinov2Model(
        Dinov2Config(
            image_size=sizes.image_size,
            patch_size=sizes.patch_size,
            hidden_size=sizes.width,
            num_hidden_layers=sizes.layers,
            num_attention_heads=sizes.heads,
            mlp_ratio=4,
            layerscale_value=1.0,
            drop_path_rate=0.0,
        )
    )


def _resnet(sizes: SmallBackbone) -> Any:
    from transformers import ResNetConfig, ResNetModel

    doublings = (sizes.patch_size // _STEM_STRIDE).bit_length() - 1
    if sizes.patch_size != _STEM_STRIDE << max(doublings, 0):
        raise UserError(
            f"--patch-size {sizes.patch_size}: a resnet's total stride is 4, 8, 16, 32 and so on."
        )
    if sizes.width % 2**doublings:
        raise UserError(
            f"--width {sizes.width} is halved {doublings} times by this resnet: give a multiple "
            f"of {2**doublings}."
        )
    widths = [sizes.width >> halvings for halvings in range(doublings, -1, -1)]
    return ResNetModel(
        ResNetConfig(
            embedding_size=widths[0],
            hidden_sizes=widths,
            depths=[sizes.layers] * len(widths),
            layer_type="basic",
        )
    )


Architecture = Literal["gpt2", "qwen2"]

SIZES: Mapping[str, tuple[int, int, int]] = {  # layers, width, heads
    "tiny": (2, 64, 2),
    "nano": (4, 128, 4),
    "small": (6, 384, 6),
}


def build_language(
    tokenizer: Any,
    *,
    architecture: Architecture,
    layers: int,
    width: int,
    heads: int,
    context: int,
    seed: int,
) -> Any:
    """Build a causal language model of transformers for a tokenizer's vocabulary.

    Input and output embeddings are one matrix, dropout is 0, weights are float32.

    Args:
        context: positions, prompt and completion together.

    Raises:
        UserError: for an architecture that is not known, sizes that do not fit, and a tokenizer
            that could not be loaded beside the model.
    """
    check_sizes(width, heads, layers=layers, heads=heads, context=context)
    sizes = (layers, width, heads, context)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if architecture == "gpt2":
            model = _gpt2(tokenizer, *sizes)
        elif architecture == "qwen2":
            model = _qwen2(tokenizer, *sizes)
        else:
            known = get_args(Architecture)
            raise UserError(
                f'--architecture "{architecture}" is not known. {nearest(architecture, known)}'
            )
    return model.float().eval()


def _gpt2(tokenizer: Any, layers: int, width: int, heads: int, context: int) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        n_layer=layers,
        n_embd=width,
        n_head=heads,
        n_positions=context,
        activation_function="gelu_pytorch_tanh",  # as gelu_new, in one kernel
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        **_vocabulary_of(tokenizer),
    )
    return GPT2LMHeadModel(config)


def _qwen2(tokenizer: Any, layers: int, width: int, heads: int, context: int) -> Any:
    from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

    if not isinstance(tokenizer, Qwen2Tokenizer):  # AutoTokenizer would misread it, silently
        raise UserError(
            "--architecture qwen2 takes a byte-level tokenizer: transformers loads none but "
            "qwen2's beside it. Choose --tokenizer bpe, or --architecture gpt2."
        )
    if width // heads % 2:
        raise UserError(
            f"--heads {heads} of --width {width} are {width // heads} wide: a qwen2 rotates pairs, "
            "so give heads of even width."
        )
    config = Qwen2Config(
        num_hidden_layers=layers,
        hidden_size=width,
        intermediate_size=gated(width),
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=context,
        attention_dropout=0.0,
        **_vocabulary_of(tokenizer),
    )
    return Qwen2ForCausalLM(config)


def _vocabulary_of(tokenizer: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": True,
    }
