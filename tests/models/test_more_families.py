"""Further families that see: features, scores, gradients and prompts, as transformers has them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from more_families import OTHERS, QWENS, parts_of
from vision_folders import asking, noise, saved_vision
from vision_models import (
    Scene,
    answer_of,
    differences,
    logits_of_each,
    scene,
    seeing,
    seen_by,
    truth_of,
)

from visgrpo.errors import UserError
from visgrpo.models.language import context_of
from visgrpo.models.load import load_vision_language
from visgrpo.models.vision_families import family_of

CLOSE = 1e-5
KINDS = (*QWENS, *OTHERS)
# One image, two of other shapes, none.
SIZES = [[(24, 16)], [(40, 12), (16, 16)], []]


def shown(kind: str, **changes: Any) -> Scene:
    return scene(SIZES, parts=parts_of(kind), **changes)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("engine", ["shared", "plain"])
@pytest.mark.parametrize("train", ["all", "language", "merger", "lora"])
def test_scores_and_gradients_are_those_of_single_sequences(
    train: str, engine: Any, kind: str
) -> None:
    """Twice: features and states that are kept are those of the first time."""
    seen, model = shown(kind, padding=1), seeing(train, engine, parts_of(kind)).double()
    expected = truth_of(model, seen)
    for _ in range(2):
        assert max(differences(answer_of(model, seen.batch()), expected)) < CLOSE


@pytest.mark.parametrize("kind", KINDS)
def test_both_engines_agree_in_single_precision(kind: str) -> None:
    seen = shown(kind)
    shared, plain = (
        answer_of(seeing("all", engine, parts_of(kind)), seen.batch())  # type: ignore[arg-type]
        for engine in ("shared", "plain")
    )
    scale = plain.log_probs.abs().max()
    assert (shared.log_probs - plain.log_probs).abs().max() < CLOSE * scale
    norms = {name: gradient.norm() for name, gradient in plain.gradients.items()}
    largest = max(norms.values())
    for name, gradient in plain.gradients.items():
        assert (shared.gradients[name] - gradient).norm() < 1e-4 * norms[name] + CLOSE * largest


@pytest.mark.parametrize("kind", KINDS)
def test_completions_are_generated_as_single_sequences_are(kind: str) -> None:
    seen, model = shown(kind), seeing("all", "shared", parts_of(kind)).double()
    batch, tokens_NGT = seen.batch(), seen.completions_NGT
    expected = logits_of_each(model, seen)
    decoder = model.begin(batch["prompts_NP"], batch["lengths_N"], 2, 4, batch["pictures"])
    for step in range(4):
        if step:
            decoder.feed(tokens_NGT[..., step - 1].flatten())
        ours = decoder.logits_BV
        torch.testing.assert_close(ours, expected[:, :, step].flatten(0, 1), atol=CLOSE, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_what_an_image_says_counts(kind: str) -> None:
    """Another image changes the scores: none of the tests above would see features of nothing."""
    seen, model = shown(kind), seeing("all", "shared", parts_of(kind)).double()
    [one], *rest = seen.pictures_N
    other = Scene(seen.ids_N, [[one._replace(pixels=-one.pixels)], *rest], seen.completions_NGT)
    before, after = (model(**each.batch()).log_probs for each in (seen, other))
    changed_N = (before - after).abs().flatten(1).amax(dim=1)
    assert changed_N[0] > 1e-3
    assert changed_N[1:].max() < CLOSE


@pytest.mark.parametrize("kind", KINDS)
def test_where_the_parts_are(kind: str) -> None:
    model = parts_of(kind).model
    family = family_of(model)
    parts = (family.trunk(model), family.tower(model), family.bridge(model))
    trunk, tower, bridge = ({id(p) for p in part.parameters()} for part in parts)
    head = {id(p) for p in model.get_output_embeddings().parameters()}
    assert trunk.isdisjoint(tower | bridge)
    assert trunk | tower | bridge | head == {id(p) for p in model.parameters()}


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded_again(kind: str, tmp_path: Path) -> None:
    parts = parts_of(kind)
    folder = saved_vision(tmp_path / "model", parts)
    again = load_vision_language(str(folder))
    plain = transformers.AutoModelForImageTextToText.from_pretrained(folder).eval()
    made = again.processor.picture(noise(40, 12))
    assert torch.equal(made.pixels, parts.processor.picture(noise(40, 12)).pixels)
    ids = again.processor.prompt_ids(asking(), [made])
    assert np.array_equal(ids, parts.processor.prompt_ids(asking(), [made]))
    tokens_1P = torch.tensor(ids, dtype=torch.long)[None]
    with torch.no_grad():
        a, b, c = (
            model(input_ids=tokens_1P, **seen_by(model, tokens_1P, [made])).logits
            for model in (parts.model, again.model, plain)
        )
    assert torch.equal(a, b)
    assert torch.equal(a, c)


def own_processor(kind: str) -> Any:
    """Transformers' own, also of those that want a video processor: images need none of it."""
    parts = parts_of(kind)
    settings = dict(parts.processor._family.settings)
    own = getattr(transformers, settings.pop("processor_class"))
    tokenizer = copy.deepcopy(parts.tokenizer)
    if kind == "gemma3":
        names = {"boi": "<start_of_image>", "eoi": "<end_of_image>", "image": "<image_soft_token>"}
        for name, token in names.items():
            setattr(tokenizer, f"{name}_token", token)
            setattr(tokenizer, f"{name}_token_id", tokenizer.convert_tokens_to_ids(token))
    if kind in ("llava_next", "gemma3"):
        return own(parts.processor.images, tokenizer, **settings)
    made = own.__new__(own)
    made.image_processor, made.tokenizer = parts.processor.images, tokenizer
    made.__dict__.update(settings, image_token=parts.processor._family.place)
    made.__dict__.update(start_image_token="<img>", end_image_token="</img>")
    return made


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("sizes", [[(24, 16)], [(7, 40)], [(100, 90)], [(24, 16), (16, 40)]])
def test_pixels_and_places_are_those_of_transformers_own_class(
    kind: str, sizes: list[tuple[int, int]]
) -> None:
    processor, own = parts_of(kind).processor, own_processor(kind)
    images = [noise(*size) for size in sizes]
    pictures = [processor.picture(image, len(images) == 1) for image in images]
    crops = {"crop_to_patches": True} if kind == "internvl" else {}
    given = [images] if kind == "llava_onevision" else images
    made = processor.images(images=given, return_tensors="pt", **crops)
    theirs = made["pixel_values"]
    if theirs.ndim == 5:
        theirs = torch.cat([t[: len(p.pixels)] for t, p in zip(theirs, pictures, strict=True)])
    assert torch.equal(theirs.float(), torch.cat([picture.pixels for picture in pictures]))
    for number, picture in enumerate(pictures):
        text = own.replace_image_token(made, number)
        assert text == processor._family.text(picture)
        assert text.count(processor._family.place) == picture.tokens


