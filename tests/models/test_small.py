"""Small models of every kind: transformers' own classes, sized and seeded as asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from language_models import TEXT, logits_of, tiny_language, tokenizer_for, tokens
from PIL import Image
from vision_folders import SIZES as SEEING
from vision_folders import asking, logits_about, noise, tiny_vision

from visgrpo.errors import UserError
from visgrpo.models.backbone import Backbone
from visgrpo.models.language import context_of
from visgrpo.models.small import (
    SIZES,
    Architecture,
    SmallBackbone,
    SmallClip,
    build_language,
    build_small_backbone,
    build_small_clip,
    build_tokenizer,
)
from visgrpo.models.small_vision import SIZES as SEEING_SIZES
from visgrpo.models.tokenizers import VISION_TOKENS, make_tokenizer

CLIP = SmallClip(
    image_size=16, patch_size=8, width=32, layers=2, heads=2, features=16, vocabulary=300
)
CAPTIONS = ["a photo of a cat.", "two red squares", "an apple, 3 pears"] * 5
DINOV2 = SmallBackbone("dinov2", image_size=16, patch_size=8, width=16, layers=2, heads=2)
RESNET = SmallBackbone("resnet", image_size=16, patch_size=8, width=16, layers=2)
ARCHITECTURES: tuple[Architecture, ...] = ("gpt2", "qwen2")
SIZE: dict[str, Any] = {"layers": 2, "width": 16, "heads": 2, "context": 32, "seed": 0}


def clip(seed: int = 0, **changes: Any) -> Any:
    return build_small_clip(replace(CLIP, **changes), CAPTIONS, seed).model


def backbone(sizes: SmallBackbone, seed: int = 0) -> Any:
    return build_small_backbone(sizes, seed).model


def build(architecture: str, **changes: int) -> Any:
    tokenizer = tokenizer_for("qwen2")
    return build_language(tokenizer, architecture=architecture, **SIZE | changes)  # type: ignore[arg-type]


def sees(seed: int = 0, **changes: Any) -> Any:
    return tiny_vision(seed, replace(SEEING, **changes)).model


BUILDERS: dict[str, Callable[[int], Any]] = {
    "clip": clip,
    "dinov2": lambda seed: backbone(DINOV2, seed),
    "resnet": lambda seed: backbone(RESNET, seed),
    "gpt2": lambda seed: build("gpt2", seed=seed),
    "qwen2": lambda seed: build("qwen2", seed=seed),
    "vision-language": sees,
}


@pytest.mark.parametrize("kind", BUILDERS)
def test_weights_are_a_function_of_the_seed_alone(kind: str) -> None:
    weights = []
    for state, seed in ((1, 3), (2, 3), (2, 4)):
        torch.manual_seed(state)
        before = torch.random.get_rng_state()
        parameters = BUILDERS[kind](seed).parameters()
        weights.append(torch.cat([parameter.flatten() for parameter in parameters]))
        assert torch.equal(torch.random.get_rng_state(), before)
    first, again, other = weights
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: clip(patch_size=5), "--patch-size 5 does not divide --image-size 16"),
        (lambda: clip(heads=3), "--heads 3 does not divide --width 32"),
        (lambda: backbone(SmallBackbone(image_size=30)), "--patch-size 4 does not divide --image-"),
        (lambda: backbone(SmallBackbone(width=30)), "--heads 4 does not divide --width 30"),
        (lambda: backbone(SmallBackbone("resnet", 24, 12)), "--patch-size 12: a resnet's total"),
        (lambda: backbone(SmallBackbone("resnet", 32, 2)), "--patch-size 2: a resnet's total str"),
        (lambda: backbone(SmallBackbone("resnet", 32, 16, 18)), "--width 18 is halved 2 times"),
        (lambda: build("gpt2", layers=0), "--layers 0: give 1 or more"),
        (lambda: build("gpt2", heads=0), "--heads 0: give 1 or more"),
        (lambda: build("gpt2", context=0), "--context 0: give 1 or more"),
        (lambda: build("gpt2", heads=3), "--heads 3 does not divide --width 16"),
        (lambda: build("gpt2", width=0), "--heads 2 does not divide --width 0"),
        (lambda: build("qwen2", heads=16), "are 1 wide: a qwen2 rotates pairs"),
        (lambda: build("gpt3"), r'"gpt3" is not known\. Did you mean "gpt2"'),
        (
            lambda: tiny_language("qwen2", make_tokenizer("char", [TEXT])),
            "--architecture qwen2 takes a byte-level tokenizer",
        ),
        (lambda: sees(layers=0), "--layers 0: give 1 or more"),
        (lambda: sees(vision_layers=0), "--vision-layers 0: give 1 or more"),
        (lambda: sees(patch=0), "--patch 0: give 1 or more"),
        (lambda: sees(heads=3), "--heads 3 does not divide --width 16"),
        (lambda: sees(width=0), "--heads 2 does not divide --width 0"),
        (lambda: sees(heads=4), "Heads 4 wide cannot tell time, rows and columns apart: 6 or more"),
        (lambda: sees(vision_width=20), "--vision-width 20 is no multiple of 4 × 2"),
        (lambda: sees(max_pixels=63), "--max-pixels 63: a token sees 64; give that or more"),
        (lambda: sees(vocabulary=100), "--vocabulary 100 has no room for every byte"),
    ],
)
def test_sizes_that_do_not_fit(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


@pytest.mark.parametrize(
    "text", ["a photo of a cat.", "a zebra crossing!", "crème brûlée", "猫 and 🐈", "3 × 4 = 12"]
)
def test_any_caption_goes_round(text: str) -> None:
    tokenizer = build_tokenizer(CAPTIONS, 300)
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True).strip() == text
    assert (ids[0], ids[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert ids.count(tokenizer.eos_token_id) == 1


def test_case_does_not_matter() -> None:
    tokenizer = build_tokenizer(CAPTIONS, 300)
    assert tokenizer("A Photo")["input_ids"] == tokenizer("a photo")["input_ids"]


def test_frequent_words_are_short() -> None:
    tokenizer = build_tokenizer(CAPTIONS, 400)
    assert len(tokenizer("photo squares")["input_ids"]) == 4  # start, two words, end
    assert len(tokenizer("zebra")["input_ids"]) > 4


def test_long_text_is_cut_before_its_end_token() -> None:
    tokenizer = build_tokenizer(CAPTIONS, 300)
    ids = tokenizer("q" * 100, truncation=True)["input_ids"]
    assert len(ids) == 32
    assert ids[-1] == tokenizer.eos_token_id


def test_features_are_pooled_at_the_end_token() -> None:
    """Not at the longest text's length, nor at the highest id (an old rule for end token 2)."""
    parts = build_small_clip(CLIP, CAPTIONS, seed=0)
    assert parts.tokenizer.eos_token_id != 2
    texts = ["a cat", "a photo of a zebra crossing a street."]
    encoded = parts.tokenizer(texts, padding=True, return_tensors="pt")
    tower = parts.model.text_model.eval()
    with torch.no_grad():
        output = tower(**encoded)
        alone = tower(**parts.tokenizer(texts[:1], return_tensors="pt"))
    ends = [row.index(parts.tokenizer.eos_token_id) for row in encoded["input_ids"].tolist()]
    assert ends[0] < ends[1]
    for row, end in enumerate(ends):
        assert torch.equal(output.pooler_output[row], output.last_hidden_state[row, end])
    torch.testing.assert_close(output.pooler_output[:1], alone.pooler_output)


