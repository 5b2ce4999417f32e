"""What trains, by literal name, for every choice."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import torch
from classifiers import classifier_from, frozen_copy, logits_of, train

from visgrpo.errors import UserError
from visgrpo.models.adapt import Adaptation, image_tower_is_frozen, trainable_parameters

IMAGE = ["encoder.vision_model.*", "encoder.visual_projection.weight"]
TEXT = ["encoder.text_model.*", "encoder.text_projection.weight"]
PROJECTIONS = ["encoder.visual_projection.weight", "encoder.text_projection.weight"]
AFTER_BLOCKS = ["encoder.vision_model.post_layernorm.*", "encoder.visual_projection.weight"]
LAST_BLOCK = ["encoder.vision_model.encoder.layers.1.*", *AFTER_BLOCKS]
SCALE = "encoder.logit_scale"

IN_PEFT = "encoder.base_model.model."
LINEAR = [f"self_attn.{x}_proj" for x in ("q", "k", "v", "out")] + ["mlp.fc1", "mlp.fc2"]
WHOLE_BLOCK = IN_PEFT + "vision_model.encoder.layers.1.modules_to_save.default.*"
SCALE_IN_PEFT = IN_PEFT + "logit_scale"


def adapters(tower: str, *blocks: int) -> list[str]:
    return [
        f"{IN_PEFT}{tower}.encoder.layers.{block}.{linear}.lora_{side}.default.weight"
        for block in blocks
        for linear in LINEAR
        for side in "AB"
    ]


IMAGE_LORA, TEXT_LORA = adapters("vision_model", 0, 1), adapters("text_model", 0, 1)
SIGLIP_HEAD_LORA = [
    f"{IN_PEFT}vision_model.head.mlp.{linear}.lora_{side}.default.weight"
    for linear in ("fc1", "fc2")
    for side in "AB"
]

CLIP_CASES: list[tuple[dict[str, Any], str, list[str]]] = [
    ({"train": "image"}, "frozen", IMAGE),
    ({"train": "text"}, "frozen", TEXT),
    ({"train": "full"}, "frozen", IMAGE + TEXT),
    ({"train": "projections"}, "frozen", PROJECTIONS),
    ({"train": "image"}, "trainable", [*IMAGE, SCALE]),
    ({"train": "projections"}, "clamped", [*PROJECTIONS, SCALE]),
    ({"train": "image", "last_blocks": 1}, "frozen", LAST_BLOCK),
    (
        {"train": "image", "last_blocks": 2},
        "frozen",
        ["encoder.vision_model.encoder.layers.*", *AFTER_BLOCKS],
    ),
    ({"train": "full", "last_blocks": 1}, "frozen", LAST_BLOCK + TEXT),
    ({"lora": True}, "frozen", IMAGE_LORA),
    ({"lora": True, "train": "text"}, "frozen", TEXT_LORA),
    ({"lora": True, "train": "full"}, "frozen", IMAGE_LORA + TEXT_LORA),
    ({"lora": True}, "trainable", [*IMAGE_LORA, SCALE_IN_PEFT]),
    (
        {"lora": True, "last_blocks": 1},
        "frozen",
        [*adapters("vision_model", 0), WHOLE_BLOCK],
    ),
    (
        {"lora": True, "last_blocks": 1, "train": "full"},
        "clamped",
        [*adapters("vision_model", 0), WHOLE_BLOCK, *TEXT_LORA, SCALE_IN_PEFT],
    ),
]
SIGLIP_CASES: list[tuple[dict[str, Any], str, list[str]]] = [
    ({"train": "image"}, "frozen", ["encoder.vision_model.*"]),
    ({"train": "text"}, "frozen", ["encoder.text_model.*"]),
    ({"train": "full"}, "trainable", ["encoder.vision_model.*", "encoder.text_model.*", SCALE]),
    (
        {"train": "image", "last_blocks": 1},
        "frozen",
        [
            "encoder.vision_model.encoder.layers.1.*",
            "encoder.vision_model.post_layernorm.*",
            "encoder.vision_model.head.*",
        ],
    ),
    ({"lora": True}, "frozen", IMAGE_LORA + SIGLIP_HEAD_LORA),
    ({"lora": True, "train": "text"}, "frozen", TEXT_LORA),
]
ALL_CASES = [("tiny_clip_folder", *case) for case in CLIP_CASES]
ALL_CASES += [("tiny_siglip_folder", *case) for case in SIGLIP_CASES]


def case_name(value: Any) -> str | None:
    return str(value) if isinstance(value, dict) else None


@pytest.mark.parametrize(("family", "choice", "scale", "patterns"), ALL_CASES, ids=case_name)
def test_exactly_these_train_and_move(
    family: str,
    choice: dict[str, Any],
    scale: Any,
    patterns: list[str],
    request: pytest.FixtureRequest,
) -> None:
    folder = request.getfixturevalue(family)
    classifier = classifier_from(folder, Adaptation(**choice), logit_scale=scale)
    names = [name for name, _ in classifier.named_parameters()]
    for pattern in patterns:
        assert any(fnmatchcase(name, pattern) for name in names), pattern
    expected = [name for name in names if any(fnmatchcase(name, p) for p in patterns)]
    assert list(trainable_parameters(classifier)) == expected
    sides = [name for name in expected if "vision_model" in name]
    assert image_tower_is_frozen(classifier) == (not sides)

    start = frozen_copy(classifier)
    train(classifier)
    assert [name for name, p in trainable_parameters(classifier).items() if p.grad is None] == []
    moved = [name for name, p in classifier.named_parameters() if not torch.equal(p, start[name])]
    assert moved
    assert set(moved) <= set(expected)


@pytest.mark.parametrize("train_side", ["image", "text", "full"])
@pytest.mark.parametrize("last_blocks", [0, 1])
@pytest.mark.parametrize("family", ["tiny_clip_folder", "tiny_siglip_folder"])
def test_adapters_start_as_the_base(
    family: str, last_blocks: int, train_side: Any, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(family)
    last_blocks = 0 if train_side == "text" else last_blocks
    choice = Adaptation(train=train_side, last_blocks=last_blocks, lora=True)
    adapted, base = classifier_from(folder, choice), classifier_from(folder)
    assert torch.equal(logits_of(adapted), logits_of(base))


def test_rank_alpha_and_dropout_arrive(tiny_clip_folder: Path) -> None:
    choice = Adaptation(lora=True, lora_rank=3, lora_alpha=12.0, lora_dropout=0.25)
    classifier = classifier_from(tiny_clip_folder, choice)
    layer = classifier.backbone.vision_model.encoder.layers[0].mlp.fc1
    assert layer.lora_A["default"].weight.shape == (3, 32)
    assert layer.scaling["default"] == 4.0
    assert layer.lora_dropout["default"].p == 0.25


@pytest.mark.parametrize("last_blocks", [-1, 3])
def test_last_blocks_must_exist(tiny_clip_folder: Path, last_blocks: int) -> None:
    with pytest.raises(UserError, match=f"--last-blocks {last_blocks}: the image tower has 2"):
        classifier_from(tiny_clip_folder, Adaptation(last_blocks=last_blocks))


def test_siglip_has_no_projections(tiny_siglip_folder: Path) -> None:
    with pytest.raises(UserError, match="siglip has no projection layers"):
        classifier_from(tiny_siglip_folder, Adaptation(train="projections"))