@pytest.mark.parametrize("kind", OTHERS)
def test_fewer_pixels(kind: str) -> None:
    processor = copy.deepcopy(parts_of(kind).processor)
    large, small = noise(60, 60), noise(8, 8)
    assert processor.resizes(large)
    assert not processor.resizes(small)
    if kind.startswith("llava"):
        with pytest.raises(UserError, match="--max-pixels does not go with a LLaVA"):
            processor.limit(256)
        return
    with pytest.raises(UserError, match="a tile has 256"):
        processor.limit(255)
    processor.limit(256)
    assert len(processor.picture(large).pixels) == 1


def test_places_of_one_image_see_each_other_and_no_other_image_s() -> None:
    family = family_of(parts_of("gemma3").model)
    places = torch.tensor([[0, 1, 1, 0, 1, 1], [0, 0, 0, 0, 0, 0]]).bool()
    ahead = family.ahead(places)
    assert ahead is not None
    expected = torch.zeros(2, 6, 6, dtype=torch.bool)
    expected[0, 1:3, 1:3] = expected[0, 4:, 4:] = True
    assert torch.equal(ahead, expected)


def test_a_window_is_the_context() -> None:
    """Within it, layers that see a window of tokens see all of them."""
    assert context_of(parts_of("gemma3").model) == 200
    config = copy.deepcopy(parts_of("gemma3").model.config)
    config.text_config.layer_types = ["full_attention"] * 2
    assert context_of(type(parts_of("gemma3").model)(config)) == 256


def test_gemma_s_crops_are_refused() -> None:
    parts = parts_of("gemma3")
    images = copy.deepcopy(parts.processor.images)
    images.do_pan_and_scan = True
    with pytest.raises(UserError, match="do_pan_and_scan"):
        type(parts.processor).of(parts.model.config, images, parts.tokenizer)


def test_llava_s_grids_must_be_the_model_s() -> None:
    parts = parts_of("llava_next")
    images = copy.deepcopy(parts.processor.images)
    images.image_grid_pinpoints = [[8, 8]]
    with pytest.raises(UserError, match="other image_grid_pinpoints"):
        type(parts.processor).of(parts.model.config, images, parts.tokenizer)
