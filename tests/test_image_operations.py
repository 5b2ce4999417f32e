"""The operations that benchmarks/token_step.py divides by: counted apart, and by torch itself."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
PATCH, WIDTH, VOCABULARY = 4, 24, 50


@pytest.fixture(scope="module")
def counting() -> Iterator[ModuleType]:
    sys.path.insert(0, str(BENCHMARKS))
    yield importlib.import_module("image_operations")
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def model() -> Any:
    """A Qwen2.5-VL whose attention is products of matrices, which torch counts."""
    vision = {
        "depth": 3,
        "hidden_size": 16,
        "num_heads": 2,
        "intermediate_size": 20,
        "out_hidden_size": WIDTH,
        "patch_size": PATCH,
        "spatial_merge_size": 2,
        "temporal_patch_size": 1,
        "window_size": 4 * PATCH,
        "fullatt_block_indexes": [1],
    }
    text = {
        "num_hidden_layers": 2,
        "hidden_size": WIDTH,
        "intermediate_size": 36,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 1]},
        "vocab_size": VOCABULARY,
    }
    config = Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, image_token_id=1, attn_implementation="eager"
    )
    return Qwen2_5_VLForConditionalGeneration(config).eval()


def counted_by_torch(model: Any, **inputs: Any) -> int:
    """Return multiply-adds: half of what torch calls operations."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(**inputs)
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("side", [2, 4, 8])  # patches; less than a window, one, and four
def test_an_image_is_counted_as_torch_counts_it(
    counting: ModuleType, model: Any, side: int
) -> None:
    expected = counted_by_torch(
        model.model.visual,
        hidden_states=torch.zeros(side**2, 3 * PATCH**2),
        grid_thw=torch.tensor([[1, side, side]]),
    )
    assert counting.sizes_of(model, side * PATCH).image == expected


def test_windows_that_the_edge_would_cut_are_refused(counting: ModuleType, model: Any) -> None:
    with pytest.raises(ValueError, match="6 patches a side are not cut into windows of 4"):
        counting.sizes_of(model, 6 * PATCH)


@pytest.mark.parametrize("tokens", [1, 7])
def test_text_is_counted_as_torch_counts_it(counting: ModuleType, model: Any, tokens: int) -> None:
    sizes = counting.sizes_of(model, 2 * PATCH)
    found = tokens * (sizes.token + sizes.logits) + tokens**2 * sizes.pair  # no pair is left out
    ids = torch.full((1, tokens), 2)
    assert found == counted_by_torch(model, input_ids=ids, use_cache=False)


def test_a_step_is_counted_token_by_token(counting: ModuleType) -> None:
    # Weights that keep the kinds of operations apart in one number.
    sizes = counting.Sizes(image=10**12, token=10**8, pair=10**4, logits=1)
    step = counting.Step(prompt=3, new=2, group=4)
    # TRL, a completion: 4 images; 4 tokens in the rollout (1 + 2 + 3 + 4 pairs), 3 × 5 tokens in
    # the update (15 pairs each time); 4 × 2 logits.
    one = 4 * 10**12 + (4 + 15) * 10**8 + (10 + 45) * 10**4 + 8
    assert counting.plain(sizes, step) == 4 * one
    # Ours: image and prompt (6 pairs) 3 times; of each completion one token that sees 4, 4 times;
    # logits of the prompt's last token, of 4 · 1 tokens, and 3 times of 4 · 2.
    ours = 3 * (10**12 + 3 * 10**8 + 6 * 10**4) + 16 * (10**8 + 4 * 10**4) + 1 + 4 + 24
    assert counting.shared(sizes, step) == ours


def test_a_frozen_tower_has_no_backward_pass_and_keeps_its_features(counting: ModuleType) -> None:
    sizes = counting.Sizes(image=1, token=0, pair=0, logits=0)
    step = counting.Step(prompt=3, new=2, group=4, frozen=True)
    assert counting.plain(sizes, step) == 2 * 4
    assert counting.shared(sizes, step) == 0
