"""Images to pixels and messages to ids: as the checkpoints' own processors, which need more."""

from __future__ import annotations

import copy
import pickle
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from vision_folders import asking, noise, tiny_smol, tiny_vision

from visgrpo.data.pictures import Picture
from visgrpo.errors import UserError
from visgrpo.models.parts import Parts
from visgrpo.models.vision_language import VisionProcessor


@pytest.fixture(scope="module")
def qwen() -> Parts:
    return tiny_vision()


@pytest.fixture(scope="module")
def smol() -> Parts:
    return tiny_smol()


def refusal(parts: Parts, **changed: Any) -> str:
    """The one line that refuses a processor of some other parts."""
    given = {"config": parts.model.config, "images": parts.processor.images}
    given = {**given, "tokenizer": parts.tokenizer, **changed}
    with pytest.raises(UserError) as caught:
        VisionProcessor.of(**given)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def with_template(parts: Parts, template: str | None) -> Any:
    tokenizer = copy.deepcopy(parts.tokenizer)
    tokenizer.chat_template = template
    return tokenizer


def test_patches_are_cut_token_by_token_and_row_by_row(qwen: Parts) -> None:
    """Four patches of 4 × 4 pixels make a token of 8 × 8; a patch holds its colours in turn."""
    image = noise(24, 16)
    made = qwen.processor.picture(image)
    assert (made.grid, made.tokens) == ((1, 4, 6), 6)
    mean = np.array([0.48145466, 0.4578275, 0.40821073])
    std = np.array([0.26862954, 0.26130258, 0.27577711])
    pixels = (np.asarray(image) / 255 - mean) / std
    expected = [
        pixels[row : row + 4, column : column + 4].transpose(2, 0, 1).ravel()
        for top in (0, 8)
        for left in (0, 8, 16)
        for row in (top, top + 4)
        for column in (left, left + 4)
    ]
    np.testing.assert_allclose(made.pixels.numpy(), np.stack(expected), atol=1e-5)


@pytest.mark.parametrize("size", [(16, 16), (30, 18), (100, 60), (5, 5), (1, 1)])
def test_pixels_are_those_of_the_checkpoint_s_image_processor(
    qwen: Parts, size: tuple[int, int]
) -> None:
    image = noise(*size)
    made = qwen.processor.picture(image)
    plain = qwen.processor.images(images=[image], return_tensors="pt")
    assert np.array_equal(made.pixels, plain["pixel_values"])
    assert list(made.grid) == plain["image_grid_thw"][0].tolist()
    assert made.tokens == len(made.pixels) // 4


