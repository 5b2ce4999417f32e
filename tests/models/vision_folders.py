"""Tiny random vision-language models, pictures for them, and messages about the pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from visgrpo.data.pictures import Picture
from visgrpo.models.parts import Parts
from visgrpo.models.save import save
from visgrpo.models.small_vision import SmallVisionLanguage, build_vision_language
from visgrpo.models.vision_language import VisionProcessor

TEXTS = ["How many shapes are there? <think>3</think>", "How many red cubes are there?"]
SIZES = SmallVisionLanguage(
    layers=2,
    width=16,
    heads=2,
    vision_layers=2,
    vision_width=16,
    vision_heads=2,
    patch=4,
    max_pixels=32 * 32,
    context=128,
    vocabulary=300,
)
SMOL_TOKENS = [
    "<image>",
    "<fake_token_around_image>",
    "<global-img>",
    "<end_of_utterance>",
    *(f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)),
]
SMOL_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] | capitalize }}:"
    "{% for part in m['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)


def tiny_vision(seed: int = 0, sizes: SmallVisionLanguage = SIZES) -> Parts:
    return build_vision_language(TEXTS, sizes, seed=seed)


def saved_vision(folder: Path, parts: Parts | None = None) -> Path:
    parts = tiny_vision() if parts is None else parts
    folder.mkdir(parents=True, exist_ok=True)
    save(parts.model, parts, folder, "# a card\n", {})
    return folder


def tiny_smol(kind: str = "smolvlm") -> Parts:
    """A SmolVLM or Idefics3 whose tiles are 16 pixels wide and take 4 places each."""
    import transformers

    tokenizer = tiny_vision().tokenizer
    tokenizer.add_special_tokens({"additional_special_tokens": SMOL_TOKENS})
    tokenizer.chat_template = SMOL_TEMPLATE
    name = {"smolvlm": "SmolVLM", "idefics3": "Idefics3"}[kind]
    tower = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    text = tower | {
        "model_type": "llama",
        "vocab_size": len(tokenizer),
        "num_key_value_heads": 2,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": None,
    }
    config = getattr(transformers, f"{name}Config")(
        text_config=text,
        vision_config=tower | {"image_size": 16, "patch_size": 4},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, f"{name}ForConditionalGeneration")(config).eval()
    images = getattr(transformers, f"{name}ImageProcessorPil")(
        size={"longest_edge": 32}, max_image_size={"longest_edge": 16}
    )
    processor = VisionProcessor.of(model.config, images, tokenizer)
    return Parts(kind, model, tokenizer, processor=processor)


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def asking(question: str = "How many?", images: int = 1) -> list[dict[str, Any]]:
    """One turn of a user: some images, then a question."""
    parts: list[dict[str, str]] = [{"type": "image"}] * images
    return [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]


@torch.no_grad()
def logits_about(model: Any, ids: np.ndarray, picture: Picture) -> torch.Tensor:
    """Logits (P, V) of a prompt with one image, by transformers' own forward pass."""
    tokens_1P = torch.tensor(ids, dtype=torch.long)[None]
    if model.config.model_type != "qwen2_5_vl":
        return model(input_ids=tokens_1P, pixel_values=picture.pixels[None]).logits[0]
    places_1P = (tokens_1P == model.config.image_token_id).int()
    return model(
        input_ids=tokens_1P,
        pixel_values=picture.pixels,
        image_grid_thw=torch.tensor([picture.grid]),
        mm_token_type_ids=places_1P,
    ).logits[0]
