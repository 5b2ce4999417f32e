"""Tiny random models of further families that see, with image processors of a few pixels."""

from __future__ import annotations

import functools
from typing import Any

import torch
from vision_folders import tiny_vision
from vision_models import spread

from visgrpo.models.parts import Parts
from visgrpo.models.vision_language import VisionProcessor

_TOWER = {
    **{"hidden_size": 16, "intermediate_size": 32},
    **{"num_hidden_layers": 2, "num_attention_heads": 2},
}
_TEXT = {**_TOWER, "num_key_value_heads": 1, "max_position_embeddings": 256}
_GRID = [[8, 8], [8, 16], [16, 8], [16, 16], [24, 24]]
_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}:{% if m['content'] is string %}{{ m['content'] }}"
    "{% else %}{% for part in m['content'] %}{% if part['type'] == 'image' %}IMAGE"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
# Of each: the token of its places, what a chat spells for an image, and other special tokens.
_TOKENS: dict[str, tuple[str, str, list[str]]] = {
    "internvl": ("<IMG_CONTEXT>", "<IMG_CONTEXT>", ["<img>", "</img>", "<video>"]),
    "gemma3": ("<image_soft_token>", "<start_of_image>", ["<end_of_image>"]),
    "llava_next": ("<image>", "<image>", []),
    "llava_onevision": ("<image>", "<image>", ["<video>"]),
}
QWENS, OTHERS = ("qwen2_vl", "qwen3_vl"), tuple(_TOKENS)


@functools.cache
def parts_of(kind: str) -> Parts:
    """Model, tokenizer and processor of a family, weights large enough for differences to show."""
    import transformers

    tokenizer = tiny_vision().tokenizer
    if kind in _TOKENS:
        place, marker, more = _TOKENS[kind]
        specials = list(dict.fromkeys([place, marker, *more]))
        tokenizer.add_special_tokens({"additional_special_tokens": specials})
        tokenizer.chat_template = _TEMPLATE.replace("IMAGE", marker)
    text = {
        **_TEXT,
        **{"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id},
        **{"eos_token_id": tokenizer.eos_token_id, "bos_token_id": None},
    }
    name, settings, images = _SETTINGS[kind](text, tokenizer)
    config = getattr(transformers, f"{name}Config")(**settings)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, f"{name}ForConditionalGeneration")(config).eval()
    processor = VisionProcessor.of(config, images, tokenizer)
    return spread(Parts(kind, model, tokenizer, processor=processor))


def _ids(tokenizer: Any, **tokens: str) -> dict[str, int]:
    return {name: tokenizer.convert_tokens_to_ids(token) for name, token in tokens.items()}


def _qwen(kind: str, text: dict[str, Any], tokenizer: Any) -> tuple[str, dict[str, Any], Any]:
    from transformers import Qwen2VLImageProcessorPil

    vision = {"depth": 3, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2}
    if kind == "qwen2_vl":
        vision |= {"embed_dim": 16, "hidden_size": 16, "num_heads": 2, "mlp_ratio": 2}
        rotary = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
    else:
        vision |= {"hidden_size": 16, "num_heads": 2, "intermediate_size": 32}
        vision |= {"out_hidden_size": 16, "num_position_embeddings": 16}
        vision |= {"deepstack_visual_indexes": [0, 1]}
        rotary = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
        text = {**text, "head_dim": 8}
    ids = _ids(
        tokenizer,
        image_token_id="<|image_pad|>",
        video_token_id="<|video_pad|>",
        vision_start_token_id="<|vision_start|>",
        vision_end_token_id="<|vision_end|>",
    )
    images = Qwen2VLImageProcessorPil(
        patch_size=4, merge_size=2, temporal_patch_size=2, min_pixels=64, max_pixels=64 * 64
    )
    name = {"qwen2_vl": "Qwen2VL", "qwen3_vl": "Qwen3VL"}[kind]
    texts = {**text, "rope_parameters": rotary}
    return name, {"text_config": texts, "vision_config": vision, **ids}, images


def _internvl(text: dict[str, Any], tokenizer: Any) -> tuple[str, dict[str, Any], Any]:
    from transformers import GotOcr2ImageProcessorPil

    vision = {**_TOWER, "image_size": [16, 16], "patch_size": [4, 4]}
    settings = {
        **{"text_config": {**text, "model_type": "qwen2"}, "vision_config": vision},
        **{"image_seq_length": 4, "downsample_ratio": 0.5},
        **_ids(tokenizer, image_token_id="<IMG_CONTEXT>"),
    }
    size = {"height": 16, "width": 16}
    return "InternVL", settings, GotOcr2ImageProcessorPil(size=size, max_patches=4)


def _gemma(text: dict[str, Any], tokenizer: Any) -> tuple[str, dict[str, Any], Any]:
    from transformers import Gemma3ImageProcessorPil

    layers = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 200}
    settings = {
        "text_config": {**text, **layers, "head_dim": 8, "query_pre_attn_scalar": 8},
        "vision_config": {**_TOWER, "image_size": 16, "patch_size": 4},
        "mm_tokens_per_image": 4,
        **_ids(
            tokenizer,
            image_token_id="<image_soft_token>",
            boi_token_id="<start_of_image>",
            eoi_token_id="<end_of_image>",
        ),
    }
    return "Gemma3", settings, Gemma3ImageProcessorPil(size={"height": 16, "width": 16})


def _llava(kind: str, text: dict[str, Any], tokenizer: Any) -> tuple[str, dict[str, Any], Any]:
    import transformers

    vision = {**_TOWER, "image_size": 8, "patch_size": 4}
    settings = {
        "text_config": {**text, "model_type": "qwen2"},
        "image_grid_pinpoints": _GRID,
        **_ids(tokenizer, image_token_id="<image>"),
    }
    if kind == "llava_next":
        settings["vision_config"] = {**vision, "model_type": "clip_vision_model"}
        sizes: dict[str, Any] = {"size": {"shortest_edge": 8}}
        sizes["crop_size"] = {"height": 8, "width": 8}
    else:
        tower = {**vision, "model_type": "siglip_vision_model", "vision_use_head": False}
        settings |= {"vision_config": tower, "vision_aspect_ratio": "anyres_max_4"}
        settings |= _ids(tokenizer, video_token_id="<video>")
        sizes = {"size": {"height": 8, "width": 8}}
    name = {"llava_next": "LlavaNext", "llava_onevision": "LlavaOnevision"}[kind]
    images = getattr(transformers, f"{name}ImageProcessorPil")
    return name, settings, images(image_grid_pinpoints=_GRID, **sizes)


_SETTINGS = {
    **{kind: functools.partial(_qwen, kind) for kind in QWENS},
    "internvl": _internvl,
    "gemma3": _gemma,
    **{kind: functools.partial(_llava, kind) for kind in ("llava_next", "llava_onevision")},
}