def test_sizes_arrive() -> None:
    parts = build_small_clip(replace(CLIP, features=24, layers=3), CAPTIONS, seed=0)
    config = parts.model.config
    assert config.projection_dim == 24
    for tower in (config.text_config, config.vision_config):
        assert (tower.hidden_size, tower.num_hidden_layers, tower.num_attention_heads) == (32, 3, 2)
    assert config.text_config.vocab_size == len(parts.tokenizer) <= 300
    assert parts.preprocess.crop == (16, 16)


@pytest.mark.parametrize("sizes", [DINOV2, RESNET], ids=lambda sizes: sizes.family)
def test_sizes_of_a_backbone_arrive(sizes: SmallBackbone) -> None:
    parts = build_small_backbone(sizes, seed=0)
    backbone = Backbone(parts.model).eval()
    pixels = parts.preprocess(Image.new("RGB", (40, 20), "red"))
    assert (backbone.stride, backbone.width) == (8, 16)
    assert pixels.shape == (3, 16, 16)
    assert backbone(pixels[None]).patches_NHWD.shape == (1, 2, 2, 16)
    assert parts.model.config.model_type == sizes.family


def test_layers_and_stages() -> None:
    assert len(build_small_backbone(DINOV2, 0).model.encoder.layer) == 2
    stages = build_small_backbone(RESNET, 0).model.encoder.stages
    assert [len(stage.layers) for stage in stages] == [2, 2]
    one = SmallBackbone("resnet", image_size=16, patch_size=4, width=8, layers=1)
    assert len(build_small_backbone(one, 0).model.encoder.stages) == 1


