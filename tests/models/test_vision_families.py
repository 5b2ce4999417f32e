"""The families of models that see: features and positions, as transformers has them."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from vision_folders import noise
from vision_models import (
    Scene,
    answer_of,
    differences,
    logits_of_each,
    qwen,
    scene,
    seeing,
    smol,
    truth_of,
)

from visgrpo.data.pictures import Pictures
from visgrpo.errors import UserError
from visgrpo.models.vision_families import family_of, mrope_section
from visgrpo.models.vision_families.qwen import QwenVision
from visgrpo.models.vision_families.tiles import TileVision

CLOSE = 1e-5
TILED = ("smolvlm", "idefics3")
# Two by two tiles and the whole; one by two and the whole; two by two again; none.
TILES = [[(16, 16)], [(32, 16), (12, 16)], []]


def pictures_of(seen: Scene) -> Pictures:
    pictures = seen.batch()["pictures"]
    assert pictures is not None
    return pictures


def tiled(kind: str, **changes: Any) -> Scene:
    return scene(TILES, parts=smol(kind), **changes)


# Features


def test_features_of_qwen_are_transformers_own_image_by_image() -> None:
    """Also where an image has several windows, and where the merger works on kept states."""
    model, pictures = seeing().lm, pictures_of(scene([[(40, 48)], [(24, 16), (64, 40)]]))
    family = QwenVision()
    features = family.features(model, pictures)
    states = family.states(model, pictures)
    assert [len(each) for each in features] == [30, 6, 40]
    assert [each.shape for each in states] == [(30, 4, 16), (6, 4, 16), (40, 4, 16)]
    for i, image in enumerate(family.bridged(model, states, pictures)):
        alone = pictures.images([i])
        (theirs,) = model.get_image_features(alone.pixels, alone.grids_I3).pooler_output
        torch.testing.assert_close(image, theirs, atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(features[i], theirs, atol=1e-4, rtol=1e-5)
        assert pictures.tokens_I[i] == len(theirs)


@pytest.mark.parametrize("kind", TILED)
def test_features_of_tiles_are_transformers_own_image_by_image(kind: str) -> None:
    model, pictures = smol(kind).model, pictures_of(tiled(kind))
    family = TileVision()
    states = family.states(model, pictures)
    assert [tuple(each.shape) for each in states] == [(5, 16, 16), (3, 16, 16), (5, 16, 16)]
    features = family.features(model, pictures)
    for i, image in enumerate(family.bridged(model, states, pictures)):
        tiles = pictures.images([i]).pixels[None]
        (theirs,) = model.model.get_image_features(tiles).pooler_output
        torch.testing.assert_close(image, theirs, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(features[i], theirs, atol=1e-5, rtol=1e-5)
        assert pictures.tokens_I[i] == len(theirs)


@pytest.mark.parametrize("kind", TILED)
@pytest.mark.parametrize("engine", ["shared", "plain"])
@pytest.mark.parametrize("train", ["all", "language", "merger", "lora"])
def test_tiles_score_as_in_single_sequences(train: str, engine: Any, kind: str) -> None:
    seen, model = tiled(kind), seeing(train, engine, smol(kind)).double()
    expected = truth_of(model, seen)
    for _ in range(2):
        assert max(differences(answer_of(model, seen.batch()), expected)) < CLOSE


@pytest.mark.parametrize("engine", ["shared", "plain"])
def test_tiles_are_generated_from_as_in_single_sequences(engine: Any) -> None:
    seen, model = tiled("smolvlm"), seeing("all", engine, smol()).double()
    batch, tokens_NGT = seen.batch(), seen.completions_NGT
    expected = logits_of_each(model, seen)
    decoder = model.begin(batch["prompts_NP"], batch["lengths_N"], 2, 4, batch["pictures"])
    for step in range(4):
        if step:
            decoder.feed(tokens_NGT[..., step - 1].flatten())
        ours = decoder.logits_BV
        torch.testing.assert_close(ours, expected[:, :, step].flatten(0, 1), atol=CLOSE, rtol=0)


def test_a_grey_tile_is_not_lost() -> None:
    """Transformers takes a tile of zeros for padding, and then lacks features for its places."""
    seen = tiled("smolvlm")
    [one], two, none = seen.pictures_N
    grey = replace(seen, pictures_N=[[one._replace(pixels=0 * one.pixels)], two, none])
    nearly = replace(seen, pictures_N=[[one._replace(pixels=0 * one.pixels + 1e-30)], two, none])
    with pytest.raises(ValueError, match="do not match"):
        truth_of(seeing(parts=smol()), grey)
    expected = truth_of(seeing(parts=smol()).double(), nearly)
    for engine in ("shared", "plain"):
        model = seeing("all", engine, smol()).double()  # type: ignore[arg-type]
        assert max(differences(answer_of(model, grey.batch()), expected)) < CLOSE
        assert differences(answer_of(model, seen.batch()), expected).log_probs > 0.05


# Positions


@pytest.mark.parametrize("padding", [0, 2])
def test_an_image_has_rows_and_columns_and_what_follows_comes_after_both(padding: int) -> None:
    """Two words, an image of 2 × 3 tokens, two words, one of 1 × 1, a word; worked out by hand."""
    config = SimpleNamespace(image_token_id=9)
    get_rope_index = qwen().model.model.get_rope_index
    model = SimpleNamespace(config=config, model=SimpleNamespace(get_rope_index=get_rope_index))
    prompt = torch.tensor([[0] * padding + [5, 6, 9, 9, 9, 9, 9, 9, 6, 5, 9, 7]])
    mask = torch.tensor([[0] * padding + [1] * 12])
    grids = torch.tensor([[1, 4, 6], [1, 2, 2]])
    pictures = SimpleNamespace(grids_I3=grids)
    positions, following = QwenVision().positions(model, prompt, mask, pictures)  # type: ignore[arg-type]
    # An image takes as many positions as its longer side: 3, then 1.
    expected = [
        [0, 1, 2, 2, 2, 2, 2, 2, 5, 6, 7, 8],
        [0, 1, 2, 2, 2, 3, 3, 3, 5, 6, 7, 8],
        [0, 1, 2, 3, 4, 2, 3, 4, 5, 6, 7, 8],
    ]
    assert positions[:, 0, padding:].tolist() == expected
    assert following.tolist() == [9]


def test_positions_of_rows_count_their_own_images() -> None:
    seen = scene([[(24, 16)], [(16, 32), (24, 16)], []])
    pictures, batch = pictures_of(seen), seen.batch()
    prompts, lengths = batch["prompts_NP"], batch["lengths_N"]
    mask = (torch.arange(prompts.shape[1]) >= prompts.shape[1] - lengths[:, None]).long()
    _, following = QwenVision().positions(qwen().model, prompts, mask, pictures)
    # 6 places take 3 positions, 8 take 4.
    assert (lengths - following).tolist() == [3, 4 + 3, 0]


def test_tiles_have_the_positions_of_text() -> None:
    prompts, mask = torch.zeros(2, 4, dtype=torch.long), torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    positions, following = TileVision().positions(smol().model, prompts, mask, None)
    assert positions.tolist() == [[0, 0, 0, 1], [0, 1, 2, 3]]
    assert following.tolist() == [2, 4]


# Parts


@pytest.mark.parametrize("kind", ["qwen2_5_vl", *TILED])
def test_where_the_parts_are(kind: str) -> None:
    """Trunk, tower and bridge are the model's own, and all that sees is in the last two."""
    model = (qwen() if kind == "qwen2_5_vl" else smol(kind)).model
    family = family_of(model)
    assert isinstance(family, QwenVision if kind == "qwen2_5_vl" else TileVision)
    ids: list[set[int]] = [
        {id(p) for p in part.parameters()}
        for part in (family.trunk(model), family.tower(model), family.bridge(model))
    ]
    trunk, sees = ids[0], ids[1] | ids[2]
    head = {id(p) for p in model.get_output_embeddings().parameters()}
    assert trunk.isdisjoint(sees)
    assert trunk | sees | head == {id(p) for p in model.parameters()}