def test_a_prompt_has_places_for_its_images_and_the_header_of_the_answer(qwen: Parts) -> None:
    first, second = (qwen.processor.picture(noise(*size)) for size in ((16, 16), (8, 16)))
    ids = qwen.processor.prompt_ids(asking("How many?", images=2), [first, second])
    assert ids.dtype == np.int32
    assert qwen.tokenizer.decode(ids) == (
        "<|im_start|>user\n"
        f"<|vision_start|>{4 * '<|image_pad|>'}<|vision_end|>"
        f"<|vision_start|>{2 * '<|image_pad|>'}<|vision_end|>"
        "How many?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_places_are_those_of_transformers_own_class(qwen: Parts) -> None:
    """It cannot be built without a video processor, but can be asked."""
    from transformers import Qwen2_5_VLProcessor

    picture = qwen.processor.picture(noise(32, 24))
    theirs = Qwen2_5_VLProcessor.replace_image_token(
        SimpleNamespace(image_processor=qwen.processor.images, image_token="*"),
        {"image_grid_thw": np.array([picture.grid])},
        0,
    )
    ids = qwen.processor.prompt_ids(asking(), [picture])
    assert (ids == qwen.model.config.image_token_id).sum() == len(theirs) == picture.tokens


def test_prompts_without_images(qwen: Parts) -> None:
    ids = qwen.processor.prompt_ids([{"role": "user", "content": "Hello"}], [])
    assert qwen.tokenizer.decode(ids) == (
        "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    )
    assert np.array_equal(qwen.processor.prompt_ids(asking("Hello", images=0), []), ids)


@pytest.mark.parametrize("size", [(32, 24), (32, 32), (16, 16), (64, 20), (10, 3)])
def test_tiles_are_those_of_transformers_own_class(size: tuple[int, int]) -> None:
    from transformers import Idefics3Processor

    parts, image = tiny_smol("idefics3"), noise(*size)
    plain = Idefics3Processor(parts.processor.images, parts.tokenizer, image_seq_len=4)
    text = parts.tokenizer.apply_chat_template(
        asking(images=2), tokenize=False, add_generation_prompt=True
    )
    theirs = plain(text=text, images=[image, noise(20, 32)], return_tensors="np")
    pictures = [parts.processor.picture(image), parts.processor.picture(noise(20, 32))]
    ours = parts.processor.prompt_ids(asking(images=2), pictures)
    assert np.array_equal(ours, theirs["input_ids"][0])
    assert np.array_equal(
        np.concatenate([p.pixels for p in pictures]), np.concatenate(theirs["pixel_values"])
    )


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 2), (2, 2), (3, 4)])
def test_places_of_tiles_are_smolvlm_s(smol: Parts, rows: int, columns: int) -> None:
    from transformers.models.smolvlm.processing_smolvlm import get_image_prompt_string

    one = rows * columns == 1
    tiles = np.zeros((1 if one else rows * columns + 1, 3, 1, 1), dtype=np.float32)
    theirs = get_image_prompt_string(
        *((0, 0) if one else (rows, columns)),
        image_seq_len=4,
        fake_token_around_image="<fake_token_around_image>",
        image_token="<image>",
        global_image_token="<global-img>",
    )
    ids = smol.processor.prompt_ids(
        asking("?"), [Picture(tiles, (1, rows, columns), 4 * len(tiles))]
    )
    chat = f"User:{theirs}?<end_of_utterance>\nAssistant:"
    assert ids.tolist() == smol.tokenizer(chat)["input_ids"]


def test_a_tile_in_one_piece_is_the_whole_image() -> None:
    parts = tiny_smol()
    parts.processor.limit(16 * 16)
    made = parts.processor.picture(noise(40, 30))
    assert (made.grid, made.tokens, tuple(made.pixels.shape)) == ((1, 1, 1), 4, (1, 3, 16, 16))


def test_what_stands_for_images_is_never_to_be_drawn(qwen: Parts, smol: Parts) -> None:
    assert sorted(qwen.tokenizer.convert_ids_to_tokens(qwen.processor.placeholder_ids)) == [
        "<|image_pad|>",
        "<|video_pad|>",
        "<|vision_end|>",
        "<|vision_start|>",
    ]
    assert smol.tokenizer.convert_ids_to_tokens(smol.processor.placeholder_ids) == [
        "<image>",
        "<fake_token_around_image>",
        "<global-img>",
        *(f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)),
    ]


def test_large_images_are_made_smaller_and_it_can_be_known() -> None:
    parts = tiny_vision()
    assert not parts.processor.resizes(noise(32, 32))
    assert parts.processor.resizes(noise(33, 32))
    parts.processor.limit(16 * 16)
    assert parts.processor.resizes(noise(17, 16))
    assert parts.processor.picture(noise(64, 64)).grid == (1, 4, 4)


def test_a_limit_holds_for_small_images_that_are_enlarged() -> None:
    parts = tiny_vision()
    parts.processor.images.size = {"shortest_edge": 32 * 32, "longest_edge": 32 * 32}
    assert parts.processor.picture(noise(8, 8)).grid == (1, 8, 8)
    parts.processor.limit(16 * 16)
    assert parts.processor.picture(noise(8, 8)).grid == (1, 4, 4)


def test_tiles_have_a_limit_too() -> None:
    parts = tiny_smol()
    assert parts.processor.resizes(noise(33, 10))
    assert not parts.processor.resizes(noise(32, 10))
    parts.processor.limit(40 * 40)  # two tiles a side at most; a third has no room
    assert parts.processor.picture(noise(90, 90)).grid == (1, 2, 2)
    parts.processor.limit(10_000)
    assert parts.processor.picture(noise(90, 90)).grid == (1, 2, 2)


