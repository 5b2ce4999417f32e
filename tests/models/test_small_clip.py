"""The small CLIP and its tokenizer."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from visgrpo.errors import UserError
from visgrpo.models.small import SmallClip, build_small_clip, build_tokenizer

SIZES = SmallClip(
    image_size=16, patch_size=8, width=32, layers=2, heads=2, features=16, vocabulary=300
)
CAPTIONS = ["a photo of a cat.", "two red squares", "an apple, 3 pears"] * 5


@pytest.mark.parametrize(
    "text", ["a photo of a cat.", "a zebra crossing!", "crème brûlée", "猫 and 🐈", "3 × 4 = 12"]
)
def test_any_text_goes_round(text: str) -> None:
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
    parts = build_small_clip(SIZES, CAPTIONS, seed=0)
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
    parts = build_small_clip(replace(SIZES, features=24, layers=3), CAPTIONS, seed=0)
    config = parts.model.config
    assert config.projection_dim == 24
    for tower in (config.text_config, config.vision_config):
        assert (tower.hidden_size, tower.num_hidden_layers, tower.num_attention_heads) == (32, 3, 2)
    assert config.text_config.vocab_size == len(parts.tokenizer) <= 300
    assert parts.preprocess.crop == (16, 16)


def test_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    one = build_small_clip(SIZES, CAPTIONS, seed=3).model.state_dict()
    drawn = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), drawn)  # building took nothing from the global generator
    two = build_small_clip(SIZES, CAPTIONS, seed=3).model.state_dict()
    other = build_small_clip(SIZES, CAPTIONS, seed=4).model.state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    name = "visual_projection.weight"
    assert not torch.equal(one[name], other[name])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch_size": 5}, "--patch-size 5 does not divide --image-size 16"),
        ({"heads": 3}, "--heads 3 does not divide --width 32"),
    ],
)
def test_sizes_that_do_not_divide(change: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_small_clip(replace(SIZES, **change), CAPTIONS, seed=0)