def test_a_model_of_another_kind_is_refused() -> None:
    model = SimpleNamespace(config=SimpleNamespace(model_type="llava"))
    with pytest.raises(UserError, match="A llava model is not known here as one that sees"):
        family_of(model)


def test_pixels_are_seen_in_the_precision_of_the_weights() -> None:
    image = noise(16, 16)
    for parts in (qwen(), smol()):
        model = seeing(parts=parts).to(torch.bfloat16).lm
        pictures = Pictures.of([[parts.processor.picture(image)]], [[""]])
        assert pictures is not None
        features: tuple[Tensor, ...] = family_of(model).features(model, pictures)
        assert features[0].dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("head_dim", "sections"),
    [(128, [16, 24, 24]), (64, [8, 12, 12]), (80, [10, 15, 15]), (8, [2, 1, 1]), (6, [1, 1, 1])],
)
def test_rotary_sections(head_dim: int, sections: list[int]) -> None:
    assert mrope_section(head_dim) == sections
    assert sum(sections) == head_dim / 2


@pytest.mark.parametrize("head_dim", [4, 7])
def test_heads_that_have_no_sections(head_dim: int) -> None:
    with pytest.raises(UserError, match=f"Heads {head_dim} wide cannot tell"):
        mrope_section(head_dim)