def test_small_images_are_enlarged_where_the_family_does() -> None:
    """8 × 8 pixels become 24 × 24 in patches of 4; a larger image stays, within the limit."""
    processor = tiny_vision().processor
    processor.limit(32 * 32)
    processor.enlarge(24 * 24)
    assert processor.picture(noise(8, 8)).grid == (1, 6, 6)
    assert processor.picture(noise(32, 32)).grid == (1, 8, 8)
    assert not processor.resizes(noise(8, 8))
    with pytest.raises(UserError, match="--min-pixels 1025: images have 1024 at most; give fewer"):
        processor.enlarge(1025)
    with pytest.raises(UserError, match="--min-pixels is for Qwen-VLs"):
        tiny_smol().processor.enlarge(1024)


def test_limits_that_leave_nothing_to_see() -> None:
    with pytest.raises(UserError, match="--max-pixels 63: a token sees 64; give that or more"):
        tiny_vision().processor.limit(63)
    with pytest.raises(UserError, match="--max-pixels 255: a tile has 256; give that or more"):
        tiny_smol().processor.limit(255)


def test_other_processes_make_the_same_of_an_image(qwen: Parts) -> None:
    copied = pickle.loads(pickle.dumps(qwen.processor))
    ours, theirs = (p.picture(noise(24, 16)) for p in (qwen.processor, copied))
    assert np.array_equal(ours.pixels, theirs.pixels)
    first, again = (p.prompt_ids(asking(), [ours]) for p in (qwen.processor, copied))
    assert np.array_equal(first, again)


@pytest.mark.parametrize("size", [(3, 160), (1700, 8), (2, 100)])
def test_images_that_would_be_distorted(qwen: Parts, size: tuple[int, int]) -> None:
    with pytest.raises(UserError, match=f"{size[0]} × {size[1]} pixels is too thin"):
        qwen.processor.picture(Image.new("RGB", size))


@pytest.mark.parametrize(("places", "images"), [(1, 0), (1, 2), (0, 1)])
def test_images_and_places_that_do_not_match(qwen: Parts, places: int, images: int) -> None:
    pictures = [qwen.processor.picture(noise(8, 8))] * images
    with pytest.raises(UserError, match=rf"places for {places} image\(s\), but {images} came"):
        qwen.processor.prompt_ids(asking(images=places), pictures)


def test_a_question_that_spells_the_image_token(qwen: Parts) -> None:
    picture = qwen.processor.picture(noise(8, 8))
    with pytest.raises(UserError, match=r"<\|image_pad\|> is 2 times in the chat: take it out"):
        qwen.processor.prompt_ids(asking("What is <|image_pad|>?"), [picture])


def test_a_chat_template_that_passes_images_over(qwen: Parts) -> None:
    tokenizer = with_template(qwen, "{{ messages[0]['role'] }}")
    assert "does not write <|image_pad|> for an image" in refusal(qwen, tokenizer=tokenizer)


def test_a_chat_template_for_strings_alone(qwen: Parts) -> None:
    tokenizer = with_template(qwen, "{{ 'user: ' + messages[0]['content'] }}")
    assert "does not write <|image_pad|> for an image" in refusal(qwen, tokenizer=tokenizer)


def test_no_chat_template(qwen: Parts) -> None:
    assert "has no chat template" in refusal(qwen, tokenizer=with_template(qwen, None))


def test_a_tokenizer_that_cuts_special_tokens_up(qwen: Parts) -> None:
    tokenizer = copy.deepcopy(qwen.tokenizer)
    tokenizer.split_special_tokens = True
    assert "cuts <|image_pad|> up" in refusal(qwen, tokenizer=tokenizer)


def test_a_tokenizer_of_another_model(qwen: Parts) -> None:
    config = copy.deepcopy(qwen.model.config)
    config.image_token_id = 9999
    assert "has no token 9999, the model's image_token_id" in refusal(qwen, config=config)


@pytest.mark.parametrize("setting", ["patch_size", "temporal_patch_size", "merge_size"])
def test_patches_of_another_model(qwen: Parts, setting: str) -> None:
    images = copy.deepcopy(qwen.processor.images)
    has = getattr(images, setting)
    setattr(images, setting, 7)
    expected = f"The image processor has {setting} 7, the model {has}"
    assert refusal(qwen, images=images).startswith(expected)


def test_tiles_of_another_model(smol: Parts) -> None:
    images = copy.deepcopy(smol.processor.images)
    images.max_image_size = {"longest_edge": 32}
    assert "has max_image_size 32, the model 16" in refusal(smol, images=images)