def test_preprocessing_of_a_small_backbone() -> None:
    parts = build_small_backbone(DINOV2, 0)
    noise = np.random.default_rng(0).integers(0, 256, (20, 31, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    expected = parts.processor(image, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(parts.preprocess(image), expected)


@pytest.mark.parametrize(
    ("architecture", "name"), [("gpt2", "GPT2LMHeadModel"), ("qwen2", "Qwen2ForCausalLM")]
)
def test_a_class_of_transformers_with_tied_embeddings(architecture: str, name: str) -> None:
    model = build(architecture)
    assert type(model).__name__ == name
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    tokenizer = tokenizer_for("qwen2")
    assert model.get_input_embeddings().num_embeddings == len(tokenizer)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id
    assert context_of(model) == 32


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_dropout_in_training(architecture: Architecture) -> None:
    model = tiny_language(architecture)
    expected = logits_of(model)
    assert torch.equal(model.train()(tokens()).logits, expected)


def test_both_weigh_about_the_same() -> None:
    layers, width, heads = SIZES["nano"]
    weights = [
        sum(p.numel() for p in build(name, layers=layers, width=width, heads=heads).parameters())
        for name in ARCHITECTURES
    ]
    # 12 · layers · width² in the blocks; the rest is embeddings, biases and norms.
    assert all(12 * layers * width**2 < count < 13 * layers * width**2 for count in weights)


def test_sizes_that_are_named() -> None:
    with torch.device("meta"):
        models = {name: tiny_vision(sizes=sizes).model for name, sizes in SEEING_SIZES.items()}
    # 12 · layers · width² in the blocks of both towers, (4 · width)² in the merger, and embeddings
    # of tokens and of patches.
    for name, sizes in SEEING_SIZES.items():
        blocks = 12 * (sizes.layers * sizes.width**2 + sizes.vision_layers * sizes.vision_width**2)
        merger = 4 * sizes.vision_width * (4 * sizes.vision_width + sizes.width)
        tokens = models[name].get_input_embeddings().weight.numel()
        known = blocks + merger + tokens + 3 * sizes.patch**2 * sizes.vision_width
        count = sum(weight.numel() for weight in models[name].parameters())
        assert known < count < 1.15 * known


def test_input_and_output_embeddings_are_one_matrix() -> None:
    model = tiny_vision().model
    assert model.lm_head.weight is model.get_input_embeddings().weight


def test_special_tokens_are_one_token_each_and_a_turn_s_end_ends_a_text() -> None:
    tokenizer = tiny_vision().tokenizer
    tokens = ["<|im_start|>", "<|im_end|>", *VISION_TOKENS]
    ids = tokenizer("".join(tokens))["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == tokens
    assert tokenizer.eos_token == "<|im_end|>"
    assert len({*ids, tokenizer.pad_token_id}) == 7


@pytest.mark.parametrize("text", ["How many? 3!", "<think>2 + 1</think>", "crème", "猫 🐈\n"])
def test_any_chat_goes_round(text: str) -> None:
    tokenizer = tiny_vision().tokenizer
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_every_second_block_from_the_last_sees_the_whole_image() -> None:
    for layers, whole in ((1, [0]), (2, [1]), (5, [0, 2, 4])):
        model = tiny_vision(sizes=replace(SEEING, vision_layers=layers)).model
        assert model.config.vision_config.fullatt_block_indexes == whole


def test_what_is_seen_changes_what_is_said() -> None:
    parts = tiny_vision()
    first, other = (parts.processor.picture(noise(16, 16, seed)) for seed in (0, 1))
    ids = parts.processor.prompt_ids(asking(), [first])
    ours, theirs = (logits_about(parts.model, ids, picture) for picture in (first, other))
    before = int((torch.tensor(ids) == parts.model.config.image_token_id).nonzero()[0])
    assert torch.equal(ours[:before], theirs[:before])
    assert (ours[before:] - theirs[before:]).abs().amax(dim=-1).min() > 1e-4
