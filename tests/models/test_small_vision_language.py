"""The small Qwen2.5-VL from random weights, with its tokenizer and image processor."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from vision_folders import SIZES, asking, logits_about, noise, tiny_vision

from visgrpo.errors import UserError
from visgrpo.models.tokenizers import VISION_TOKENS
from visgrpo.models.vision_language.small import SIZES as PRESETS


def test_sizes_that_are_named() -> None:
    with torch.device("meta"):
        models = {name: tiny_vision(sizes=sizes).model for name, sizes in PRESETS.items()}
    # 12 · layers · width² in the blocks of both towers, (4 · width)² in the merger, and embeddings
    # of tokens and of patches.
    for name, sizes in PRESETS.items():
        blocks = 12 * (sizes.layers * sizes.width**2 + sizes.vision_layers * sizes.vision_width**2)
        merger = 4 * sizes.vision_width * (4 * sizes.vision_width + sizes.width)
        tokens = models[name].get_input_embeddings().weight.numel()
        known = blocks + merger + tokens + 3 * sizes.patch**2 * sizes.vision_width
        count = sum(weight.numel() for weight in models[name].parameters())
        assert known < count < 1.15 * known


def test_the_seed_decides_alone() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, again, other = (tiny_vision(seed).model.state_dict() for seed in (3, 3, 4))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


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
def test_any_text_goes_round(text: str) -> None:
    tokenizer = tiny_vision().tokenizer
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_every_second_block_from_the_last_sees_the_whole_image() -> None:
    for layers, whole in ((1, [0]), (2, [1]), (5, [0, 2, 4])):
        model = tiny_vision(sizes=replace(SIZES, vision_layers=layers)).model
        assert model.config.vision_config.fullatt_block_indexes == whole


def test_what_is_seen_changes_what_is_said() -> None:
    parts = tiny_vision()
    first, other = (parts.processor.picture(noise(16, 16, seed)) for seed in (0, 1))
    ids = parts.processor.prompt_ids(asking(), [first])
    ours, theirs = (logits_about(parts.model, ids, picture) for picture in (first, other))
    before = int((torch.tensor(ids) == parts.model.config.image_token_id).nonzero()[0])
    assert torch.equal(ours[:before], theirs[:before])
    assert (ours[before:] - theirs[before:]).abs().amax(dim=-1).min() > 1e-4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": 0}, "--layers 0: give 1 or more"),
        ({"vision_layers": 0}, "--vision-layers 0: give 1 or more"),
        ({"patch": 0}, "--patch 0: give 1 or more"),
        ({"heads": 3}, "--heads 3 does not divide --width 16"),
        ({"width": 0}, "--heads 2 does not divide --width 0"),
        ({"heads": 4}, "Heads 4 wide cannot tell time, rows and columns apart: 6 or more"),
        ({"vision_width": 20}, "--vision-width 20 is no multiple of 4 × 2"),
        ({"max_pixels": 63}, "--max-pixels 63: a token sees 64; give that or more"),
        ({"vocabulary": 100}, "--vocabulary 100 has no room for every byte"),
    ],
)
def test_sizes_that_do_not_fit(changes: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        tiny_vision(sizes=replace(SIZES, **changes))
